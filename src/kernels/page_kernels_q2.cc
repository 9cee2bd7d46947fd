// Micro-kernels over pages of 2-bit groups.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/page_kernels_q2.cc"
#include <hwy/foreach_target.h>  // IWYU pragma: keep
// Must come after foreach_target.h.
#include <hwy/highway.h>

#include <cstring>

#include "kernels/group_dot-inl.h"
#include "kernels/page_kernels.h"

HWY_BEFORE_NAMESPACE();
namespace pith::kernels {
namespace HWY_NAMESPACE {
namespace {

struct CodesQ2 {
  static constexpr Source kSource = Source::kQ2;
  static constexpr size_t kGroupBytes = 8;
  static constexpr int kMask = 3;
  static constexpr float kZeroUnit = 1.0f / 8;
  static HWY_INLINE VU Raw(const uint8_t* group, int v) {
    const DU du;
    const hn::Rebind<uint8_t, DU> d8;
#if HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_AVX3_DL
    const hn::Repartition<uint64_t, decltype(d8)> d64;
    uint64_t word;
    std::memcpy(&word, group, sizeof(word));
    const VU bytes = hn::PromoteTo(du, hn::BitCast(d8, hn::Set(d64, word)));
    const VU high = hn::ShiftLeft<1>(hn::ShiftRight<3>(hn::Iota(du, 0)));  // 0 in the lower, 2 in the upper lanes
    return hn::Shr(bytes, hn::Add(high, hn::Set(du, static_cast<uint32_t>(v * 4))));
#else
    static_assert(kLanes <= 8);
    const int first = v * kLanes;
    const VU bytes = hn::PromoteTo(du, hn::LoadU(d8, group + first % 8));
    return hn::Shr(bytes, hn::Set(du, static_cast<uint32_t>(first / 8 * 2)));
#endif
  }
};

SourceKernels TargetKernels() { return KernelsOfGroups<CodesQ2>(); }

}  // namespace
// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace pith::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace pith::kernels {

HWY_EXPORT(TargetKernels);

SourceKernels KernelsOfQ2() { return HWY_DYNAMIC_DISPATCH(TargetKernels)(); }

}  // namespace pith::kernels
#endif  // HWY_ONCE
