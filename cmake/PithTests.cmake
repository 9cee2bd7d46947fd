# pith_add_tests(<target> <libraries> [LABEL label] SOURCES files...)
#
# One GoogleTest executable, one ctest entry per test. A test carries one label:
# golden, slow or model when its suite's name starts with Golden, Slow or Model,
# else LABEL, else unit.
include(GoogleTest)

function(pith_discover target label filter)
  string(MAKE_C_IDENTIFIER "${target}_${filter}" list)
  # Tests that run a model use all processors; beside others they would crawl.
  if(label STREQUAL unit)
    set(serial OFF)
  else()
    set(serial ON)
  endif()
  gtest_discover_tests(${target}
    TEST_FILTER "${filter}"
    TEST_LIST ${list}
    DISCOVERY_MODE PRE_TEST
    DISCOVERY_TIMEOUT 60
    WORKING_DIRECTORY ${PROJECT_SOURCE_DIR}
    PROPERTIES LABELS ${label} TIMEOUT 900 RUN_SERIAL ${serial})
endfunction()

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

  pith_discover(${target} golden "Golden*:*/Golden*")
  pith_discover(${target} slow "Slow*:*/Slow*")
  pith_discover(${target} model "Model*:*/Model*")
  pith_discover(${target} ${arg_LABEL} "-Golden*:*/Golden*:Slow*:*/Slow*:Model*:*/Model*")
endfunction()
