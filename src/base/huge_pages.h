// Memory that is streamed through: walks of the page tables cost more than a page of keys takes to score.
#ifndef PITH_BASE_HUGE_PAGES_H_
#define PITH_BASE_HUGE_PAGES_H_

#include <cstddef>
#include <memory>
#include <new>
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace pith {

inline constexpr size_t kHugePageBytes = size_t{2} << 20;

// A wish: what lies in whole huge pages is backed by them where the system has some to give.
inline void PreferHugePages(void* at, size_t bytes) {
#if defined(__linux__)
  madvise(at, bytes, MADV_HUGEPAGE);
#else
  (void)at, (void)bytes;
#endif
}

// The opposite: in time the system would make a huge page of what little of it is in use, and its holes resident.
inline void AvoidHugePages(void* at, size_t bytes) {
#if defined(__linux__)
  madvise(at, bytes, MADV_NOHUGEPAGE);
#else
  (void)at, (void)bytes;
#endif
}

struct FreeHuge {
  void operator()(std::byte* at) const { ::operator delete(at, std::align_val_t{kHugePageBytes}); }
};
using HugeMemory = std::unique_ptr<std::byte, FreeHuge>;

inline HugeMemory AllocateHuge(size_t bytes) {
  HugeMemory memory(static_cast<std::byte*>(::operator new(bytes, std::align_val_t{kHugePageBytes})));
  PreferHugePages(memory.get(), bytes);
  return memory;
}

}  // namespace pith

#endif  // PITH_BASE_HUGE_PAGES_H_
