# pith_unity(<target>): with PITH_UNITY compiles the target's files in groups, each as one, so that the headers and
# templates that they share are gone through once: it halves the compilers' time. A changed file takes its group along,
# which is why ./pith turns it on, for trees that it configures itself, and the presets do not.
#
# scripts/unity_groups.py says which files may go together. A file for which it is wrong gets the source property
# SKIP_UNITY_BUILD_INCLUSION, as do those that somebody else compiles again.
option(PITH_UNITY "Compile files in groups" OFF)
if(PITH_UNITY)
  find_package(Python3 REQUIRED COMPONENTS Interpreter)
endif()

function(pith_unity target)
  if(NOT PITH_UNITY)
    return()
  endif()
  get_target_property(sources ${target} SOURCES)
  execute_process(COMMAND ${Python3_EXECUTABLE} ${PROJECT_SOURCE_DIR}/scripts/unity_groups.py ${sources}
    WORKING_DIRECTORY ${CMAKE_CURRENT_SOURCE_DIR} OUTPUT_VARIABLE lines COMMAND_ERROR_IS_FATAL ANY)
  string(REGEX MATCHALL "[^\n]+" lines "${lines}")
  foreach(line IN LISTS lines)
    string(REGEX MATCH "^([0-9]+) (.*)$" line "${line}")
    set_source_files_properties(${CMAKE_MATCH_2} PROPERTIES UNITY_GROUP ${CMAKE_MATCH_1})
  endforeach()
  set_target_properties(${target} PROPERTIES UNITY_BUILD ON UNITY_BUILD_MODE GROUP)
endfunction()
