// Products of unsigned and signed bytes, four neighbours at a time ("quad": one lane of 32 bits).
#if defined(PITH_KERNELS_QUAD_PRODUCTS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef PITH_KERNELS_QUAD_PRODUCTS_INL_H_
#undef PITH_KERNELS_QUAD_PRODUCTS_INL_H_
#else
#define PITH_KERNELS_QUAD_PRODUCTS_INL_H_
#endif

#include <hwy/highway.h>

#include <cstdint>
#include <cstring>

#if HWY_TARGET != HWY_SCALAR
HWY_BEFORE_NAMESPACE();
namespace pith::kernels {
namespace HWY_NAMESPACE {
namespace {  // each file of a target has its own

namespace hn = hwy::HWY_NAMESPACE;

using DI = hn::RebindToSigned<hn::CappedTag<float, 16>>;
using VI = hn::Vec<DI>;
using DU8 = hn::Repartition<uint8_t, DI>;
using DI16 = hn::Repartition<int16_t, DI>;
using VU8 = hn::Vec<DU8>;
using VI16 = hn::Vec<DI16>;

// What sums of quads are kept in: 32 bits, or two halves of 16 bits whose sums must fit.
#if HWY_TARGET == HWY_AVX3_DL
using VPart = VI;
#else
using VPart = VI16;
#endif

// MultiplyAddQuads: a pair of neighbours times theirs must fit 16 bits with a sign; sums wrap.
// JoinQuads: low + 256 * high, and the halves together.
#if HWY_TARGET == HWY_AVX3_DL
HWY_INLINE VPart MultiplyAddQuads(VPart sum, VU8 codes, VI words) {
  // Highway 1.0.3 detects VNNI for this target but does not name it to the compiler, which refuses the intrinsic.
  asm("vpdpbusd %2, %1, %0" : "+v"(sum.raw) : "v"(codes.raw), "v"(words.raw));
  return sum;
}
HWY_INLINE VI JoinQuads(VPart sum) { return sum; }
HWY_INLINE VI JoinQuads(VPart low, VPart high) { return hn::Add(low, hn::ShiftLeft<8>(high)); }
#else
#if HWY_TARGET == HWY_AVX2
HWY_INLINE VPart MultiplyAddQuads(VPart sum, VU8 codes, VI words) {
  // In this order: the compiler multiplies everything first and spills the sums of 16 registers.
  const __m256i pairs = _mm256_maddubs_epi16(codes.raw, words.raw);
  asm volatile("vpaddw %1, %0, %0" : "+x"(sum.raw) : "x"(pairs));
  return sum;
}
HWY_INLINE VI AddPairs(VI16 pairs, VI16 factor) { return VI{_mm256_madd_epi16(pairs.raw, factor.raw)}; }
#elif HWY_TARGET == HWY_AVX3
HWY_INLINE VPart MultiplyAddQuads(VPart sum, VU8 codes, VI words) {
  return hn::Add(sum, VI16{_mm512_maddubs_epi16(codes.raw, words.raw)});
}
HWY_INLINE VI AddPairs(VI16 pairs, VI16 factor) { return VI{_mm512_madd_epi16(pairs.raw, factor.raw)}; }
#else
HWY_INLINE VPart MultiplyAddQuads(VPart sum, VU8 codes, VI words) {
  const hn::RebindToUnsigned<DI16> du16;
  const auto both = hn::BitCast(du16, codes);
  const VI16 even = hn::BitCast(DI16(), hn::And(both, hn::Set(du16, uint16_t{0xff})));
  const VI16 odd = hn::BitCast(DI16(), hn::ShiftRight<8>(both));
  const VI16 of_words = hn::BitCast(DI16(), words);
  const VI16 pairs = hn::Mul(even, hn::ShiftRight<8>(hn::ShiftLeft<8>(of_words)));
  return hn::Add(sum, hn::Add(pairs, hn::Mul(odd, hn::ShiftRight<8>(of_words))));
}
HWY_INLINE VI AddPairs(VI16 pairs, VI16 factor) {
  const VI even = hn::ShiftRight<16>(hn::ShiftLeft<16>(hn::BitCast(DI(), pairs)));
  const VI odd = hn::ShiftRight<16>(hn::BitCast(DI(), pairs));
  const VI times = hn::ShiftRight<16>(hn::BitCast(DI(), factor));  // all factors are equal
  return hn::Mul(hn::Add(even, odd), times);
}
#endif
HWY_INLINE VI JoinQuads(VPart sum) { return AddPairs(sum, hn::Set(DI16(), int16_t{1})); }
HWY_INLINE VI JoinQuads(VPart low, VPart high) {
  return hn::Add(AddPairs(low, hn::Set(DI16(), int16_t{1})), AddPairs(high, hn::Set(DI16(), int16_t{256})));
}
#endif

// One quad, four bytes, in all lanes.
HWY_INLINE VI BroadcastQuad(const void* at) {
  int32_t word = 0;
  std::memcpy(&word, at, sizeof(word));
  return hn::Set(DI(), word);
}

}  // namespace
// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace pith::kernels
HWY_AFTER_NAMESPACE();
#endif  // HWY_TARGET != HWY_SCALAR

#endif  // per-target include guard
