// Micro-kernels over pages of 4-bit groups.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/page_kernels_q4.cc"
#include <hwy/foreach_target.h>  // IWYU pragma: keep
// Must come after foreach_target.h.
#include <hwy/highway.h>

#include "kernels/group_dot-inl.h"
#include "kernels/page_kernels.h"

HWY_BEFORE_NAMESPACE();
namespace pith::kernels {
namespace HWY_NAMESPACE {
namespace {

struct CodesQ4 {
  static constexpr Source kSource = Source::kQ4;
  static constexpr size_t kGroupBytes = 16;
  static constexpr int kMask = 15;
  static constexpr float kZeroUnit = 1.0f / 2;
  static HWY_INLINE VU Raw(const uint8_t* group, int v) {
    const hn::Rebind<uint8_t, DU> d8;
    const int first = v * kLanes;
    const VU bytes = hn::PromoteTo(DU(), hn::LoadU(d8, group + first % 16));
    return first < 16 ? bytes : hn::ShiftRight<4>(bytes);
  }
};

SourceKernels TargetKernels() { return KernelsOfGroups<CodesQ4>(); }

}  // namespace
// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace pith::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace pith::kernels {

HWY_EXPORT(TargetKernels);

SourceKernels KernelsOfQ4() { return HWY_DYNAMIC_DISPATCH(TargetKernels)(); }

}  // namespace pith::kernels
#endif  // HWY_ONCE
