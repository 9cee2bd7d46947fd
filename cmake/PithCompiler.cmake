# Warnings, sanitizers and ccache. Warnings apply to pith's own targets only:
# link pith_warnings privately.

find_program(PITH_CCACHE ccache)
if(PITH_CCACHE AND NOT CMAKE_CXX_COMPILER_LAUNCHER)
  # What precompiled headers need: ccache cannot see which macros they expand.
  set(_launcher env CCACHE_SLOPPINESS=pch_defines,time_macros ${PITH_CCACHE})
  set(CMAKE_C_COMPILER_LAUNCHER ${_launcher})
  set(CMAKE_CXX_COMPILER_LAUNCHER ${_launcher})
endif()

# GCC 12 takes operations of std::string that it has inlined for accesses of impossible sizes or beyond an object (bugs
# 105329, 105651), and says so of headers that were precompiled; clang keeps its counterparts of these warnings.
set(_misjudged "")
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  set(_misjudged -Wno-restrict -Wno-stringop-overflow -Wno-stringop-overread -Wno-array-bounds)
endif()
add_library(pith_warnings INTERFACE)
target_compile_options(pith_warnings INTERFACE
  -Wall -Wextra -Wconversion -Wno-sign-conversion ${_misjudged} -Wshadow
  $<$<BOOL:${PITH_WERROR}>:-Werror>)

if(PITH_SANITIZE)
  # GCC's flow analysis misjudges instrumented code (bug 105562); the other presets keep the warning.
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    target_compile_options(pith_warnings INTERFACE -Wno-maybe-uninitialized)
  endif()
  add_compile_options(-fsanitize=${PITH_SANITIZE} -fno-omit-frame-pointer)
  add_link_options(-fsanitize=${PITH_SANITIZE})
  if(PITH_SANITIZE MATCHES "undefined")
    add_compile_options(-fno-sanitize-recover=undefined)
    # A null pointer, one beyond its object or one that wrapped around is no harm until it is used, which ASan reports.
    # GCC asks before each access all the same: 40% of its time for a file, and of the objects' size. Clang (the preset
    # fuzz) goes on asking.
    if(PITH_SANITIZE MATCHES "address" AND CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
      add_compile_options(-fno-sanitize=null,object-size,pointer-overflow)
    endif()
  endif()
endif()
