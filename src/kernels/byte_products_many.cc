// Rows of weights in lanes (lane_rows-inl.h): an instruction multiplies a quad of each of them with the same quad of
// one row of input, and the sum of a block is whole without adding lanes.
//
// Packing costs as much as three rows of input or so. The next weights are asked for all the while, half of them while
// these are packed and half while they are multiplied. Sums are added up in the order that byte_products.h tells.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/byte_products_many.cc"
#include <hwy/foreach_target.h>  // IWYU pragma: keep
// Must come after foreach_target.h.
#include <hwy/highway.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "base/check.h"
#include "kernels/byte_products_many.h"
#include "kernels/lane_rows-inl.h"
#include "kernels/quad_products-inl.h"

HWY_BEFORE_NAMESPACE();
namespace pith::kernels {
namespace HWY_NAMESPACE {
namespace {

#if HWY_TARGET == HWY_AVX2 || HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_AVX3_DL

// Rows of input that pass by one packed chunk, and those whose sums fit the registers.
constexpr int kMostInputs = 64;
constexpr int kMostTile = kHas512 && !kHasDotProducts ? 8 : 4;
// Groups of kLanes rows of weights that may share what is loaded of the input.
constexpr int kMostGroups = kHas512 && !kHasDotProducts ? 1 : 2;

// What sums of quads may be: how far codes go, and for Q6_K what scales of 16 weights ask for.
enum class Codes { kNibbles, kFiveBits, kBytes, kQ6K };

constexpr Codes CodesOf(WeightFormat format) {
  switch (format) {
    case WeightFormat::kQ6_K:
      return Codes::kQ6K;
    case WeightFormat::kQ8_0:
      return Codes::kBytes;
    case WeightFormat::kQ5_0:
    case WeightFormat::kQ5_1:
      return kHasDotProducts ? Codes::kBytes : Codes::kFiveBits;
    case WeightFormat::kQ4_0:
    case WeightFormat::kQ4_1:
      break;
  }
  return kHasDotProducts ? Codes::kBytes : Codes::kNibbles;
}

// Those that do, of rows of such weights: with 16 registers only where sums need no second half.
constexpr int GroupsOf(WeightFormat format) {
  const Codes codes = CodesOf(format);
  return kHasDotProducts || codes == Codes::kNibbles || codes == Codes::kFiveBits ? kMostGroups : 1;
}

// What is taken off codes: those of Q8_0, which have signs, are packed without.
template <WeightFormat kFormat>
constexpr int OffsetOf() {
  if constexpr (kFormat == WeightFormat::kQ6_K)
    return BlockOfQ6K::kOffset;
  else if constexpr (kFormat == WeightFormat::kQ8_0)
    return 128;
  else
    return BlockOf<kFormat>::kOffset;
}

// Of one row of input, from a chunk's first block on.
struct InputRow {
  const int8_t* codes;
  const float* scales;
  const int16_t* sums16;
};

// sums[g * kInputs + n] of a block, of group g's rows times input n: exact. kOffset: what is taken off codes.
#if HWY_TARGET == HWY_AVX3_DL
template <Codes kCodes, int kOffset, int kGroups, int kInputs>
HWY_INLINE void SumBlock(const Packed* packed, int b, const InputRow* input, VI* sums) {
  const DI di;
  const DU8 d8;
  const auto add_quad = [&](int q, VI* to) HWY_ATTR {
    VU8 codes[kGroups];
    for (int g = 0; g < kGroups; ++g) codes[g] = hn::BitCast(d8, hn::Load(DU(), packed[g].codes[b][q]));
    for (int n = 0; n < kInputs; ++n) {
      const VI words = BroadcastQuad(input[n].codes + kWeightBlock * b + 4 * q);
      for (int g = 0; g < kGroups; ++g) to[g * kInputs + n] = MultiplyAddQuads(to[g * kInputs + n], codes[g], words);
    }
  };
  const auto begin = [&](int n, int sum16, VI* to) HWY_ATTR {
    for (int g = 0; g < kGroups; ++g) to[g * kInputs + n] = kOffset == 0 ? hn::Zero(di) : hn::Set(di, -kOffset * sum16);
  };
  if constexpr (kCodes == Codes::kQ6K) {
    for (int half = 0; half < 2; ++half) {
      VI of_half[kGroups * kInputs];
      for (int n = 0; n < kInputs; ++n) begin(n, input[n].sums16[2 * b + half], of_half);
      for (int q = 0; q < kQuads / 2; ++q) add_quad(kQuads / 2 * half + q, of_half);
      for (int i = 0; i < kGroups * kInputs; ++i) {
        const VI scaled = hn::Mul(of_half[i], hn::BitCast(di, hn::Load(DU(), packed[i / kInputs].scales16[b][half])));
        sums[i] = half == 0 ? scaled : hn::Add(sums[i], scaled);
      }
    }
  } else {
    for (int n = 0; n < kInputs; ++n) {
      const int16_t* sums16 = input[n].sums16 + 2 * b;
      begin(n, sums16[0] + sums16[1], sums);
    }
    for (int q = 0; q < kQuads; ++q) add_quad(q, sums);
  }
}
#else
template <Codes kCodes, int kOffset, int kGroups, int kInputs>
HWY_INLINE void SumBlock(const Packed* packed, int b, const InputRow* input, VI* sums) {
  constexpr int kNumSums = kGroups * kInputs;
  const DI di;
  const DI16 d16;
  const DU8 d8;
  // As many quads as 16 bits hold the sums of.
  constexpr int kTogether = kCodes == Codes::kQ6K ? 2 : kCodes == Codes::kFiveBits ? 4 : kQuads;
  const VU nibble = hn::Set(DU(), 0x0f0f0f0fU);
  for (int first = 0; first < kQuads; first += kTogether) {
    VI16 low[kNumSums], high[kNumSums];
    for (int i = 0; i < kNumSums; ++i) low[i] = high[i] = hn::Zero(d16);
    for (int q = first; q < first + kTogether; ++q) {
      VU8 of_low[kGroups], of_high[kGroups];
      for (int g = 0; g < kGroups; ++g) {
        const VU codes = hn::Load(DU(), packed[g].codes[b][q]);
        of_low[g] = hn::BitCast(d8, kCodes == Codes::kBytes ? hn::And(codes, nibble) : codes);
        of_high[g] = hn::BitCast(d8, hn::And(hn::ShiftRight<4>(codes), nibble));
      }
      for (int n = 0; n < kInputs; ++n) {
        const VI words = BroadcastQuad(input[n].codes + kWeightBlock * b + 4 * q);
        for (int g = 0; g < kGroups; ++g) {
          const int i = g * kInputs + n;
          low[i] = MultiplyAddQuads(low[i], of_low[g], words);
          if constexpr (kCodes == Codes::kBytes) high[i] = MultiplyAddQuads(high[i], of_high[g], words);
        }
      }
    }
    for (int i = 0; i < kNumSums; ++i) {
      const VI16 factor = kCodes == Codes::kQ6K
                              ? hn::BitCast(d16, hn::Load(DU(), packed[i / kInputs].scales16[b][first / (kQuads / 2)]))
                              : hn::Set(d16, int16_t{1});
      VI sum = AddPairs(low[i], factor);
      if constexpr (kCodes == Codes::kBytes) sum = hn::Add(sum, AddPairs(high[i], hn::Set(d16, int16_t{16})));
      sums[i] = first == 0 ? sum : hn::Add(sums[i], sum);
    }
  }
  for (int i = 0; i < kNumSums && kOffset != 0; ++i) {
    const int16_t* sums16 = input[i % kInputs].sums16 + 2 * b;
    if constexpr (kCodes == Codes::kQ6K) {
      const VI16 offset = hn::BitCast(d16, hn::Load(DU(), packed[i / kInputs].offsets16[b]));
      sums[i] = hn::Add(sums[i], AddPairs(offset, hn::BitCast(d16, BroadcastQuad(sums16))));
    } else {
      sums[i] = hn::Add(sums[i], hn::Set(di, -kOffset * (sums16[0] + sums16[1])));
    }
  }
}
#endif

// Running sums of one row of input and one group: chains of blocks, and of least weights.
struct Sums {
  alignas(64) float of_codes[kChains][kLanes];
  float of_leasts[kChains][kLanes];
};

// Neighbouring groups of kLanes rows of weights, and what of them is packed.
struct Chunk {
  const Packed* packed;  // of each group
  int num_blocks;
  bool is_first;  // of its rows: sums begin with it
  size_t fetch;   // bytes to ask for at each block
};

// sums: of every input, kMostGroups each.
template <Codes kCodes, int kOffset, int kGroups, int kInputs>
HWY_ATTR void AddChunk(const Chunk& chunk, const InputRow* input, Fetcher* ahead, Sums* sums) {
  const DF df;
  constexpr int kNumSums = kGroups * kInputs;
  const auto of = [sums](int i) -> Sums& { return sums[i % kInputs * kMostGroups + i / kInputs]; };
  for (int chain = 0; chain < kChains; ++chain) {
    VF sum[kNumSums];
    for (int i = 0; i < kNumSums; ++i) sum[i] = chunk.is_first ? hn::Zero(df) : hn::Load(df, of(i).of_codes[chain]);
    for (int b = chain; b < chunk.num_blocks; b += kChains) {
      ahead->Ask(chunk.fetch);
      VI block[kNumSums];
      SumBlock<kCodes, kOffset, kGroups, kInputs>(chunk.packed, b, input, block);
      for (int i = 0; i < kNumSums; ++i) {
        const VF of_input = hn::Set(df, input[i % kInputs].scales[RoundedRows::ScaleAt(b)]);
        const VF of_both = hn::Mul(hn::Load(df, chunk.packed[i / kInputs].scales[b]), of_input);
        sum[i] = hn::MulAdd(hn::ConvertTo(df, block[i]), of_both, sum[i]);
      }
    }
    for (int i = 0; i < kNumSums; ++i) hn::Store(sum[i], df, of(i).of_codes[chain]);
  }
}

template <int kGroups, int kInputs>
HWY_ATTR void AddLeasts(const Chunk& chunk, const InputRow* input, Sums* sums) {
  const DF df;
  constexpr int kNumSums = kGroups * kInputs;
  const auto of = [sums](int i) -> Sums& { return sums[i % kInputs * kMostGroups + i / kInputs]; };
  for (int chain = 0; chain < kChains; ++chain) {
    VF sum[kNumSums];
    for (int i = 0; i < kNumSums; ++i) sum[i] = chunk.is_first ? hn::Zero(df) : hn::Load(df, of(i).of_leasts[chain]);
    for (int b = chain; b < chunk.num_blocks; b += kChains) {
      for (int i = 0; i < kNumSums; ++i) {
        const VF of_input = hn::Set(df, input[i % kInputs].scales[RoundedRows::SumAt(b)]);
        sum[i] = hn::MulAdd(hn::Load(df, chunk.packed[i / kInputs].leasts[b]), of_input, sum[i]);
      }
    }
    for (int i = 0; i < kNumSums; ++i) hn::Store(sum[i], df, of(i).of_leasts[chain]);
  }
}

// Calls function(std::integral_constant<int, count>()), 1 <= count <= kMost.
template <int kMost, class Function>
HWY_INLINE void WithCount(int count, const Function& function) {
  if constexpr (kMost > 1) {
    if (count < kMost) return WithCount<kMost - 1>(count, function);
  }
  function(std::integral_constant<int, kMost>());
}

HWY_INLINE VF SumOfChains(const float (*chains)[kLanes]) {
  const DF df;
  return hn::Add(hn::Add(hn::Load(df, chains[0]), hn::Load(df, chains[1])),
                 hn::Add(hn::Load(df, chains[2]), hn::Load(df, chains[3])));
}

// The first `count` of a group's sums.
template <bool kHasLeast>
HWY_INLINE void StoreSums(const Sums& sums, int count, float* to) {
  const DF df;
  const VF sum = hn::Add(SumOfChains(sums.of_codes), kHasLeast ? SumOfChains(sums.of_leasts) : hn::Zero(df));
  if (count >= kLanes) return hn::StoreU(sum, df, to);
  alignas(64) float all[kLanes];
  hn::Store(sum, df, all);
  std::memcpy(to, all, sizeof(float) * static_cast<size_t>(count));
}

// kGroups times kLanes rows of weights, of which `count` are wanted, times rows first_input .. of the input.
template <WeightFormat kFormat, int kGroups>
HWY_ATTR void MultiplyGroups(const LaneRows* rows, int count, const RoundedRows& input, int first_input, int num_inputs,
                             float* output, size_t output_stride, const uint8_t* ahead) {
  constexpr bool kHasLeast = kFormat == WeightFormat::kQ4_1 || kFormat == WeightFormat::kQ5_1;
  const size_t bytes_per_block =
      kLanes * WeightBlockBytes(kFormat) * kWeightBlock / static_cast<size_t>(WeightsInBlock(kFormat));
  Packed packed[kGroups];
  Sums sums[kMostInputs * kMostGroups];
  const int num_tiles = (num_inputs + kMostTile - 1) / kMostTile;
  // One half while weights are packed, one while they are multiplied.
  const size_t fetch_packing = bytes_per_block / 2 / 64 * 64;
  const size_t fetch_tile = kGroups * bytes_per_block / 2 / static_cast<size_t>(num_tiles) + 63;
  for (int first = 0; first < input.num_blocks(); first += kChunk) {
    const int blocks = std::min(kChunk, input.num_blocks() - first);
    Fetcher fetcher(ahead + kGroups * static_cast<size_t>(first) * bytes_per_block,
                    kGroups * static_cast<size_t>(blocks) * bytes_per_block);
    for (int g = 0; g < kGroups; ++g) Pack<kFormat>(rows[g], first, blocks, fetch_packing, &fetcher, &packed[g]);
    const Chunk chunk = {packed, blocks, first == 0, fetch_tile};
    for (int t = 0; t < num_tiles; ++t) {
      const int begin = num_inputs * t / num_tiles, tile = num_inputs * (t + 1) / num_tiles - begin;
      InputRow of_tile[kMostTile];
      for (int n = 0; n < tile; ++n) {
        const int row = first_input + begin + n;
        of_tile[n] = {input.codes(row) + kWeightBlock * first, input.scales(row) + RoundedRows::ScaleAt(first),
                      input.sums16(row) + 2 * first};
      }
      WithCount<kMostTile>(tile, [&](auto inputs) HWY_ATTR {
        Sums* const of_sums = sums + begin * kMostGroups;
        AddChunk<CodesOf(kFormat), OffsetOf<kFormat>(), kGroups, inputs()>(chunk, of_tile, &fetcher, of_sums);
        if constexpr (kHasLeast) AddLeasts<kGroups, inputs()>(chunk, of_tile, of_sums);
      });
    }
  }
  for (int n = 0; n < num_inputs; ++n) {
    float* const to = output + static_cast<size_t>(first_input + n) * output_stride;
    for (int g = 0; g < kGroups; ++g)
      StoreSums<kHasLeast>(sums[n * kMostGroups + g], count - g * kLanes, to + g * kLanes);
  }
}

HWY_ATTR void MultiplyManyRowsImpl(const WeightRows& weights, const RoundedRows& input, float* output,
                                   size_t output_stride, const std::byte* next) {
  const auto* data = reinterpret_cast<const uint8_t*>(weights.data);
  const auto* after = reinterpret_cast<const uint8_t*>(next != nullptr ? next : weights.data);
  WithFormat(weights.format, [&](auto format) HWY_ATTR {
    constexpr int kGroups = GroupsOf(format());
    for (int i = 0; i < weights.num_rows;) {
      const int left = weights.num_rows - i;
      WithCount<kGroups>(std::min(kGroups, (left + kLanes - 1) / kLanes), [&](auto groups) HWY_ATTR {
        const int count = std::min(groups() * kLanes, left);
        LaneRows rows[groups()];
        // Where rows are missing, the last one stands in for them.
        for (int r = 0; r < groups() * kLanes; ++r)
          rows[r / kLanes].at[r % kLanes] = data + static_cast<size_t>(i + std::min(r, left - 1)) * weights.row_bytes;
        const uint8_t* ahead = count < left ? data + static_cast<size_t>(i + count) * weights.row_bytes : after;
        for (int n = 0; n < input.num_rows(); n += kMostInputs) {
          MultiplyGroups<format(), groups()>(rows, count, input, n, std::min(kMostInputs, input.num_rows() - n),
                                             output + i, output_stride, ahead);
        }
        i += count;
      });
    }
  });
}
#else
// Nobody asks for it where byte products are not fast.
void MultiplyManyRowsImpl(const WeightRows&, const RoundedRows&, float*, size_t, const std::byte*) {
  PITH_CHECK(false);
}
#endif

}  // namespace
// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace pith::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace pith::kernels {

HWY_EXPORT(MultiplyManyRowsImpl);

void MultiplyManyRows(const WeightRows& weights, const RoundedRows& input, float* output, size_t output_stride,
                      const std::byte* next) {
  HWY_DYNAMIC_DISPATCH(MultiplyManyRowsImpl)(weights, input, output, output_stride, next);
}

}  // namespace pith::kernels
#endif  // HWY_ONCE
