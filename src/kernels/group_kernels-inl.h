// Micro-kernels over pages of groups (page_layout.h), compiled once per target.
//
// Codes become float32 in registers. A key channel's scale and zero make a table of its values, 16
// at most, where one vector holds it, so that a look-up is all; elsewhere they are multiplied in.
// A value's scale goes into its weight and its zero into one sum per group of channels, so that
// the inner loop adds bare codes.
#if defined(PITH_KERNELS_GROUP_KERNELS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef PITH_KERNELS_GROUP_KERNELS_INL_H_
#undef PITH_KERNELS_GROUP_KERNELS_INL_H_
#else
#define PITH_KERNELS_GROUP_KERNELS_INL_H_
#endif

#include <hwy/highway.h>

#include <algorithm>
#include <cstring>

#include "kernels/page_kernels-inl.h"

HWY_BEFORE_NAMESPACE();
namespace pith::kernels {
namespace HWY_NAMESPACE {
namespace {  // each file of a target has its own

using DU = hn::RebindToUnsigned<DF>;
using VU = hn::Vec<DU>;

inline constexpr int kGroupVectors = kGroupElements / kLanes;
// A vector holds all values of a code, and looks them up by the lowest 4 bits of each lane.
#if HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_AVX3_DL
inline constexpr bool kHasTable = kLanes == 16;
#else
inline constexpr bool kHasTable = false;
#endif

// Codes, the parameter of all that follows, says how a group's codes lie (page_kernels_q4.cc, page_kernels_q2.cc):
// beside what the table of formats says, Raw(group, v) are vector v of them, and bits above kMask are what else lies
// there.
template <KvFormat kFormat>
struct GroupsOf {
  static constexpr size_t kGroupBytes = size_t{kGroupElements} * static_cast<size_t>(InfoOf(kFormat).bits) / 8;
  static constexpr int kMask = (1 << InfoOf(kFormat).bits) - 1;
  static constexpr float kZeroUnit = 1.0f / static_cast<float>(InfoOf(kFormat).zero_units);
};

template <class Codes>
HWY_INLINE VF CodeAsFloat(const uint8_t* group, int v) {
  const VU code = hn::And(Codes::Raw(group, v), hn::Set(DU(), static_cast<uint32_t>(Codes::kMask)));
  return hn::ConvertTo(DF(), hn::BitCast(DI(), code));
}

// The values of all codes of a group: lane i is that of code i & kMask.
template <class Codes>
HWY_INLINE VF CodeTable(VF scale, VF zero) {
  const VI codes = hn::And(hn::Iota(DI(), 0), hn::Set(DI(), Codes::kMask));
  return hn::MulAdd(hn::ConvertTo(DF(), codes), scale, zero);
}

template <class Codes>
HWY_INLINE VF LookUp(VF table, const uint8_t* group, int v) {
#if HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_AVX3_DL
  return VF{_mm512_permutexvar_ps(Codes::Raw(group, v).raw, table.raw)};
#else
  (void)table, (void)group, (void)v;
  return hn::Zero(DF());
#endif
}

// `count` scale and zero bytes as float32: x = scale * code + zero. Reads and writes whole vectors.
template <class Codes>
HWY_INLINE void DecodeScales(const uint8_t* scale_bytes, const uint8_t* zero_bytes, size_t count, float* scales,
                             float* zeros) {
  const hn::Rebind<uint8_t, DU> du8;
  const hn::Rebind<int8_t, DI> di8;
  const VI lowest = hn::Set(DI(), (127 - 18) << 23);
  for (size_t i = 0; i < count; i += static_cast<size_t>(kLanes)) {
    const VI bits = hn::BitCast(DI(), hn::ShiftLeft<20>(hn::PromoteTo(DU(), hn::LoadU(du8, scale_bytes + i))));
    const VF scale = hn::BitCast(DF(), hn::Add(bits, lowest));
    const VI zero = hn::PromoteTo(DI(), hn::LoadU(di8, reinterpret_cast<const int8_t*>(zero_bytes) + i));
    hn::StoreU(scale, DF(), scales + i);
    hn::StoreU(hn::Mul(hn::Mul(hn::ConvertTo(DF(), zero), hn::Set(DF(), Codes::kZeroUnit)), scale), DF(), zeros + i);
  }
}

// A group as float32.
template <class Codes>
HWY_INLINE void DecodeGroup(const uint8_t* group, VF scale, VF zero, float* to) {
  if constexpr (kHasTable) {
    const VF table = CodeTable<Codes>(scale, zero);
    PITH_UNROLL for (int v = 0; v < kGroupVectors; ++v) {
      hn::StoreU(LookUp<Codes>(table, group, v), DF(), to + v * kLanes);
    }
  } else {
    PITH_UNROLL for (int v = 0; v < kGroupVectors; ++v) {
      hn::StoreU(hn::MulAdd(CodeAsFloat<Codes>(group, v), scale, zero), DF(), to + v * kLanes);
    }
  }
}

// Channels whose scales are decoded at once.
inline constexpr size_t kScaleChunk = 64;

// Reading whole vectors of bytes runs at most 63 bytes beyond a page's last scale: what follows lies there.
struct KeyScales {
  float scales[kScaleChunk];
  float zeros[kScaleChunk];
};

template <class Codes, int R, int NV>
HWY_INLINE void ScoreGroupColumns(const ScoreArgs& args, int first_vector, const char** prefetch,
                                  size_t prefetch_step) {
  const DF df;
  VF sums[R][NV];
  PITH_UNROLL for (int r = 0; r < R; ++r) { PITH_UNROLL for (int v = 0; v < NV; ++v) sums[r][v] = hn::Zero(df); }
  const auto* group = static_cast<const uint8_t*>(args.keys);
  const auto* scale_bytes = static_cast<const uint8_t*>(args.key_scales);
  const float* HWY_RESTRICT queries = args.queries;
  HWY_ALIGN KeyScales decoded;
  for (size_t begin = 0; begin < args.key_dim; begin += kScaleChunk) {
    const size_t count = std::min(kScaleChunk, args.key_dim - begin);
    DecodeScales<Codes>(scale_bytes + begin, scale_bytes + args.key_dim + begin, count, decoded.scales, decoded.zeros);
    for (size_t d = 0; d < count; ++d) {
      PrefetchNext(prefetch, prefetch_step);
      const VF scale = hn::Set(df, decoded.scales[d]);
      const VF zero = hn::Set(df, decoded.zeros[d]);
      VF k[NV];
      if constexpr (kHasTable) {
        const VF table = CodeTable<Codes>(scale, zero);
        PITH_UNROLL for (int v = 0; v < NV; ++v) k[v] = LookUp<Codes>(table, group, first_vector + v);
      } else {
        PITH_UNROLL for (int v = 0; v < NV; ++v) {
          k[v] = hn::MulAdd(CodeAsFloat<Codes>(group, first_vector + v), scale, zero);
        }
      }
      PITH_UNROLL for (int r = 0; r < R; ++r) {
        const VF q = hn::Set(df, queries[r]);
        PITH_UNROLL for (int v = 0; v < NV; ++v) sums[r][v] = hn::MulAdd(q, k[v], sums[r][v]);
      }
      group += Codes::kGroupBytes;
      queries += R;
    }
  }
  PITH_UNROLL for (int r = 0; r < R; ++r) {
    PITH_UNROLL for (int v = 0; v < NV; ++v) {
      hn::StoreU(sums[r][v], df, args.scores + r * kStepEntries + (first_vector + v) * kLanes);
    }
  }
}

template <class Codes, int R>
void ScoreGroups(const ScoreArgs& args) {
  constexpr int kVectors = std::min(kPageVectors, kRegisters == 32 || R >= 3 ? 2 : 4);
  const size_t step = args.prefetch.bytes / (args.key_dim * (kPageVectors / kVectors));
  const char* prefetch = reinterpret_cast<const char*>(args.prefetch.at);
  for (int v = 0; v < kPageVectors; v += kVectors) ScoreGroupColumns<Codes, R, kVectors>(args, v, &prefetch, step);
}

// Weights with the scales of one group of channels, and what its zeros add to every channel of a row.
template <int R>
struct GroupWeights {
  float weights[R][kPageEntries];
  float zero_sums[R];
};

template <class Codes, int R>
HWY_INLINE void WeighGroup(const AccumulateArgs& args, const uint8_t* scale_bytes, const uint8_t* zero_bytes,
                           GroupWeights<R>* weighed) {
  const DF df;
  HWY_ALIGN float scales[kPageEntries];
  HWY_ALIGN float zeros[kPageEntries];
  DecodeScales<Codes>(scale_bytes, zero_bytes, kPageEntries, scales, zeros);
  PITH_UNROLL for (int r = 0; r < R; ++r) {
    VF sum = hn::Zero(df);
    PITH_UNROLL for (int j = 0; j < kPageEntries; j += kLanes) {
      const VF weight = hn::LoadU(df, args.weights + r * kStepEntries + j);
      hn::StoreU(hn::Mul(weight, hn::Load(df, scales + j)), df, weighed->weights[r] + j);
      sum = hn::MulAdd(weight, hn::Load(df, zeros + j), sum);
    }
    weighed->zero_sums[r] = hn::GetLane(hn::SumOfLanes(df, sum));
  }
}

// NV vectors of one group of channels.
template <class Codes, int R, int NV>
HWY_INLINE void AccumulateGroupColumns(const AccumulateArgs& args, const GroupWeights<R>& weighed, size_t group,
                                       int first_vector, const char** prefetch, size_t prefetch_step) {
  const DF df;
  float* HWY_RESTRICT acc = args.acc + group * kGroupElements + first_vector * kLanes;
  VF sums[R][NV];
  PITH_UNROLL for (int r = 0; r < R; ++r) {
    const VF zero_sum = hn::Set(df, weighed.zero_sums[r]);
    PITH_UNROLL for (int v = 0; v < NV; ++v) {
      sums[r][v] = hn::Add(hn::LoadU(df, acc + static_cast<size_t>(r) * args.acc_stride + v * kLanes), zero_sum);
    }
  }
  const auto* codes = static_cast<const uint8_t*>(args.values) + group * Codes::kGroupBytes;
  const VF table = CodeTable<Codes>(hn::Set(df, 1.0f), hn::Zero(df));
  for (int j = 0; j < args.count; ++j) {
    PrefetchNext(prefetch, prefetch_step);
    VF code[NV];
    PITH_UNROLL for (int v = 0; v < NV; ++v) {
      code[v] = kHasTable ? LookUp<Codes>(table, codes, first_vector + v) : CodeAsFloat<Codes>(codes, first_vector + v);
    }
    PITH_UNROLL for (int r = 0; r < R; ++r) {
      const VF p = hn::Set(df, weighed.weights[r][j]);
      PITH_UNROLL for (int v = 0; v < NV; ++v) sums[r][v] = hn::MulAdd(p, code[v], sums[r][v]);
    }
    codes += args.value_stride;
  }
  PITH_UNROLL for (int r = 0; r < R; ++r) {
    PITH_UNROLL for (int v = 0; v < NV; ++v) {
      hn::StoreU(sums[r][v], df, acc + static_cast<size_t>(r) * args.acc_stride + v * kLanes);
    }
  }
}

template <class Codes, int R>
void AccumulateGroups(const AccumulateArgs& args) {
  constexpr int kVectors = std::min(kGroupVectors, kRegisters == 32 || R <= 2 ? 4 : 2);
  const size_t num_groups = (args.value_dim + kGroupElements - 1) / kGroupElements;
  const size_t rounds = num_groups * (kGroupVectors / kVectors) * static_cast<size_t>(args.count);
  const size_t step = rounds == 0 ? 0 : args.prefetch.bytes / rounds;
  const char* prefetch = reinterpret_cast<const char*>(args.prefetch.at);
  const auto* scale_bytes = static_cast<const uint8_t*>(args.value_scales);
  HWY_ALIGN GroupWeights<R> weighed;
  for (size_t group = 0; group < num_groups; ++group) {
    const uint8_t* here = scale_bytes + group * kPageEntries;
    WeighGroup<Codes, R>(args, here, here + num_groups * kPageEntries, &weighed);
    for (int v = 0; v < kGroupVectors; v += kVectors) {
      AccumulateGroupColumns<Codes, R, kVectors>(args, weighed, group, v, &prefetch, step);
    }
  }
}

template <class Codes>
void ConvertKeyGroups(const PageLayout& layout, const std::byte* page, float* keys) {
  const auto* group = reinterpret_cast<const uint8_t*>(page + layout.key_offset);
  const auto* scale_bytes = reinterpret_cast<const uint8_t*>(page + layout.key_scale_offset);
  const auto dim = static_cast<size_t>(layout.key_dim);
  HWY_ALIGN KeyScales decoded;
  for (size_t begin = 0; begin < dim; begin += kScaleChunk) {
    const size_t count = std::min(kScaleChunk, dim - begin);
    DecodeScales<Codes>(scale_bytes + begin, scale_bytes + dim + begin, count, decoded.scales, decoded.zeros);
    for (size_t d = 0; d < count; ++d) {
      DecodeGroup<Codes>(group, hn::Set(DF(), decoded.scales[d]), hn::Set(DF(), decoded.zeros[d]), keys);
      group += Codes::kGroupBytes;
      keys += kGroupElements;
    }
  }
}

template <class Codes>
void ConvertValueGroups(const PageLayout& layout, const std::byte* page, int count, float* values, size_t stride) {
  const auto num_groups = static_cast<size_t>(layout.value_groups());
  const auto* scale_bytes = reinterpret_cast<const uint8_t*>(page + layout.value_scale_offset);
  HWY_ALIGN float scales[kPageEntries];
  HWY_ALIGN float zeros[kPageEntries];
  for (size_t g = 0; g < num_groups; ++g) {
    const uint8_t* here = scale_bytes + g * kPageEntries;
    DecodeScales<Codes>(here, here + num_groups * kPageEntries, kPageEntries, scales, zeros);
    const auto* codes = reinterpret_cast<const uint8_t*>(page + layout.value_offset) + g * Codes::kGroupBytes;
    for (int j = 0; j < count; ++j) {
      DecodeGroup<Codes>(codes, hn::Set(DF(), scales[j]), hn::Set(DF(), zeros[j]),
                         values + static_cast<size_t>(j) * stride + g * kGroupElements);
      codes += layout.value_row_bytes();
    }
  }
  std::fill_n(values + static_cast<size_t>(count) * stride, static_cast<size_t>(kPageEntries - count) * stride,
              0.0f);
}

}  // namespace
// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace pith::kernels
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
