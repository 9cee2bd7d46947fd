# Installs the program, one shared library with all layers and libllama inside,
# the public headers, and package files for CMake and pkg-config.
#
# Only the functions of <pith/pith.h> are visible in the library: tests/abi lists them.
include(CMakePackageConfigHelpers)

set(empty ${PROJECT_BINARY_DIR}/libpith.cc)
file(CONFIGURE OUTPUT ${empty} CONTENT "// All code of libpith comes from the layers' archives.\n")
add_library(libpith SHARED ${empty})
target_link_libraries(libpith PRIVATE $<LINK_LIBRARY:WHOLE_ARCHIVE,pith_session> INTERFACE tl::expected)
target_compile_features(libpith INTERFACE cxx_std_20)
target_include_directories(libpith INTERFACE
  $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}/include> $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}>)
set(symbols ${CMAKE_CURRENT_LIST_DIR}/libpith.map)
target_link_options(libpith PRIVATE -Wl,--version-script=${symbols})
set_target_properties(libpith PROPERTIES
  LINK_DEPENDS ${symbols}
  OUTPUT_NAME pith
  EXPORT_NAME pith
  VERSION ${PROJECT_VERSION}
  SOVERSION ${PROJECT_VERSION_MAJOR}.${PROJECT_VERSION_MINOR})

if(PITH_SANITIZE)  # whose tests have the archives
  set_target_properties(libpith PROPERTIES EXCLUDE_FROM_ALL ON)
endif()

set(package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/pith)
install(TARGETS libpith EXPORT pith-targets LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR})
if(TARGET pith)
  install(TARGETS pith RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
endif()
install(DIRECTORY include/pith DESTINATION ${CMAKE_INSTALL_INCLUDEDIR} FILES_MATCHING PATTERN "*.h" PATTERN "*.hpp")
install(EXPORT pith-targets NAMESPACE pith:: DESTINATION ${package_dir})
configure_package_config_file(cmake/pith-config.cmake.in ${PROJECT_BINARY_DIR}/pith-config.cmake
  INSTALL_DESTINATION ${package_dir})
write_basic_package_version_file(${PROJECT_BINARY_DIR}/pith-config-version.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/pith-config.cmake ${PROJECT_BINARY_DIR}/pith-config-version.cmake
  DESTINATION ${package_dir})
configure_file(cmake/pith.pc.in ${PROJECT_BINARY_DIR}/pith.pc @ONLY)
install(FILES ${PROJECT_BINARY_DIR}/pith.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
install(FILES LICENSE DESTINATION ${CMAKE_INSTALL_DOCDIR})
install(FILES ${_pith_llama_prefix}/LICENSE DESTINATION ${CMAKE_INSTALL_DOCDIR} RENAME LICENSE.libllama OPTIONAL)
if(PITH_VALKEY)
  install(FILES ${_pith_valkey_prefix}/COPYING DESTINATION ${CMAKE_INSTALL_DOCDIR} RENAME LICENSE.libvalkey)
endif()
