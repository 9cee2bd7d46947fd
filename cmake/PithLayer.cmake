# pith_add_layer(<layer> [COLD] [PUBLIC libs...] [PRIVATE libs...])
#
# One static library pith_<layer> from src/<layer>/**/*.cc, without tests,
# benchmarks and main.cc. A folder without sources gives an empty library.
# Public libraries are the layers below; every layer sees src/ and include/.
#
# COLD: flags, JSON, HTTP, reports, of which no token waits for a loop: release builds optimise them less, which takes a
# third off the compiler's time for these, the longest files.
#
# The standard library's headers, fmt's and expected's are compiled once for all layers: parsing them was half of the
# time of most files. Each file includes what it uses all the same; the preset fuzz, which has no such header, checks.
set(PITH_COMMON_HEADERS
  <algorithm> <array> <atomic> <chrono> <cmath> <condition_variable> <cstddef> <cstdint> <cstring> <functional> <limits>
  <map> <memory> <mutex> <numeric> <optional> <random> <set> <span> <string> <string_view> <thread> <utility> <vector>
  <fmt/format.h> <tl/expected.hpp>)

function(pith_layer_files layer pattern result)
  file(GLOB_RECURSE files CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/src/${layer}/${pattern})
  set(${result} ${files} PARENT_SCOPE)
endfunction()

# The last of several -O counts. Only a header that was precompiled with the same one fits. With sanitizers all but the
# innermost loops are such layers, tests too: -Og takes a quarter off the compiler's time.
set(PITH_LITTLE_OPTIMISED $<$<CONFIG:Release>:-O1>)
if(PITH_SANITIZE)
  set(PITH_LITTLE_OPTIMISED -Og)
endif()

function(pith_add_layer layer)
  cmake_parse_arguments(arg "COLD" "" "PUBLIC;PRIVATE" ${ARGN})
  pith_layer_files(${layer} "*.cc" sources)
  list(FILTER sources EXCLUDE REGEX "_(test|bench)\\.cc$")
  list(FILTER sources EXCLUDE REGEX "/cli/main\\.cc$")
  if(NOT sources)
    set(sources ${CMAKE_CURRENT_BINARY_DIR}/empty_${layer}.cc)
    file(CONFIGURE OUTPUT ${sources} CONTENT "// Nothing yet.\n")
  endif()
  add_library(pith_${layer} STATIC ${sources})
  target_include_directories(pith_${layer} PUBLIC ${PROJECT_SOURCE_DIR}/include ${PROJECT_SOURCE_DIR}/src)
  target_link_libraries(pith_${layer} PUBLIC ${arg_PUBLIC} PRIVATE pith_warnings ${arg_PRIVATE})
  set(kind hot)
  if(arg_COLD OR (PITH_SANITIZE AND NOT layer STREQUAL "kernels"))
    set(kind cold)
    target_compile_options(pith_${layer} PRIVATE ${PITH_LITTLE_OPTIMISED})
  endif()
  get_property(first GLOBAL PROPERTY pith_first_${kind}_layer)
  if(first)
    target_precompile_headers(pith_${layer} REUSE_FROM ${first})
  else()
    target_precompile_headers(pith_${layer} PRIVATE ${PITH_COMMON_HEADERS})
    set_property(GLOBAL PROPERTY pith_first_${kind}_layer pith_${layer})
  endif()
  if(NOT layer STREQUAL "kernels")  # whose files are long, and what is inlined into their loops is measured
    pith_unity(pith_${layer})
  endif()
endfunction()
