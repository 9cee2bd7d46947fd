// Assertions about our own code. Never about input: that gets a Status.
#ifndef PITH_BASE_CHECK_H_
#define PITH_BASE_CHECK_H_

namespace pith {

// Says which, and ends the process: the library's only place that does (scripts/check_tidy.py looks at its symbols).
[[noreturn]] void CheckFailed(const char* file, int line, const char* condition);

}  // namespace pith

#define PITH_CHECK(condition)                              \
  do {                                                     \
    if (!(condition)) [[unlikely]]                         \
      ::pith::CheckFailed(__FILE__, __LINE__, #condition); \
  } while (false)

#ifdef NDEBUG
#define PITH_DCHECK(condition) ((void)0)
#else
#define PITH_DCHECK(condition) PITH_CHECK(condition)
#endif

#endif  // PITH_BASE_CHECK_H_
