# make install: the program, the library, its one header, what pkg-config needs to find them, and the data.
include(GNUInstallDirs)

# What a program that links the static library needs beside it. oneDNN has no file for pkg-config on Debian.
set(heddle_pc_requires "libpng zlib")
foreach(pair CJSON:libcjson XXHASH:libxxhash PCRE2:libpcre2-8 UTF8PROC:libutf8proc)
    string(REPLACE ":" ";" pair ${pair})
    list(GET pair 0 prefix)
    list(GET pair 1 module)
    if(TARGET PkgConfig::${prefix})
        string(APPEND heddle_pc_requires " ${module}")
    endif()
endforeach()
# Relative to where heddle.pc lies, so that the prefix may be chosen, or moved, after the build.
file(RELATIVE_PATH heddle_pc_up /${CMAKE_INSTALL_LIBDIR}/pkgconfig /)
configure_file(heddle.pc.in heddle.pc @ONLY)

install(TARGETS heddle libheddle)
install(FILES include/heddle.h DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(FILES ${CMAKE_BINARY_DIR}/heddle.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
install(DIRECTORY models/ DESTINATION ${CMAKE_INSTALL_DATADIR}/heddle/models)
install(DIRECTORY presets/ DESTINATION ${CMAKE_INSTALL_DATADIR}/heddle/presets)
