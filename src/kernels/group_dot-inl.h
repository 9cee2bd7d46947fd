// Micro-kernels over pages of groups in integers, for AVX2 and AVX-512 (there with VNNI if present).
//
// Keys and values meet the same sum: over "inner" elements (channels of a key, entries of a value), with a
// scale s and a zero z each, for 32 outputs ("lanes": entries of a key, channels of a value),
//
//   sum_i a_i s_i (code_i + z_i) = t * sum_i n_i code_i  +  sum_i a_i s_i (z_i + m) - t m sum_i n_i
//
// where a_i s_i is rounded to t * n_i with |n_i| <= 32512, and m is the mean code, so that the rounding errors
// meet code - m. n = 256 * high + low in two signed bytes; four inner elements of one lane ("quad") are
// multiplied at once. Codes are unpacked once for all rows. Rounding costs about 1e-5 of the largest term, well below
// the error of the format (attention_test.cc).
#ifndef PITH_GROUP_DOT
#define PITH_GROUP_DOT (HWY_TARGET == HWY_AVX2 || HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_AVX3_DL)
#endif

#if defined(PITH_KERNELS_GROUP_DOT_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef PITH_KERNELS_GROUP_DOT_INL_H_
#undef PITH_KERNELS_GROUP_DOT_INL_H_
#else
#define PITH_KERNELS_GROUP_DOT_INL_H_
#endif

#include <hwy/highway.h>

#include <cstring>
#include <utility>

#include "kernels/group_kernels-inl.h"
#include "kernels/load_up_to-inl.h"
#include "kernels/page_kernels-inl.h"
#include "kernels/quad_products-inl.h"

#if PITH_GROUP_DOT
// Saves the copies of sums that end each round.
#ifndef PITH_UNROLL_TWICE
#if defined(__clang__)
#define PITH_UNROLL_TWICE _Pragma("unroll 2")
#else
#define PITH_UNROLL_TWICE _Pragma("GCC unroll 2")
#endif
#endif

HWY_BEFORE_NAMESPACE();
namespace pith::kernels {
namespace HWY_NAMESPACE {
namespace {  // each file of a target has its own

// Inner elements that are rounded together.
inline constexpr size_t kFold = 128;
inline constexpr size_t kPlaneBytes = 2 * kFold;  // a quad has 4 low bytes, then 4 high ones
// Those that are rounded in one go, as vectors.
inline constexpr size_t kFoldStep = 16;
inline constexpr int kFoldVectors = static_cast<int>(kFoldStep) / kLanes;
inline constexpr int kQuad = 4;
inline constexpr float kLargest = 32512.0f;

// Row k of a 4 x 4 square of bytes in each 128 bits becomes column k.
alignas(16) inline constexpr uint8_t kTranspose[16] = {0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15};
// The low and then the second bytes of four words.
alignas(16) inline constexpr uint8_t kLowHigh[16] = {0, 4, 8, 12, 1, 5, 9, 13, 0, 4, 8, 12, 1, 5, 9, 13};

HWY_INLINE long long EightBytes(const uint8_t* at) {
  long long word = 0;
  std::memcpy(&word, at, sizeof(word));
  return word;
}
// Of four groups.
HWY_INLINE __m256i EightOfEach(const uint8_t* at, size_t stride) {
  return _mm256_set_epi64x(EightBytes(at + 3 * stride), EightBytes(at + 2 * stride), EightBytes(at + stride),
                           EightBytes(at));
}

// Codes, beside what group_kernels-inl.h asks of it, gives them in Quad<kContiguous, v>(at, stride): of four groups,
// `stride` bytes apart and one behind the other if kContiguous, byte k of lane i is element i + v * kLanes of group k.
// It may read 63 bytes beyond the last of them, since positions lie there.

#if HWY_TARGET == HWY_AVX2
// Words in another order, and then squares of 4 x 4 bytes transposed.
HWY_INLINE __m256i TransposeWords(__m256i words, const int32_t (&order)[8]) {
  const __m256i ordered =
      _mm256_permutevar8x32_epi32(words, _mm256_load_si256(reinterpret_cast<const __m256i*>(order)));
  return _mm256_shuffle_epi8(ordered, hn::LoadDup128(DU8(), kTranspose).raw);
}

// The first eight bytes of each 128 bits, which hold them twice.
HWY_INLINE void StoreHalves(const VU8 (&bytes)[kFoldVectors], int8_t* to) {
  const __m256i both = _mm256_blend_epi32(bytes[0].raw, bytes[1].raw, 0xcc);
  _mm256_store_si256(reinterpret_cast<__m256i*>(to), _mm256_permute4x64_epi64(both, 0xd8));
}
#else
alignas(64) inline constexpr int64_t kEvenWords[8] = {0, 2, 4, 6, 0, 2, 4, 6};

HWY_INLINE __m512i TransposeWords(__m512i words, const int32_t (&order)[16]) {
  const __m512i ordered = _mm512_permutexvar_epi32(_mm512_load_si512(order), words);
  return _mm512_shuffle_epi8(ordered, hn::LoadDup128(DU8(), kTranspose).raw);
}

HWY_INLINE void StoreHalves(const VU8 (&bytes)[kFoldVectors], int8_t* to) {
  const __m512i packed = _mm512_permutexvar_epi64(_mm512_load_si512(kEvenWords), bytes[0].raw);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_castsi512_si256(packed));
}

HWY_INLINE __m128i SixteenBytes(const uint8_t* at) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(at)); }
// Of four groups.
HWY_INLINE __m512i SixteenOfEach(const uint8_t* at, size_t stride) {
  __m512i x = _mm512_castsi128_si512(SixteenBytes(at));
  x = _mm512_inserti32x4(x, SixteenBytes(at + stride), 1);
  x = _mm512_inserti32x4(x, SixteenBytes(at + 2 * stride), 2);
  return _mm512_inserti32x4(x, SixteenBytes(at + 3 * stride), 3);
}
#endif

// Quads whose sums fit.
template <class Codes>
inline constexpr int kQuadsPerFlush = HWY_TARGET == HWY_AVX3_DL ? kFold / kQuad : 32768 / (2 * Codes::kMask * 128);

// Scales of inner elements, and zeros in codes plus the mean code. Whole vectors, as DecodeScales.
struct FoldScales {
  HWY_ALIGN float scales[kFold];
  HWY_ALIGN float offsets[kFold];
};

template <class Codes>
HWY_INLINE void DecodeFold(const uint8_t* scale_bytes, const uint8_t* zero_bytes, size_t count, FoldScales* to) {
  const hn::Rebind<uint8_t, DU> du8;
  const hn::Rebind<int8_t, DI> di8;
  const VI lowest = hn::Set(DI(), (127 - 18) << 23);
  const VF unit = hn::Set(DF(), Codes::kZeroUnit), mean = hn::Set(DF(), Codes::kMask * 0.5f);
  for (size_t i = 0; i < hwy::RoundUpTo(count, kFoldStep); i += static_cast<size_t>(kLanes)) {
    const VI bits = hn::BitCast(DI(), hn::ShiftLeft<20>(hn::PromoteTo(DU(), hn::LoadU(du8, scale_bytes + i))));
    hn::Store(hn::BitCast(DF(), hn::Add(bits, lowest)), DF(), to->scales + i);
    const VI zero = hn::PromoteTo(DI(), hn::LoadU(di8, reinterpret_cast<const int8_t*>(zero_bytes) + i));
    hn::Store(hn::MulAdd(hn::ConvertTo(DF(), zero), unit, mean), DF(), to->offsets + i);
  }
}

template <int R>
struct Folded {
  HWY_ALIGN int8_t planes[static_cast<size_t>(R) * kPlaneBytes];
  float step[R];
  float bias[R];
};

// Rounds each row's factors times their scales to two bytes each; those that fill the last step become 0.
template <class Codes, int R>
HWY_INLINE void Fold(const float* const (&factors)[R], size_t count, const FoldScales& by, Folded<R>* to) {
  const DF df;
  const DI di;
  constexpr auto kWhole = static_cast<size_t>(kLanes);
  const size_t end = hwy::RoundUpTo(count, kFoldStep);
  HWY_ALIGN float terms[R][kFold];
  VF max[R], sum[R];
  PITH_UNROLL for (int r = 0; r < R; ++r) max[r] = sum[r] = hn::Zero(df);
  for (size_t i = 0; i < end; i += kWhole) {
    const VF scale = hn::Load(df, by.scales + i), offset = hn::Load(df, by.offsets + i);
    PITH_UNROLL for (int r = 0; r < R; ++r) {
      const VF x = hn::Mul(LoadUpTo(df, factors[r], i, count), scale);
      hn::Store(x, df, terms[r] + i);
      max[r] = hn::Max(max[r], hn::Abs(x));
      sum[r] = hn::MulAdd(x, offset, sum[r]);
    }
  }
  VF inverse[R];
  PITH_UNROLL for (int r = 0; r < R; ++r) {
    const float most = hn::GetLane(hn::MaxOfLanes(df, max[r]));
    const bool zero = !(most > 1e-30f);
    inverse[r] = hn::Set(df, zero ? 0.0f : kLargest / most);
    to->step[r] = zero ? 0.0f : most / kLargest;
  }
  // Brings integers to the lowest bits. With 128 added the second byte is that of the nearest multiple of 256, and
  // the first is off by 128.
  const VF magic = hn::Set(df, 0x1.8p23f + 128.0f);
  const VI origin = hn::BitCast(di, magic);
  const VU8 pick = hn::LoadDup128(DU8(), kLowHigh);
  const VU8 sign = hn::BitCast(DU8(), hn::Set(hn::Repartition<uint64_t, DI>(), 0x80808080ULL));
  PITH_UNROLL for (int r = 0; r < R; ++r) {
    VI integers = hn::Zero(di);
    for (size_t i = 0; i < end; i += kFoldStep) {
      VU8 bytes[kFoldVectors];
      PITH_UNROLL for (int v = 0; v < kFoldVectors; ++v) {
        const VF term = hn::Load(df, terms[r] + i + static_cast<size_t>(v) * kWhole);
        const VI bits = hn::BitCast(di, hn::MulAdd(term, inverse[r], magic));
        integers = hn::Add(integers, hn::Sub(bits, origin));
        bytes[v] = hn::Xor(hn::TableLookupBytes(hn::BitCast(DU8(), bits), pick), sign);
      }
      StoreHalves(bytes, to->planes + static_cast<size_t>(r) * kPlaneBytes + 2 * i);
    }
    const VF mean = hn::Set(df, to->step[r] * (Codes::kMask * 0.5f));
    to->bias[r] = hn::GetLane(hn::SumOfLanes(df, hn::NegMulAdd(mean, hn::ConvertTo(df, integers), sum[r])));
  }
}

// Lane vectors that are summed together: bounded by two sums of 16 bits each per row.
constexpr int DotVectors(int rows) {
  if (kRegisters == 32) return std::min(kPageVectors, rows <= 6 ? 2 : 1);
  return std::min(kPageVectors, rows == 1 ? 4 : rows <= 3 ? 2 : 1);
}

constexpr int DotPasses(int rows) { return kPageVectors / DotVectors(rows); }

struct DotArgs {
  const uint8_t* codes;
  size_t stride;  // bytes from group to group
  int quads;
  const char** prefetch;
  size_t prefetch_step;  // bytes per quad and pass
};

// finish(r, v, sums) for the lane vectors of one pass.
template <class Codes, bool kContiguous, int R, int kPass, int... I, class Finish>
HWY_INLINE void DotPass(DotArgs args, const Folded<R>& folded, std::integer_sequence<int, I...>, const Finish& finish) {
  constexpr int NV = sizeof...(I);
  constexpr int kApart = kPageVectors / NV;  // vectors of the same bytes fall into one pass
  const hn::DFromV<VPart> d_part;
  const size_t stride = kContiguous ? Codes::kGroupBytes : args.stride;
  VI sums[R][NV];
  PITH_UNROLL for (int r = 0; r < R; ++r) { PITH_UNROLL for (int i = 0; i < NV; ++i) sums[r][i] = hn::Zero(DI()); }
  const int8_t* plane = folded.planes;
  for (int begin = 0; begin < args.quads; begin += kQuadsPerFlush<Codes>) {
    const int count = std::min(kQuadsPerFlush<Codes>, args.quads - begin);
    VPart low[R][NV], high[R][NV];
    PITH_UNROLL for (int r = 0; r < R; ++r) {
      PITH_UNROLL for (int i = 0; i < NV; ++i) low[r][i] = high[r][i] = hn::Zero(d_part);
    }
    PITH_UNROLL_TWICE for (int q = 0; q < count; ++q) {
      PrefetchNext(args.prefetch, args.prefetch_step);
      const VU8 codes[NV] = {Codes::template Quad<kContiguous, kPass + I * kApart>(args.codes, stride)...};
      PITH_UNROLL for (int r = 0; r < R; ++r) {
        const VI low_word = BroadcastQuad(plane + static_cast<size_t>(r) * kPlaneBytes);
        const VI high_word = BroadcastQuad(plane + static_cast<size_t>(r) * kPlaneBytes + 4);
        PITH_UNROLL for (int i = 0; i < NV; ++i) {
          low[r][i] = MultiplyAddQuads(low[r][i], codes[i], low_word);
          high[r][i] = MultiplyAddQuads(high[r][i], codes[i], high_word);
        }
      }
      args.codes += kQuad * stride;
      plane += 2 * kQuad;
    }
    PITH_UNROLL for (int r = 0; r < R; ++r) {
      PITH_UNROLL for (int i = 0; i < NV; ++i) sums[r][i] = hn::Add(sums[r][i], JoinQuads(low[r][i], high[r][i]));
    }
  }
  PITH_UNROLL for (int r = 0; r < R; ++r) {
    PITH_UNROLL for (int i = 0; i < NV; ++i) finish(r, kPass + i * kApart, sums[r][i]);
  }
}

template <class Codes, bool kContiguous, int R, class Finish>
HWY_INLINE void Dot(DotArgs args, const Folded<R>& folded, const Finish& finish) {
  const auto passes = [&]<int... kPass>(std::integer_sequence<int, kPass...>) HWY_ATTR {
    (DotPass<Codes, kContiguous, R, kPass>(args, folded, std::make_integer_sequence<int, DotVectors(R)>(), finish),
     ...);
  };
  passes(std::make_integer_sequence<int, DotPasses(R)>());
}

template <class Codes, int R>
void ScoreGroupsDot(const ScoreArgs& args) {
  const DF df;
  const auto* codes = static_cast<const uint8_t*>(args.keys);
  const auto* scale_bytes = static_cast<const uint8_t*>(args.key_scales);
  const size_t step = args.prefetch.bytes / (static_cast<size_t>(DotPasses(R)) * ((args.key_dim + kQuad - 1) / kQuad));
  const char* prefetch = reinterpret_cast<const char*>(args.prefetch.at);
  FoldScales scales;
  Folded<R> folded;
  for (size_t begin = 0; begin < args.key_dim; begin += kFold) {
    const size_t count = std::min(kFold, args.key_dim - begin);
    DecodeFold<Codes>(scale_bytes + begin, scale_bytes + args.key_dim + begin, count, &scales);
    const float* factors[R];
    for (int r = 0; r < R; ++r) factors[r] = args.query_rows[r] + begin;
    Fold<Codes>(factors, count, scales, &folded);
    const int quads = static_cast<int>((count + kQuad - 1) / kQuad);
    Dot<Codes, true, R>({codes, 0, quads, &prefetch, step}, folded, [&](int r, int v, VI sums) HWY_ATTR {
      float* to = args.scores + r * kStepEntries + v * kLanes;
      const VF unit = hn::Set(df, folded.step[r] * args.query_scale);
      const VF bias = hn::Set(df, folded.bias[r] * args.query_scale);
      const VF before = begin == 0 ? bias : hn::Add(bias, hn::LoadU(df, to));
      hn::StoreU(hn::MulAdd(hn::ConvertTo(df, sums), unit, before), df, to);
    });
    codes += count * Codes::kGroupBytes;
  }
}

template <class Codes, int R>
void AccumulateGroupsDot(const AccumulateArgs& args) {
  const DF df;
  constexpr int kQuads = kPageEntries / kQuad;
  const size_t num_groups = (args.value_dim + kGroupElements - 1) / kGroupElements;
  const auto* codes = static_cast<const uint8_t*>(args.values);
  const auto* scale_bytes = static_cast<const uint8_t*>(args.value_scales);
  const size_t step = args.prefetch.bytes / (static_cast<size_t>(DotPasses(R) * kQuads) * num_groups);
  const char* prefetch = reinterpret_cast<const char*>(args.prefetch.at);
  FoldScales scales;
  Folded<R> folded;
  const float* factors[R];
  for (int r = 0; r < R; ++r) factors[r] = args.weights + r * kStepEntries;
  for (size_t group = 0; group < num_groups; ++group) {
    const uint8_t* here = scale_bytes + group * kPageEntries;
    DecodeFold<Codes>(here, here + num_groups * kPageEntries, kPageEntries, &scales);
    Fold<Codes>(factors, kPageEntries, scales, &folded);
    float* acc = args.acc + group * kGroupElements;
    Dot<Codes, false, R>({codes, args.value_stride, kQuads, &prefetch, step}, folded,
                         [&](int r, int v, VI sums) HWY_ATTR {
                           float* to = acc + static_cast<size_t>(r) * args.acc_stride + v * kLanes;
                           const VF before = hn::Add(hn::LoadU(df, to), hn::Set(df, folded.bias[r]));
                           hn::StoreU(hn::MulAdd(hn::ConvertTo(df, sums), hn::Set(df, folded.step[r]), before), df, to);
                         });
    codes += Codes::kGroupBytes;
  }
}

}  // namespace
// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace pith::kernels
HWY_AFTER_NAMESPACE();
#endif  // PITH_GROUP_DOT

HWY_BEFORE_NAMESPACE();
namespace pith::kernels {
namespace HWY_NAMESPACE {
namespace {

template <class Codes, int... R>
SourceKernels KernelsOfGroupRows(std::integer_sequence<int, R...>) {
  SourceKernels kernels = {};
#if PITH_GROUP_DOT
  ((kernels.score[R + 1] = &ScoreGroupsDot<Codes, R + 1>), ...);
  ((kernels.accumulate[R + 1] = &AccumulateGroupsDot<Codes, R + 1>), ...);
#else
  ((kernels.score[R + 1] = &ScoreGroups<Codes, R + 1>), ...);
  ((kernels.accumulate[R + 1] = &AccumulateGroups<Codes, R + 1>), ...);
#endif
  kernels.convert_keys = &ConvertKeyGroups<Codes>;
  kernels.convert_values = &ConvertValueGroups<Codes>;
  return kernels;
}

// All kernels of a source whose elements lie in groups, in integers where the target has them.
template <class Codes>
SourceKernels KernelsOfGroups() {
  return KernelsOfGroupRows<Codes>(std::make_integer_sequence<int, kBlockRows>());
}

}  // namespace
// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace pith::kernels
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
