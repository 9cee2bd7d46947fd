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

struct CodesQ2 : GroupsOf<KvFormat::kQ2> {
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
#if PITH_GROUP_DOT
  template <bool kContiguous, int v>
  static HWY_INLINE VU8 Quad(const uint8_t* at, size_t stride) {
    const __m256i y = kContiguous ? _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at)) : EightOfEach(at, stride);
#if HWY_TARGET == HWY_AVX2
    alignas(32) static constexpr int32_t kRows[8] = {0, 2, 4, 6, 1, 3, 5, 7};
    const __m256i x = _mm256_srli_epi16(TransposeWords(y, kRows), v * 2);
#else
    alignas(64) static constexpr int32_t kRows[16] = {0, 2, 4, 6, 1, 3, 5, 7, 0, 2, 4, 6, 1, 3, 5, 7};
    // Lanes 8 to 15 are the next two bits.
    const auto low = static_cast<short>(4 * v), high = static_cast<short>(4 * v + 2);
    const __m512i x = _mm512_srlv_epi16(TransposeWords(_mm512_broadcast_i64x4(y), kRows),
                                        _mm512_inserti64x4(_mm512_set1_epi16(low), _mm256_set1_epi16(high), 1));
#endif
    return hn::And(VU8{x}, hn::Set(DU8(), static_cast<uint8_t>(kMask)));
  }
#endif
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
