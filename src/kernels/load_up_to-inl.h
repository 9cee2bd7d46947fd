// Loads that end where an array does.
#if defined(PITH_KERNELS_LOAD_UP_TO_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef PITH_KERNELS_LOAD_UP_TO_INL_H_
#undef PITH_KERNELS_LOAD_UP_TO_INL_H_
#else
#define PITH_KERNELS_LOAD_UP_TO_INL_H_
#endif

#include <hwy/highway.h>

#include <cstddef>
#include <cstring>

HWY_BEFORE_NAMESPACE();
namespace pith::kernels {
namespace HWY_NAMESPACE {
namespace {  // each file of a target has its own

namespace hn = hwy::HWY_NAMESPACE;

// Elements from `at` on; those from `count` on are 0.
template <class D>
HWY_INLINE hn::Vec<D> LoadUpTo(D d, const float* from, size_t at, size_t count) {
  const size_t lanes = hn::Lanes(d);
  if (at + lanes <= count) return hn::LoadU(d, from + at);
  if (at >= count) return hn::Zero(d);
  HWY_ALIGN float tail[HWY_MAX_BYTES / sizeof(float)] = {};
  std::memcpy(tail, from + at, (count - at) * sizeof(float));
  return hn::Load(d, tail);
}

}  // namespace
// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace pith::kernels
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
