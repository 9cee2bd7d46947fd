// kPageEntries by the short name that sums over pages use.
#ifndef PITH_CACHE_PAGE_ENTRIES_H_
#define PITH_CACHE_PAGE_ENTRIES_H_

#include "kernels/page_layout.h"

namespace pith {

inline constexpr int kP = kPageEntries;

}  // namespace pith

#endif  // PITH_CACHE_PAGE_ENTRIES_H_
