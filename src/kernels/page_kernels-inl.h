// Vector helpers and micro-kernels of page_kernels*.cc, compiled once per target.
#if defined(PITH_KERNELS_PAGE_KERNELS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef PITH_KERNELS_PAGE_KERNELS_INL_H_
#undef PITH_KERNELS_PAGE_KERNELS_INL_H_
#else
#define PITH_KERNELS_PAGE_KERNELS_INL_H_
#endif

#include <hwy/highway.h>

#include <algorithm>
#include <utility>

#include "kernels/page_kernels.h"

// Arrays of accumulators must become registers: every loop over them has
// constant bounds and is unrolled.
#ifndef PITH_UNROLL
#if defined(__clang__)
#define PITH_UNROLL _Pragma("unroll")
#else
#define PITH_UNROLL _Pragma("GCC unroll 32")
#endif
#endif

HWY_BEFORE_NAMESPACE();
namespace pith::kernels {
namespace HWY_NAMESPACE {
namespace {  // each file of a target has its own
namespace hn = hwy::HWY_NAMESPACE;

using DF = hn::CappedTag<float, 16>;
using DI = hn::RebindToSigned<DF>;
using VF = hn::Vec<DF>;
using VI = hn::Vec<DI>;

inline constexpr int kLanes = static_cast<int>(hn::MaxLanes(DF()));
inline constexpr int kPageVectors = kPageEntries / kLanes;
static_assert(kPageEntries % kLanes == 0);

// Rows of a block: bounded by the registers that two vectors per row leave.
#if HWY_TARGET == HWY_AVX2 || HWY_TARGET == HWY_SSE4 || HWY_TARGET == HWY_SSSE3 || HWY_TARGET == HWY_SCALAR || \
    HWY_TARGET == HWY_EMU128
inline constexpr int kRegisters = 16;
#else
inline constexpr int kRegisters = 32;
#endif
inline constexpr int kBlockRows = kRegisters == 32 ? 12 : 6;

// Fetches the next `bytes` and steps beyond them. Processors drop a prefetch that finds no free miss buffer, so
// kernels ask for a line or two at a time, spread over all that they compute. Into the L2 cache, where the
// first level's few miss buffers are not all there is.
HWY_INLINE void PrefetchNext(const char** at, size_t bytes) {
  for (size_t line = 0; line < bytes; line += 64) __builtin_prefetch(*at + line, 0, 2);
  *at += bytes;
}

// 2^x with relative error below 2e-7 for x <= 0; 0 below -126, so also for -inf.
HWY_INLINE VF Exp2(VF x) {
  const DF df;
  const DI di;
  const VF low = hn::Set(df, -126.0f);
  const auto in_range = hn::Ge(x, low);
  const VF t = hn::Max(x, low);
  // The nearest integer, in the lowest bits.
  const VF magic = hn::Set(df, 0x1.8p23f);
  const VF n = hn::Add(t, magic);
  const VF f = hn::Sub(t, hn::Sub(n, magic));
  // Remez fit of degree 5 on [-1/2, 1/2], relative error 7.5e-8.
  VF p = hn::Set(df, 1.3276472454890609e-3f);
  p = hn::MulAdd(p, f, hn::Set(df, 9.675540961325169e-3f));
  p = hn::MulAdd(p, f, hn::Set(df, 5.550713092088699e-2f));
  p = hn::MulAdd(p, f, hn::Set(df, 2.4022120237350464e-1f));
  p = hn::MulAdd(p, f, hn::Set(df, 6.931469440460205e-1f));
  p = hn::MulAdd(p, f, hn::Set(df, 1.0000001192092896f));
  const VI exponent = hn::ShiftLeft<23>(hn::BitCast(di, n));
  const VF result = hn::BitCast(df, hn::Add(hn::BitCast(di, p), exponent));
  return hn::IfThenElseZero(in_range, result);
}

// tanh with absolute error below 2e-7: an odd polynomial near 0, where the
// exponential form would cancel.
HWY_INLINE VF Tanh(VF x) {
  const DF df;
  const VF magnitude = hn::Abs(x);
  const VF z = hn::Mul(x, x);
  VF p = hn::Set(df, -6.09634630382061e-3f);
  p = hn::MulAdd(p, z, hn::Set(df, 2.0996831357479095e-2f));
  p = hn::MulAdd(p, z, hn::Set(df, -5.3850799798965454e-2f));
  p = hn::MulAdd(p, z, hn::Set(df, 1.333276778459549e-1f));
  p = hn::MulAdd(p, z, hn::Set(df, -3.33333283662796e-1f));
  const VF near = hn::MulAdd(hn::Mul(x, z), p, x);
  const VF one = hn::Set(df, 1.0f);
  const VF e = Exp2(hn::Mul(magnitude, hn::Set(df, -2.8853900817779268f)));  // exp(-2|x|)
  const VF far = hn::CopySign(hn::Div(hn::Sub(one, e), hn::Add(one, e)), x);
  return hn::IfThenElse(hn::Lt(magnitude, hn::Set(df, 0.625f)), near, far);
}

// Vectors of one page that are computed together, and the parts into which the
// channels are split, so that enough sums are in flight to hide the latency of an FMA.
constexpr int ScoreVectors(int rows) {
  if (kRegisters == 32) return std::min(kPageVectors, rows <= 4 ? 4 : 2);
  return std::min(kPageVectors, rows <= 3 ? 4 : 2);
}
constexpr int ScoreParts(int rows) {
  const int sums = rows * ScoreVectors(rows);
  return sums >= 8 ? 1 : sums >= 4 ? 2 : 4;
}

template <class Load, int R, int NV, int DU>
HWY_INLINE void ScoreColumns(const ScoreArgs& args, int column, const char** prefetch, size_t prefetch_step) {
  const DF df;
  using T = typename Load::T;
  VF sums[DU][R][NV];
  PITH_UNROLL for (int u = 0; u < DU; ++u) {
    PITH_UNROLL for (int r = 0; r < R; ++r) { PITH_UNROLL for (int v = 0; v < NV; ++v) sums[u][r][v] = hn::Zero(df); }
  }
  const T* HWY_RESTRICT keys = static_cast<const T*>(args.keys) + column;
  const float* HWY_RESTRICT queries = args.queries;
  const auto channel = [&](VF(&s)[R][NV]) HWY_ATTR {
    // Whichever side is smaller waits in registers.
    if (NV <= R) {
      VF k[NV];
      PITH_UNROLL for (int v = 0; v < NV; ++v) k[v] = Load::Load(keys + v * kLanes);
      PITH_UNROLL for (int r = 0; r < R; ++r) {
        const VF q = hn::Set(df, queries[r]);
        PITH_UNROLL for (int v = 0; v < NV; ++v) s[r][v] = hn::MulAdd(q, k[v], s[r][v]);
      }
    } else {
      VF q[R];
      PITH_UNROLL for (int r = 0; r < R; ++r) q[r] = hn::Set(df, queries[r]);
      PITH_UNROLL for (int v = 0; v < NV; ++v) {
        const VF k = Load::Load(keys + v * kLanes);
        PITH_UNROLL for (int r = 0; r < R; ++r) s[r][v] = hn::MulAdd(q[r], k, s[r][v]);
      }
    }
    keys += kPageEntries;
    queries += R;
  };
  size_t d = 0;
  for (; d + DU <= args.key_dim; d += DU) {
    PITH_UNROLL for (int u = 0; u < DU; ++u) {
      if (Load::kSource != Source::kF32) PrefetchNext(prefetch, prefetch_step);
      channel(sums[u]);
    }
  }
  for (; d < args.key_dim; ++d) channel(sums[0]);
  PITH_UNROLL for (int r = 0; r < R; ++r) {
    PITH_UNROLL for (int v = 0; v < NV; ++v) {
      VF sum = sums[0][r][v];
      PITH_UNROLL for (int u = 1; u < DU; ++u) sum = hn::Add(sum, sums[u][r][v]);
      if (HasEntryScales(Load::kSource)) {
        sum = hn::Mul(sum, hn::LoadU(df, static_cast<const float*>(args.key_scales) + column + v * kLanes));
      }
      hn::StoreU(sum, df, args.scores + r * kStepEntries + column + v * kLanes);
    }
  }
}

template <class Load, int R>
void ScorePage(const ScoreArgs& args) {
  constexpr int kVectors = ScoreVectors(R);
  const size_t step = args.prefetch.bytes / (args.key_dim * (kPageVectors / kVectors));
  const char* prefetch = reinterpret_cast<const char*>(args.prefetch.at);
  for (int v = 0; v < kPageVectors; v += kVectors) {
    ScoreColumns<Load, R, kVectors, ScoreParts(R)>(args, v * kLanes, &prefetch, step);
  }
}

// Vectors of a value row that are accumulated together.
constexpr int AccumulateVectors(int rows) {
  if (kRegisters == 32) return rows <= 3 ? 8 : rows <= 6 ? 4 : 2;
  return rows <= 1 ? 8 : rows <= 3 ? 4 : 2;
}

template <class Load, int R, int CV>
HWY_INLINE void AccumulateColumns(const AccumulateArgs& args, size_t column, const char** prefetch,
                                  size_t prefetch_step) {
  const DF df;
  using T = typename Load::T;
  VF sums[R][CV];
  float* HWY_RESTRICT acc = args.acc + column;
  const size_t acc_stride = args.acc_stride;
  PITH_UNROLL for (int r = 0; r < R; ++r) {
    PITH_UNROLL for (int c = 0; c < CV; ++c) {
      sums[r][c] = hn::LoadU(df, acc + static_cast<size_t>(r) * acc_stride + c * kLanes);
    }
  }
  const T* HWY_RESTRICT values = static_cast<const T*>(args.values) + column;
  const float* HWY_RESTRICT weights = args.weights;
  for (int j = 0; j < args.count; ++j) {
    if (Load::kSource != Source::kF32) PrefetchNext(prefetch, prefetch_step);
    if (CV <= R) {
      VF v[CV];
      PITH_UNROLL for (int c = 0; c < CV; ++c) v[c] = Load::Load(values + c * kLanes);
      PITH_UNROLL for (int r = 0; r < R; ++r) {
        const VF p = hn::Set(df, weights[r * kStepEntries + j]);
        PITH_UNROLL for (int c = 0; c < CV; ++c) sums[r][c] = hn::MulAdd(p, v[c], sums[r][c]);
      }
    } else {
      VF p[R];
      PITH_UNROLL for (int r = 0; r < R; ++r) p[r] = hn::Set(df, weights[r * kStepEntries + j]);
      PITH_UNROLL for (int c = 0; c < CV; ++c) {
        const VF v = Load::Load(values + c * kLanes);
        PITH_UNROLL for (int r = 0; r < R; ++r) sums[r][c] = hn::MulAdd(p[r], v, sums[r][c]);
      }
    }
    values += args.value_stride;
  }
  PITH_UNROLL for (int r = 0; r < R; ++r) {
    PITH_UNROLL for (int c = 0; c < CV; ++c) {
      hn::StoreU(sums[r][c], df, acc + static_cast<size_t>(r) * acc_stride + c * kLanes);
    }
  }
}

template <class Load, int R>
void AccumulatePage(const AccumulateArgs& args) {
  // The widest columns first, then what is left in halves.
  size_t column = 0;
  constexpr int kWidest = AccumulateVectors(R);
  constexpr size_t kWidth = size_t{kWidest} * kLanes;
  const size_t width = (args.value_dim + kLanes - 1) / kLanes * kLanes;
  const size_t passes = width / kWidth + static_cast<size_t>(hwy::PopCount(width % kWidth / kLanes));
  const char* prefetch = reinterpret_cast<const char*>(args.prefetch.at);
  const size_t step = args.count == 0 ? 0 : args.prefetch.bytes / (passes * static_cast<size_t>(args.count));
  for (; column + kWidth <= width; column += kWidth) AccumulateColumns<Load, R, kWidest>(args, column, &prefetch, step);
  const auto rest = (width - column) / kLanes;
  if constexpr (kWidest > 4) {
    if ((rest & 4) != 0) {
      AccumulateColumns<Load, R, 4>(args, column, &prefetch, step);
      column += 4 * kLanes;
    }
  }
  if constexpr (kWidest > 2) {
    if ((rest & 2) != 0) {
      AccumulateColumns<Load, R, 2>(args, column, &prefetch, step);
      column += 2 * kLanes;
    }
  }
  if ((rest & 1) != 0) AccumulateColumns<Load, R, 1>(args, column, &prefetch, step);
}

template <class Load>
void ConvertKeysFrom(const PageLayout& layout, const std::byte* page, float* keys) {
  const DF df;
  const auto* from = reinterpret_cast<const typename Load::T*>(page + layout.key_offset);
  const auto* scales = reinterpret_cast<const float*>(page + layout.key_scale_offset);
  for (int d = 0; d < layout.key_dim; ++d) {
    PITH_UNROLL for (int j = 0; j < kPageEntries; j += kLanes) {
      VF k = Load::Load(from + j);
      if (HasEntryScales(Load::kSource)) k = hn::Mul(k, hn::LoadU(df, scales + j));
      hn::StoreU(k, df, keys + j);
    }
    from += kPageEntries;
    keys += kPageEntries;
  }
}

template <class Load>
void ConvertValuesFrom(const PageLayout& layout, const std::byte* page, int count, float* values, size_t stride) {
  const DF df;
  const auto* from = reinterpret_cast<const typename Load::T*>(page + layout.value_offset);
  const auto* scales = reinterpret_cast<const float*>(page + layout.value_scale_offset);
  const int dim = layout.value_dim;
  for (int j = 0; j < count; ++j) {
    const VF scale = hn::Set(df, HasEntryScales(Load::kSource) ? scales[j] : 1.0f);
    // Columns beyond Dv get whatever follows; nobody reads the sums that come of them.
    for (int c = 0; c < dim; c += kLanes) {
      VF v = Load::Load(from + c);
      if (HasEntryScales(Load::kSource)) v = hn::Mul(v, scale);
      hn::StoreU(v, df, values + c);
    }
    from += dim;
    values += stride;
  }
  std::fill_n(values, static_cast<size_t>(kPageEntries - count) * stride, 0.0f);
}

template <class Load, int... R>
SourceKernels KernelsOfRows(std::integer_sequence<int, R...>) {
  SourceKernels kernels = {};
  ((kernels.score[R + 1] = &ScorePage<Load, R + 1>), ...);
  ((kernels.accumulate[R + 1] = &AccumulatePage<Load, R + 1>), ...);
  if constexpr (Load::kSource != Source::kF32) {
    kernels.convert_keys = &ConvertKeysFrom<Load>;
    kernels.convert_values = &ConvertValuesFrom<Load>;
  }
  return kernels;
}

// All kernels of a source whose elements lie one by one. Load: how one becomes float32, with kSource and T.
template <class Load>
SourceKernels KernelsOf() {
  return KernelsOfRows<Load>(std::make_integer_sequence<int, kBlockRows>());
}

}  // namespace
// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace pith::kernels
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
