# pith_add_tests(<target> <libraries> [LABEL label] SOURCES files...)
#
# One GoogleTest executable. A suite whose name starts with Golden, Slow or Model carries the label golden, slow or
# model, every other LABEL, else unit. Suites become ctest entries as PithSuites.cmake says.
#
# PITH_ONE_THREAD_SUITES (regular expression): model and slow suites of one thread, which may run side by side.
# PITH_SMALL_MODEL: what the test SmallModel makes, a model like the default one whose products are small; with
# sanitizers model and slow suites take it for the default one.
# PITH_LEFT_OUT_TESTS (filter of GoogleTest): tests that this tree leaves out.
# PITH_PARTED_SUITES (regular expression): suites in PITH_TEST_PARTS entries SUITE#0, SUITE#1, ..., of which ./pith test
# runs one, another for each commit, and, where that one has the default model, SUITE.small, the others on the small one.
set(PITH_TEST_PARTS 8)

function(pith_add_tests target libraries)
  cmake_parse_arguments(arg "" "LABEL" "SOURCES" ${ARGN})
  if(NOT arg_SOURCES)
    return()
  endif()
  if(NOT arg_LABEL)
    set(arg_LABEL unit)
  endif()
  add_executable(${target} ${arg_SOURCES})
  target_link_libraries(${target} PRIVATE ${libraries} pith_warnings GTest::gmock GTest::gtest_main)
  target_compile_definitions(${target} PRIVATE PITH_SOURCE_DIR="${PROJECT_SOURCE_DIR}")
  target_compile_options(${target} PRIVATE ${PITH_LITTLE_OPTIMISED})
  # Programs are compiled with -fPIE, which headers for the layers' -fPIC do not fit.
  if(target STREQUAL pith_base_tests)
    target_precompile_headers(${target} PRIVATE ${PITH_COMMON_HEADERS} <gmock/gmock.h> <gtest/gtest.h>)
  else()
    target_precompile_headers(${target} REUSE_FROM pith_base_tests)
  endif()
  pith_unity(${target})

  set(script ${CMAKE_CURRENT_BINARY_DIR}/${target}_suites.cmake)
  file(GENERATE OUTPUT ${script} CONTENT "set(target ${target})
set(program [==[$<TARGET_FILE:${target}>]==])
set(own_label ${arg_LABEL})
set(parts ${PITH_TEST_PARTS})
set(one_thread [==[${PITH_ONE_THREAD_SUITES}]==])
set(parted [==[${PITH_PARTED_SUITES}]==])
set(left_out [==[${PITH_LEFT_OUT_TESTS}]==])
set(small_model [==[${PITH_SMALL_MODEL}]==])
set(sanitized [==[${PITH_SANITIZE}]==])
set(source_dir [==[${PROJECT_SOURCE_DIR}]==])
set(reports [==[${PROJECT_BINARY_DIR}/suites]==])
include([==[${PROJECT_SOURCE_DIR}/cmake/PithSuites.cmake]==])
")
  set_property(DIRECTORY APPEND PROPERTY TEST_INCLUDE_FILES ${script})
endfunction()
