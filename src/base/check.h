// Assertions about our own code. Never about input: that gets a Status.
#ifndef PITH_BASE_CHECK_H_
#define PITH_BASE_CHECK_H_

#include <cstdio>
#include <cstdlib>

#define PITH_CHECK(condition)                                              \
  do {                                                                     \
    if (!(condition)) [[unlikely]] {                                       \
      std::fprintf(stderr, "%s:%d: broken invariant: %s\n", __FILE__, __LINE__, #condition); \
      std::abort();                                                        \
    }                                                                      \
  } while (false)

#ifdef NDEBUG
#define PITH_DCHECK(condition) ((void)0)
#else
#define PITH_DCHECK(condition) PITH_CHECK(condition)
#endif

#endif  // PITH_BASE_CHECK_H_
