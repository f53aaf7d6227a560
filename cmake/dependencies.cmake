# The libraries Heddle stands on. scripts/setup installs them on Debian and Ubuntu.
find_package(Threads REQUIRED)
find_package(PkgConfig REQUIRED)
find_package(dnnl CONFIG REQUIRED) # oneDNN 2.6 or 3.x
find_package(PNG REQUIRED)
find_package(ZLIB REQUIRED)
pkg_check_modules(CJSON REQUIRED IMPORTED_TARGET libcjson)
pkg_check_modules(XXHASH REQUIRED IMPORTED_TARGET libxxhash>=0.8)
