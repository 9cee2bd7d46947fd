#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/roofline.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
// Must come after foreach_target.h.
#include "hwy/highway.h"
#include "kernels/roofline.h"

HWY_BEFORE_NAMESPACE();
namespace pith::kernels {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

HWY_ATTR float ReadMemoryImpl(const float* data, size_t bytes) {
  const hn::ScalableTag<float> d;
  const size_t lanes = hn::Lanes(d), count = bytes / sizeof(float);
  auto a = hn::Zero(d), b = hn::Zero(d), c = hn::Zero(d), e = hn::Zero(d);
  for (size_t i = 0; i + 4 * lanes <= count; i += 4 * lanes) {
    a = hn::Or(a, hn::Load(d, data + i));
    b = hn::Or(b, hn::Load(d, data + i + lanes));
    c = hn::Or(c, hn::Load(d, data + i + 2 * lanes));
    e = hn::Or(e, hn::Load(d, data + i + 3 * lanes));
  }
  return hn::GetLane(hn::SumOfLanes(d, hn::Or(hn::Or(a, b), hn::Or(c, e))));
}

// Twelve chains hide the latency of two units of four cycles with room to spare.
HWY_ATTR double MultiplyAddImpl(int rounds) {
  const hn::ScalableTag<float> d;
  const float start = static_cast<float>(rounds);
  auto s0 = hn::Set(d, start), s1 = s0, s2 = s0, s3 = s0, s4 = s0, s5 = s0;
  auto s6 = s0, s7 = s0, s8 = s0, s9 = s0, s10 = s0, s11 = s0;
  const auto factor = hn::Set(d, 0.999f + start * 1e-12f);
  for (int i = 0; i < rounds; ++i) {
    s0 = hn::MulAdd(s0, factor, factor), s1 = hn::MulAdd(s1, factor, factor), s2 = hn::MulAdd(s2, factor, factor);
    s3 = hn::MulAdd(s3, factor, factor), s4 = hn::MulAdd(s4, factor, factor), s5 = hn::MulAdd(s5, factor, factor);
    s6 = hn::MulAdd(s6, factor, factor), s7 = hn::MulAdd(s7, factor, factor), s8 = hn::MulAdd(s8, factor, factor);
    s9 = hn::MulAdd(s9, factor, factor), s10 = hn::MulAdd(s10, factor, factor), s11 = hn::MulAdd(s11, factor, factor);
#if HWY_ARCH_X86 && HWY_TARGET != HWY_EMU128 && HWY_TARGET != HWY_SCALAR
    // Equal chains would be computed once, and sums that nobody reads not at all.
    __asm__ volatile(""
                     : "+x"(s0.raw), "+x"(s1.raw), "+x"(s2.raw), "+x"(s3.raw), "+x"(s4.raw), "+x"(s5.raw), "+x"(s6.raw),
                       "+x"(s7.raw), "+x"(s8.raw), "+x"(s9.raw), "+x"(s10.raw), "+x"(s11.raw));
#elif HWY_ARCH_ARM && HWY_TARGET != HWY_EMU128 && HWY_TARGET != HWY_SCALAR
    __asm__ volatile(""
                     : "+w"(s0.raw), "+w"(s1.raw), "+w"(s2.raw), "+w"(s3.raw), "+w"(s4.raw), "+w"(s5.raw), "+w"(s6.raw),
                       "+w"(s7.raw), "+w"(s8.raw), "+w"(s9.raw), "+w"(s10.raw), "+w"(s11.raw));
#endif
  }
  return 2.0 * 12.0 * static_cast<double>(hn::Lanes(d)) * rounds;
}

}  // namespace HWY_NAMESPACE
}  // namespace pith::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE

#include <cstring>

#include "kernels/attention.h"
#include "kernels/target.h"
#include "kernels/tile_products.h"
#if HWY_ARCH_X86
#include <immintrin.h>
#endif

namespace pith::kernels {

HWY_EXPORT(ReadMemoryImpl);
HWY_EXPORT(MultiplyAddImpl);

float ReadMemory(const float* data, size_t bytes) {
  ApplyForcedTarget();
  return HWY_DYNAMIC_DISPATCH(ReadMemoryImpl)(data, bytes);
}

double MultiplyAddF32(int rounds) {
  ApplyForcedTarget();
  return HWY_DYNAMIC_DISPATCH(MultiplyAddImpl)(rounds);
}

namespace {

// A product whose factors stay in the nearest cache. Three operations of the unit count for each of its products.
double DotTiles(const TileUnit& unit, int rounds) {
  constexpr int kGroups = 4;
  alignas(64) static const uint16_t left[kTileBlock * kTileDepth * kGroups] = {};
  alignas(64) static const uint32_t right[PackedWords(kTileDepth, kTileBlock) * kGroups] = {};
  alignas(64) float sums[kTileBlock * kTileBlock] = {};
  unit.begin();
  for (int i = 0; i < rounds; ++i) {
    unit.multiply({left, left, kTileDepth * kGroups, right, PackedWords(kTileDepth, kTileBlock), kGroups, sums,
                   kTileBlock, true});
  }
  unit.end();
  return 2.0 * 3.0 * kTileBlock * kTileBlock * kTileDepth * kGroups * rounds;
}

#if HWY_ARCH_X86
constexpr int kChains = 12;

__attribute__((target("avx512f,avx512bw,avx512vl,avx512bf16"))) double DotBf16Avx512(int rounds) {
  __m512 sums[kChains];
  for (__m512& sum : sums) sum = _mm512_set1_ps(static_cast<float>(rounds));
  const __m512bh one = _mm512_cvtne2ps_pbh(_mm512_set1_ps(0.5f), _mm512_set1_ps(0.25f));
  for (int i = 0; i < rounds; ++i) {
#pragma GCC unroll 12
    for (int k = 0; k < kChains; ++k) {
      sums[k] = _mm512_dpbf16_ps(sums[k], one, one);
      __asm__ volatile("" : "+v"(sums[k]));
    }
  }
  return 4.0 * kChains * 16.0 * rounds;
}

#endif

}  // namespace

double DotBf16(int rounds) {
  ApplyForcedTarget();
  if (const TileUnit* unit = GetTileUnit(); unit != nullptr) return DotTiles(*unit, rounds);
#if HWY_ARCH_X86
  const bool wide = std::strncmp(TargetName(), "AVX3", 4) == 0;
  if (wide && __builtin_cpu_supports("avx512bf16") != 0) return DotBf16Avx512(rounds);
#endif
  return 0;
}

}  // namespace pith::kernels
#endif  // HWY_ONCE
