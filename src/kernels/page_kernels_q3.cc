// Micro-kernels over pages of 3-bit groups.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/page_kernels_q3.cc"
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

// Eight bytes of the lower two bits, as in q2, and four of the highest: byte i has that of elements i, i + 4, i + 8 ..
struct CodesQ3 : GroupsOf<KvFormat::kQ3> {
  static constexpr size_t kHighPlane = 8;

  static HWY_INLINE VU Raw(const uint8_t* group, int v) {
    const DU du;
    const hn::Rebind<uint8_t, DU> d8;
    const VU element = hn::Iota(du, static_cast<uint32_t>(v * kLanes));
#if HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_AVX3_DL
    const hn::Repartition<uint64_t, decltype(d8)> d64;
    uint64_t low_word;
    std::memcpy(&low_word, group, sizeof(low_word));
    const VU bytes = hn::PromoteTo(du, hn::BitCast(d8, hn::Set(d64, low_word)));
    const VU low = hn::Shr(bytes, hn::ShiftLeft<1>(hn::ShiftRight<3>(element)));
#else
    static_assert(kLanes <= 8);
    const int first = v * kLanes;
    const VU bytes = hn::PromoteTo(du, hn::LoadU(d8, group + first % 8));
    const VU low = hn::Shr(bytes, hn::Set(du, static_cast<uint32_t>(first / 8 * 2)));
#endif
    uint32_t high_word;
    std::memcpy(&high_word, group + kHighPlane, sizeof(high_word));
    const VU place = hn::Add(hn::ShiftLeft<3>(hn::And(element, hn::Set(du, 3U))), hn::ShiftRight<2>(element));
    const VU high = hn::And(hn::Shr(hn::Set(du, high_word), place), hn::Set(du, 1U));
    return hn::Or(hn::And(low, hn::Set(du, 3U)), hn::ShiftLeft<2>(high));
  }
#if PITH_GROUP_DOT
  template <bool kContiguous, int v>
  static HWY_INLINE VU8 Quad(const uint8_t* at, size_t stride) {
    const DU8 d8;
#if HWY_TARGET == HWY_AVX2
    // Two groups in each half, whose words become low, low, next, next, high, high, high, high.
    alignas(32) static constexpr int32_t kOfTwelve[8] = {0, 3, 1, 4, 2, 5, 2, 5};
    alignas(32) static constexpr int32_t kOfSixteen[8] = {0, 4, 1, 5, 2, 6, 2, 6};
    alignas(32) static constexpr int32_t kUpperHalf[8] = {0, 0, 0, 0, 1, 1, 1, 1};
    const auto load = [](const void* from) HWY_ATTR { return _mm256_load_si256(static_cast<const __m256i*>(from)); };
    const auto pair = [&](const uint8_t* from) HWY_ATTR {
      if constexpr (kContiguous) {
        const __m256i both = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
        return _mm256_permutevar8x32_epi32(both, load(kOfTwelve));
      } else {
        const __m256i both = _mm256_loadu2_m128i(reinterpret_cast<const __m128i*>(from + stride),
                                                 reinterpret_cast<const __m128i*>(from));
        return _mm256_permutevar8x32_epi32(both, load(kOfSixteen));
      }
    };
    const __m256i first = pair(at), second = pair(at + 2 * stride);
    const __m256i transpose = hn::LoadDup128(d8, kTranspose).raw;
    const __m256i even = _mm256_shuffle_epi8(_mm256_unpacklo_epi64(first, second), transpose);
    const __m256i odd = _mm256_shuffle_epi8(_mm256_unpackhi_epi64(first, second), transpose);
    const __m256i low = _mm256_srli_epi16(_mm256_permute2x128_si256(even, odd, 0x20), v * 2);
    // The bit of lanes 0 to 3 and the next one of lanes 4 to 7 are bit 2 v here.
    const __m256i bits = _mm256_srlv_epi32(_mm256_permute2x128_si256(even, odd, 0x31), load(kUpperHalf));
    const __m256i high = v == 0 ? _mm256_slli_epi16(bits, 2) : _mm256_srli_epi16(bits, v == 0 ? 0 : 2 * v - 2);
    return hn::Or(hn::And(VU8{low}, hn::Set(d8, uint8_t{3})), hn::And(VU8{high}, hn::Set(d8, uint8_t{4})));
#else
    alignas(64) static constexpr int32_t kLowOfTwelve[16] = {0, 3, 6, 9, 1, 4, 7, 10, 0, 3, 6, 9, 1, 4, 7, 10};
    alignas(64) static constexpr int32_t kHighOfTwelve[16] = {2, 5, 8, 11, 2, 5, 8, 11, 2, 5, 8, 11, 2, 5, 8, 11};
    alignas(64) static constexpr int32_t kLowOfSixteen[16] = {0, 4, 8, 12, 1, 5, 9, 13, 0, 4, 8, 12, 1, 5, 9, 13};
    alignas(64) static constexpr int32_t kHighOfSixteen[16] = {2, 6, 10, 14, 2, 6, 10, 14, 2, 6, 10, 14, 2, 6, 10, 14};
    const __m512i x = kContiguous ? _mm512_loadu_si512(at) : SixteenOfEach(at, stride);
    // Lanes 8 to 15 are the next two bits, and of each four lanes the highest ones come from the next bit.
    const auto one = static_cast<short>(4 * v), next = static_cast<short>(4 * v + 2);
    const __m512i low = _mm512_srlv_epi16(TransposeWords(x, kContiguous ? kLowOfTwelve : kLowOfSixteen),
                                          _mm512_inserti64x4(_mm512_set1_epi16(one), _mm256_set1_epi16(next), 1));
    alignas(64) static constexpr int32_t kToBitTwo[16] = {
        4 * v - 2, 4 * v - 2, 4 * v - 2, 4 * v - 2, 4 * v - 1, 4 * v - 1, 4 * v - 1, 4 * v - 1,
        4 * v,     4 * v,     4 * v,     4 * v,     4 * v + 1, 4 * v + 1, 4 * v + 1, 4 * v + 1};
    const __m512i high = _mm512_rorv_epi32(TransposeWords(x, kContiguous ? kHighOfTwelve : kHighOfSixteen),
                                           _mm512_load_si512(kToBitTwo));
    constexpr int kFirstWhereThird = 0xe4;
    const __m512i both = _mm512_ternarylogic_epi32(low, high, _mm512_set1_epi8(3), kFirstWhereThird);
    return hn::And(VU8{both}, hn::Set(d8, static_cast<uint8_t>(kMask)));
#endif
  }
#endif
};

SourceKernels TargetKernels() { return KernelsOfGroups<CodesQ3>(); }

}  // namespace
// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace pith::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace pith::kernels {

HWY_EXPORT(TargetKernels);

SourceKernels KernelsOfQ3() { return HWY_DYNAMIC_DISPATCH(TargetKernels)(); }

}  // namespace pith::kernels
#endif  // HWY_ONCE
