# make install: the program, the library, its one header, and what pkg-config needs to find them.
include(GNUInstallDirs)
install(TARGETS heddle libheddle)
install(FILES include/heddle.h DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
