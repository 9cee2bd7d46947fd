# Defines pith_llama: libllama, its engine for chat templates, and ggml as static libraries.
#
# The prefix is -DPITH_LLAMA_PREFIX, else the environment's PITH_LLAMA_PREFIX,
# else what scripts/build_llama.sh builds once and keeps in the cache folder.
# The libraries are imported by hand: ggml's own package file asks for the
# OpenMP runtime of whichever compiler builds pith, and the libraries were
# linked against that of GCC.
#
# PITH_LLAMA_LATER: the headers and archives may come while pith is built. ./pith lets both builds run at once.
option(PITH_LLAMA_LATER "Configure although PITH_LLAMA_PREFIX is not complete yet" OFF)

set(_pith_llama_prefix "${PITH_LLAMA_PREFIX}")
if(NOT _pith_llama_prefix)
  set(_pith_llama_build "")
  if(PITH_SANITIZE STREQUAL "thread")
    set(_pith_llama_build --tsan)
  endif()
  # Builds when missing (some minutes, once for all build trees).
  execute_process(
    COMMAND ${PROJECT_SOURCE_DIR}/scripts/build_llama.sh ${_pith_llama_build}
    OUTPUT_VARIABLE _pith_llama_prefix
    OUTPUT_STRIP_TRAILING_WHITESPACE
    RESULT_VARIABLE _pith_llama_result)
  if(NOT _pith_llama_result EQUAL 0)
    message(FATAL_ERROR "libllama could not be built; see the message above.")
  endif()
endif()
# What `pith --version` says. build_llama.sh names its folders VERSION-KEY.
set(PITH_LLAMA_VERSION "built elsewhere")
if(_pith_llama_prefix MATCHES "/([0-9.]+)-[0-9a-f]+/*$")
  set(PITH_LLAMA_VERSION "llama-cpp-python ${CMAKE_MATCH_1}")
endif()
message(STATUS "libllama: ${_pith_llama_prefix}")

add_library(pith_llama INTERFACE)
target_include_directories(pith_llama SYSTEM INTERFACE ${_pith_llama_prefix}/include)
set(PITH_LLAMA_ARCHIVES "")
foreach(_name llama-jinja llama ggml ggml-cpu ggml-base)
  set(_file ${_pith_llama_prefix}/lib/lib${_name}.a)
  if(NOT EXISTS ${_file} AND NOT PITH_LLAMA_LATER)
    message(FATAL_ERROR "${_file} does not exist; remove ${_pith_llama_prefix} and configure again.")
  endif()
  target_link_libraries(pith_llama INTERFACE ${_file})
  list(APPEND PITH_LLAMA_ARCHIVES lib${_name}.a)
endforeach()
target_link_libraries(pith_llama INTERFACE -lgomp -lpthread -ldl -lm)
