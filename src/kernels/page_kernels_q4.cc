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

struct CodesQ4 : GroupsOf<KvFormat::kQ4> {
  static HWY_INLINE VU Raw(const uint8_t* group, int v) {
    const hn::Rebind<uint8_t, DU> d8;
    const int first = v * kLanes;
    const VU bytes = hn::PromoteTo(DU(), hn::LoadU(d8, group + first % 16));
    return first < 16 ? bytes : hn::ShiftRight<4>(bytes);
  }
#if PITH_GROUP_DOT
  template <bool kContiguous, int v>
  static HWY_INLINE VU8 Quad(const uint8_t* at, size_t stride) {
#if HWY_TARGET == HWY_AVX2
    alignas(32) static constexpr int32_t kRows[8] = {0, 2, 4, 6, 1, 3, 5, 7};
    alignas(32) static constexpr int32_t kRowsOfUnpacked[8] = {0, 4, 2, 6, 1, 5, 3, 7};
    __m256i x;
    if constexpr (kContiguous) {
      const __m256i a = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at));
      const __m256i b = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at + 32));
      x = TransposeWords(v % 2 == 0 ? _mm256_unpacklo_epi64(a, b) : _mm256_unpackhi_epi64(a, b), kRowsOfUnpacked);
    } else {
      x = TransposeWords(EightOfEach(at + v % 2 * 8, stride), kRows);
    }
    x = _mm256_srli_epi16(x, v / 2 * 4);
#else
    alignas(64) static constexpr int32_t kRows[16] = {0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15};
    __m512i x = TransposeWords(kContiguous ? _mm512_loadu_si512(at) : SixteenOfEach(at, stride), kRows);
    if (v == 1) x = _mm512_srli_epi16(x, 4);
#endif
    return hn::And(VU8{x}, hn::Set(DU8(), static_cast<uint8_t>(kMask)));
  }
#endif
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
