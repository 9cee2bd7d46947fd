# PITH_SIMD, the SIMD targets that kernels are compiled for, as definitions for Highway in PITH_SIMD_TARGETS:
#   all      every one of this architecture; the best that a processor has is picked when the program starts
#   machine  the best that this machine has, and the one for any processor: a third of the compilers' time
#   plain    the one for any processor alone
set(PITH_SIMD all CACHE STRING "SIMD targets to compile kernels for: all, machine or plain")
set_property(CACHE PITH_SIMD PROPERTY STRINGS all machine plain)

# AVX3_DL has dot products of bytes. Arrays of vectors are not allowed for the sizeless types of SVE and RVV;
# SSSE3-only machines get the fallback without SSE.
set(_disabled HWY_SVE HWY_SVE2 HWY_SVE_256 HWY_SVE2_128 HWY_RVV HWY_SSSE3)
set(_x86 HWY_AVX3_DL HWY_AVX3 HWY_AVX2 HWY_SSE4)
if(NOT PITH_SIMD MATCHES "^(all|machine|plain)$")
  message(FATAL_ERROR "PITH_SIMD is 'all', 'machine' or 'plain', not '${PITH_SIMD}'.")
elseif(PITH_SIMD STREQUAL "plain")
  list(APPEND _disabled ${_x86})
elseif(PITH_SIMD STREQUAL "machine" AND NOT CMAKE_CROSSCOMPILING AND CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64)$")
  # Asked of Highway, whose own answer counts when the program runs.
  set(_test ${PROJECT_BINARY_DIR}/simd_of_machine.cc)
  file(CONFIGURE OUTPUT ${_test} CONTENT "#include <hwy/targets.h>
#include <cstdio>
int main() {
  const int64_t targets = hwy::SupportedTargets();
  std::puts(targets & HWY_AVX3_DL ? \"HWY_AVX3_DL\" : targets & HWY_AVX3 ? \"HWY_AVX3\" : targets & HWY_AVX2 ? \"HWY_AVX2\"
            : targets & HWY_SSE4 ? \"HWY_SSE4\" : \"HWY_EMU128\");
}
")
  # libllama's folder is named after the processor, too: a tree that moves to another machine is asked again.
  if(NOT DEFINED PITH_SIMD_OF_MACHINE OR NOT PITH_SIMD_ASKED_FOR STREQUAL _pith_llama_prefix)
    try_run(_ran _compiled ${PROJECT_BINARY_DIR}/simd ${_test}
      COMPILE_DEFINITIONS -DHWY_WANT_AVX3_DL LINK_LIBRARIES hwy::hwy RUN_OUTPUT_VARIABLE _best)
    string(STRIP "${_best}" _best)
    if(NOT _compiled OR NOT _ran EQUAL 0)
      set(_best unknown)
    endif()
    set(PITH_SIMD_OF_MACHINE ${_best} CACHE INTERNAL "The best SIMD target of this machine")
    set(PITH_SIMD_ASKED_FOR ${_pith_llama_prefix} CACHE INTERNAL "libllama's folder at that time")
  endif()
  if(NOT PITH_SIMD_OF_MACHINE STREQUAL "unknown")
    list(REMOVE_ITEM _x86 ${PITH_SIMD_OF_MACHINE})
    list(APPEND _disabled ${_x86})
  endif()
  message(STATUS "SIMD targets: ${PITH_SIMD_OF_MACHINE} and the one for any processor")
endif()
list(JOIN _disabled "|" _disabled)
set(PITH_SIMD_TARGETS HWY_WANT_AVX3_DL "HWY_DISABLED_TARGETS=(${_disabled})")
