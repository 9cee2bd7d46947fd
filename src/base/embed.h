// Files that a program carries: the assembler copies them in.
#ifndef PITH_BASE_EMBED_H_
#define PITH_BASE_EMBED_H_

// Declares symbol_begin and symbol_end around the bytes of `path`, which CMake says (and that the file depends on it).
// A zero follows them.
#define PITH_EMBED(symbol, path)                  \
  __asm__(".section .rodata\n"                    \
          ".global " #symbol "_begin\n"           \
          ".hidden " #symbol "_begin\n"           \
          ".global " #symbol "_end\n"             \
          ".hidden " #symbol "_end\n" #symbol     \
          "_begin:\n"                             \
          ".incbin \"" path "\"\n" #symbol        \
          "_end:\n"                               \
          ".byte 0\n"                             \
          ".previous\n");                         \
  extern "C" const char symbol##_begin[], symbol##_end[]

#endif  // PITH_BASE_EMBED_H_
