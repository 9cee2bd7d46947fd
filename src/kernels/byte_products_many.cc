// Rows of weights in lanes.
//
// A lane of 32 bits holds four neighbouring codes ("quad") of one row of weights, so that an instruction multiplies
// them with the same quad of one row of input, and the sum of a block is whole without adding lanes:
//
//   weights, packed      row 0   row 1   row 2  ...        for each block: 8 quads, then scales,
//     quad 0            [c0-c3] [c0-c3] [c0-c3]            kLanes rows at a time, kChunk blocks at a time:
//     quad 1            [c4-c7] [c4-c7] [c4-c7]            what several rows of input pass by stays in the
//     ...                                                  first-level cache
//
// Packing costs as much as three rows of input or so. Sums are added up in the order that byte_products.h tells.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/byte_products_many.cc"
#include <hwy/foreach_target.h>  // IWYU pragma: keep
// Must come after foreach_target.h.
#include <hwy/highway.h>

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "base/check.h"
#include "kernels/byte_product_blocks.h"
#include "kernels/byte_products_many.h"
#include "kernels/quad_products-inl.h"

HWY_BEFORE_NAMESPACE();
namespace pith::kernels {
namespace HWY_NAMESPACE {
namespace {

#if HWY_TARGET == HWY_AVX2 || HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_AVX3_DL

constexpr bool kHas512 = HWY_TARGET != HWY_AVX2;
constexpr bool kHasDotProducts = HWY_TARGET == HWY_AVX3_DL;
constexpr int kLanes = kHas512 ? 16 : 8;
constexpr int kQuads = kWeightBlock / 4;
// Blocks that are packed at once, a multiple of those of Q6_K and of the chains of sums.
constexpr int kChunk = 32;
constexpr int kChains = 4;
// Rows of input that pass by one packed chunk, and those whose sums fit the registers.
constexpr int kMostInputs = 64;
constexpr int kMostTile = kHas512 ? 8 : 4;

using DF = hn::CappedTag<float, 16>;
using DU = hn::RebindToUnsigned<DF>;
using DU64 = hn::Repartition<uint64_t, DU>;
using VF = hn::Vec<DF>;
using VU = hn::Vec<DU>;

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

// A chunk of kLanes rows of weights.
struct Packed {
  alignas(64) uint32_t codes[kChunk][kQuads][kLanes];
  float scales[kChunk][kLanes];
  float leasts[kChunk][kLanes];
  // Q6_K: of 16 weights each; without dot products in both halves of a lane, and the two times -kOffset.
  uint32_t scales16[kChunk][2][kLanes];
  uint32_t offsets16[kChunk][kLanes];
};

struct LaneRows {
  const uint8_t* at[kLanes];
};

HWY_INLINE VU Load16Bytes(const LaneRows& rows, size_t at, int i) {
  const auto load = [&](int row)
                        HWY_ATTR { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(rows.at[row] + at)); };
#if HWY_TARGET == HWY_AVX2
  return VU{_mm256_inserti128_si256(_mm256_castsi128_si256(load(i)), load(i + 4), 1)};
#else
  const __m256i low = _mm256_inserti128_si256(_mm256_castsi128_si256(load(i)), load(i + 4), 1);
  const __m256i high = _mm256_inserti128_si256(_mm256_castsi128_si256(load(i + 8)), load(i + 12), 1);
  return VU{_mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1)};
#endif
}

// Four quads of 16 bytes of every row: quads[q] holds the q-th of all.
HWY_INLINE void LoadQuads(const LaneRows& rows, size_t at, VU* quads) {
  const DU du;
  const DU64 du64;
  const VU a = Load16Bytes(rows, at, 0), b = Load16Bytes(rows, at, 1);
  const VU c = Load16Bytes(rows, at, 2), d = Load16Bytes(rows, at, 3);
  const auto ab_low = hn::BitCast(du64, hn::InterleaveLower(du, a, b)),
             cd_low = hn::BitCast(du64, hn::InterleaveLower(du, c, d));
  const auto ab_high = hn::BitCast(du64, hn::InterleaveUpper(du, a, b)),
             cd_high = hn::BitCast(du64, hn::InterleaveUpper(du, c, d));
  quads[0] = hn::BitCast(du, hn::InterleaveLower(du64, ab_low, cd_low));
  quads[1] = hn::BitCast(du, hn::InterleaveUpper(du64, ab_low, cd_low));
  quads[2] = hn::BitCast(du, hn::InterleaveLower(du64, ab_high, cd_high));
  quads[3] = hn::BitCast(du, hn::InterleaveUpper(du64, ab_high, cd_high));
}

// Numbers in f16, in the low halves of lanes.
HWY_INLINE VF FromHalves(VU words) {
  const hn::Rebind<uint16_t, DF> du16;
  const hn::Rebind<hwy::float16_t, DF> d16;
  return hn::PromoteTo(DF(), hn::BitCast(d16, hn::DemoteTo(du16, hn::BitCast(DI(), words))));
}

HWY_INLINE uint32_t WordAt(const uint8_t* at) {
  uint32_t word;
  std::memcpy(&word, at, sizeof word);
  return word;
}

// Bit 4 of four codes each from the bits of a block, for the q-th quad.
HWY_INLINE VU FifthBits(VU bits, int q) {
  const DU du;
  const hn::Repartition<uint8_t, DU> d8;
  const auto of_byte = hn::BitCast(d8, hn::Set(du, 0x01010101U * static_cast<uint32_t>(q / 2)));
  // Of each lane, whose bytes begin at a multiple of 4 within 16.
  alignas(16) static constexpr uint32_t kLaneBytes[] = {0, 0x04040404, 0x08080808, 0x0c0c0c0c};
  const auto lane = hn::BitCast(d8, hn::LoadDup128(du, kLaneBytes));
  const auto spread = hn::TableLookupBytes(hn::BitCast(d8, bits), hn::Add(of_byte, lane));
  const auto bit = hn::BitCast(d8, hn::Set(du, 0x08040201U << (q % 2 * 4)));
  const auto fifth = hn::IfThenElseZero(hn::Eq(hn::And(spread, bit), bit), hn::Set(d8, uint8_t{0x10}));
  return hn::BitCast(du, fifth);
}

// Blocks first .. first+count-1. Asks for as many bytes from `ahead` on.
template <WeightFormat kFormat>
HWY_ATTR void Pack(const LaneRows& rows, int first, int count, const uint8_t* ahead, Packed* packed) {
  using Block = BlockOf<kFormat>;
  const DU du;
  const VU nibble = hn::Set(du, 0x0f0f0f0fU);
  alignas(64) uint32_t heads[kChunk][kLanes], bits[kLanes];
  for (int b = 0; b < count; ++b) {
    const size_t at = static_cast<size_t>(first + b) * Block::kBytes;
    for (int r = 0; r < kLanes; ++r) heads[b][r] = WordAt(rows.at[r] + at);
    for (size_t line = 0; line < kLanes * Block::kBytes; line += 64) {
      _mm_prefetch(reinterpret_cast<const char*>(ahead + static_cast<size_t>(b) * kLanes * Block::kBytes + line),
                   _MM_HINT_T1);
    }
    VU quads[8];
    LoadQuads(rows, at + Block::kCodesAt, quads);
    if constexpr (Block::kNibbles) {
      for (int q = 0; q < 4; ++q) {
        quads[q + 4] = hn::And(hn::ShiftRight<4>(quads[q]), nibble);
        quads[q] = hn::And(quads[q], nibble);
      }
    } else {
      LoadQuads(rows, at + Block::kCodesAt + 16, quads + 4);
      for (VU& quad : quads) quad = hn::Xor(quad, hn::Set(du, 0x80808080U));
    }
    if constexpr (Block::kFifthBits) {
      for (int r = 0; r < kLanes; ++r) bits[r] = WordAt(rows.at[r] + at + Block::kBitsAt);
      const VU all = hn::Load(du, bits);
      for (int q = 0; q < kQuads; ++q) quads[q] = hn::Or(quads[q], FifthBits(all, q));
    }
    for (int q = 0; q < kQuads; ++q) hn::Store(quads[q], du, packed->codes[b][q]);
  }
  // Behind all of them, when the words have reached the cache.
  for (int b = 0; b < count; ++b) {
    const VU words = hn::Load(du, heads[b]);
    hn::Store(FromHalves(hn::And(words, hn::Set(du, 0xffffU))), DF(), packed->scales[b]);
    if constexpr (Block::kHasLeast) hn::Store(FromHalves(hn::ShiftRight<16>(words)), DF(), packed->leasts[b]);
  }
}

// One half of a block of Q6_K, four blocks of 32.
HWY_ATTR void PackHalfQ6K(const LaneRows& rows, size_t at, size_t half, int b, Packed* packed) {
  using Block = BlockOfQ6K;
  const DU du;
  VU low[16], high[8];
  for (size_t i = 0; i < 4; ++i) LoadQuads(rows, at + half * Block::kLowBytes + 16 * i, low + 4 * i);
  for (size_t i = 0; i < 2; ++i) LoadQuads(rows, at + Block::kHighAt + half * Block::kHighBytes + 16 * i, high + 4 * i);
  const VU nibble = hn::Set(du, 0x0f0f0f0fU), two_bits = hn::Set(du, 0x30303030U);
  for (int q = 0; q < kQuads; ++q) {
    const VU first = hn::And(hn::ShiftLeft<4>(high[q]), two_bits),
             second = hn::And(hn::ShiftLeft<2>(high[q]), two_bits);
    const VU third = hn::And(high[q], two_bits), fourth = hn::And(hn::ShiftRight<2>(high[q]), two_bits);
    hn::Store(hn::Or(hn::And(low[q], nibble), first), du, packed->codes[b][q]);
    hn::Store(hn::Or(hn::And(low[q + 8], nibble), second), du, packed->codes[b + 1][q]);
    hn::Store(hn::Or(hn::And(hn::ShiftRight<4>(low[q]), nibble), third), du, packed->codes[b + 2][q]);
    hn::Store(hn::Or(hn::And(hn::ShiftRight<4>(low[q + 8]), nibble), fourth), du, packed->codes[b + 3][q]);
  }
}

template <>
HWY_ATTR void Pack<WeightFormat::kQ6_K>(const LaneRows& rows, int first, int count, const uint8_t* ahead,
                                        Packed* packed) {
  using Block = BlockOfQ6K;
  constexpr int kBlocks = 2 * Block::kBlocksInHalf;
  const DI di;
  for (int b = 0; b < count; b += kBlocks) {
    const size_t at = static_cast<size_t>((first + b) / kBlocks) * Block::kBytes;
    for (size_t line = 0; line < kLanes * Block::kBytes; line += 64) {
      const size_t passed = static_cast<size_t>(b / kBlocks) * kLanes * Block::kBytes;
      _mm_prefetch(reinterpret_cast<const char*>(ahead + passed + line), _MM_HINT_T1);
    }
    for (const int half : {0, 1}) {
      PackHalfQ6K(rows, at, static_cast<size_t>(half), b + half * Block::kBlocksInHalf, packed);
    }
    alignas(64) uint32_t scales[kLanes];
    for (int r = 0; r < kLanes; ++r) scales[r] = WordAt(rows.at[r] + at + Block::kScaleAt - 2) >> 16;
    const VF scale = FromHalves(hn::Load(DU(), scales));
    VU scales16[4];
    LoadQuads(rows, at + Block::kScalesAt, scales16);
    for (int i = 0; i < kBlocks; ++i) {
      hn::Store(scale, DF(), packed->scales[b + i]);
      // Two bytes of a lane each, with signs.
      const VI pair = hn::BitCast(DI(), i % 2 == 0 ? hn::ShiftLeft<16>(scales16[i / 2]) : scales16[i / 2]);
      const VI even = hn::ShiftRight<24>(hn::ShiftLeft<8>(pair)), odd = hn::ShiftRight<24>(pair);
      const VI low_half = hn::Set(di, 0xffff);
      const auto both = [&](VI low, VI high)
                            HWY_ATTR { return hn::Or(hn::And(low, low_half), hn::ShiftLeft<16>(high)); };
      const auto keep = [&](VI value, uint32_t* to) HWY_ATTR { hn::Store(hn::BitCast(DU(), value), DU(), to); };
      keep(kHasDotProducts ? even : both(even, even), packed->scales16[b + i][0]);
      keep(kHasDotProducts ? odd : both(odd, odd), packed->scales16[b + i][1]);
      const VI offset = hn::Set(di, -Block::kOffset);
      keep(both(hn::Mul(even, offset), hn::Mul(odd, offset)), packed->offsets16[b + i]);
    }
  }
}

// Of one row of input, from a chunk's first block on.
struct InputRow {
  const int8_t* codes;
  const float* scales;
  const int16_t* sums16;
};

// sums[n] of a block: exact. kOffset: what is taken off codes.
#if HWY_TARGET == HWY_AVX3_DL
template <Codes kCodes, int kOffset, int kInputs>
HWY_INLINE void SumBlock(const Packed& packed, int b, const InputRow* input, VI* sums) {
  const DI di;
  const DU8 d8;
  const auto add_quad = [&](int q, VI* to) HWY_ATTR {
    const VU8 codes = hn::BitCast(d8, hn::Load(DU(), packed.codes[b][q]));
    for (int n = 0; n < kInputs; ++n)
      to[n] = MultiplyAddQuads(to[n], codes, BroadcastQuad(input[n].codes + kWeightBlock * b + 4 * q));
  };
  if constexpr (kCodes == Codes::kQ6K) {
    for (int half = 0; half < 2; ++half) {
      VI of_half[kInputs];
      for (int n = 0; n < kInputs; ++n) of_half[n] = hn::Set(di, -kOffset * input[n].sums16[2 * b + half]);
      for (int q = 0; q < kQuads / 2; ++q) add_quad(kQuads / 2 * half + q, of_half);
      const VI scale = hn::BitCast(di, hn::Load(DU(), packed.scales16[b][half]));
      for (int n = 0; n < kInputs; ++n) {
        const VI scaled = hn::Mul(of_half[n], scale);
        sums[n] = half == 0 ? scaled : hn::Add(sums[n], scaled);
      }
    }
  } else {
    for (int n = 0; n < kInputs; ++n) {
      const int16_t* sums16 = input[n].sums16 + 2 * b;
      sums[n] = kOffset == 0 ? hn::Zero(di) : hn::Set(di, -kOffset * (sums16[0] + sums16[1]));
    }
    for (int q = 0; q < kQuads; ++q) add_quad(q, sums);
  }
}
#else
template <Codes kCodes, int kOffset, int kInputs>
HWY_INLINE void SumBlock(const Packed& packed, int b, const InputRow* input, VI* sums) {
  const DI di;
  const DI16 d16;
  const DU8 d8;
  // As many quads as 16 bits hold the sums of.
  constexpr int kTogether = kCodes == Codes::kQ6K ? 2 : kCodes == Codes::kFiveBits ? 4 : kQuads;
  const VU nibble = hn::Set(DU(), 0x0f0f0f0fU);
  for (int first = 0; first < kQuads; first += kTogether) {
    VI16 low[kInputs], high[kInputs];
    for (int n = 0; n < kInputs; ++n) low[n] = high[n] = hn::Zero(d16);
    for (int q = first; q < first + kTogether; ++q) {
      const VU codes = hn::Load(DU(), packed.codes[b][q]);
      const VU8 of_low = hn::BitCast(d8, kCodes == Codes::kBytes ? hn::And(codes, nibble) : codes);
      const VU8 of_high = hn::BitCast(d8, hn::And(hn::ShiftRight<4>(codes), nibble));
      for (int n = 0; n < kInputs; ++n) {
        const VI words = BroadcastQuad(input[n].codes + kWeightBlock * b + 4 * q);
        low[n] = MultiplyAddQuads(low[n], of_low, words);
        if constexpr (kCodes == Codes::kBytes) high[n] = MultiplyAddQuads(high[n], of_high, words);
      }
    }
    const VI16 factor = kCodes == Codes::kQ6K
                            ? hn::BitCast(d16, hn::Load(DU(), packed.scales16[b][first / (kQuads / 2)]))
                            : hn::Set(d16, int16_t{1});
    for (int n = 0; n < kInputs; ++n) {
      VI sum = AddPairs(low[n], factor);
      if constexpr (kCodes == Codes::kBytes) sum = hn::Add(sum, AddPairs(high[n], hn::Set(d16, int16_t{16})));
      sums[n] = first == 0 ? sum : hn::Add(sums[n], sum);
    }
  }
  for (int n = 0; n < kInputs && kOffset != 0; ++n) {
    const int16_t* sums16 = input[n].sums16 + 2 * b;
    if constexpr (kCodes == Codes::kQ6K) {
      const VI16 offset = hn::BitCast(d16, hn::Load(DU(), packed.offsets16[b]));
      sums[n] = hn::Add(sums[n], AddPairs(offset, hn::BitCast(d16, BroadcastQuad(sums16))));
    } else {
      sums[n] = hn::Add(sums[n], hn::Set(di, -kOffset * (sums16[0] + sums16[1])));
    }
  }
}
#endif

// Running sums of one row of input: chains of blocks, and of least weights.
struct Sums {
  alignas(64) float of_codes[kChains][kLanes];
  float of_leasts[kChains][kLanes];
};

template <Codes kCodes, int kOffset, int kInputs>
HWY_ATTR void AddChunk(const Packed& packed, int count, const InputRow* input, Sums* sums) {
  const DF df;
  for (int chain = 0; chain < kChains; ++chain) {
    VF sum[kInputs];
    for (int n = 0; n < kInputs; ++n) sum[n] = hn::Load(df, sums[n].of_codes[chain]);
    for (int b = chain; b < count; b += kChains) {
      VI block[kInputs];
      SumBlock<kCodes, kOffset, kInputs>(packed, b, input, block);
      const VF scale = hn::Load(df, packed.scales[b]);
      for (int n = 0; n < kInputs; ++n) {
        const VF of_both = hn::Mul(scale, hn::Set(df, input[n].scales[RoundedRows::ScaleAt(b)]));
        sum[n] = hn::MulAdd(hn::ConvertTo(df, block[n]), of_both, sum[n]);
      }
    }
    for (int n = 0; n < kInputs; ++n) hn::Store(sum[n], df, sums[n].of_codes[chain]);
  }
}

HWY_ATTR void AddLeasts(const Packed& packed, int count, const InputRow& input, Sums* sums) {
  const DF df;
  VF sum[kChains];
  for (int chain = 0; chain < kChains; ++chain) sum[chain] = hn::Load(df, sums->of_leasts[chain]);
  const auto add = [&](int b, int chain) HWY_ATTR {
    const VF of_input = hn::Set(df, input.scales[RoundedRows::SumAt(b) + chain]);
    sum[chain] = hn::MulAdd(hn::Load(df, packed.leasts[b + chain]), of_input, sum[chain]);
  };
  int b = 0;
  for (; b + kChains <= count; b += kChains) {
    for (int chain = 0; chain < kChains; ++chain) add(b, chain);
  }
  for (int chain = 0; chain < count - b; ++chain) add(b, chain);
  for (int chain = 0; chain < kChains; ++chain) hn::Store(sum[chain], df, sums->of_leasts[chain]);
}

template <Codes kCodes, int kOffset>
HWY_ATTR void AddChunkTo(int tile, const Packed& packed, int count, const InputRow* input, Sums* sums) {
  switch (tile) {
    case 1:
      return AddChunk<kCodes, kOffset, 1>(packed, count, input, sums);
    case 2:
      return AddChunk<kCodes, kOffset, 2>(packed, count, input, sums);
    case 3:
      return AddChunk<kCodes, kOffset, 3>(packed, count, input, sums);
    case 4:
      return AddChunk<kCodes, kOffset, 4>(packed, count, input, sums);
    default:
      break;
  }
  if constexpr (kMostTile > 4) {
    switch (tile) {
      case 5:
        return AddChunk<kCodes, kOffset, 5>(packed, count, input, sums);
      case 6:
        return AddChunk<kCodes, kOffset, 6>(packed, count, input, sums);
      case 7:
        return AddChunk<kCodes, kOffset, 7>(packed, count, input, sums);
      default:
        return AddChunk<kCodes, kOffset, 8>(packed, count, input, sums);
    }
  }
}

HWY_INLINE VF SumOfChains(const float (*chains)[kLanes]) {
  const DF df;
  return hn::Add(hn::Add(hn::Load(df, chains[0]), hn::Load(df, chains[1])),
                 hn::Add(hn::Load(df, chains[2]), hn::Load(df, chains[3])));
}

// kLanes rows of weights, of which `count` are wanted, times rows first_input .. of the input.
template <WeightFormat kFormat>
HWY_ATTR void MultiplyGroup(const LaneRows& rows, int count, const RoundedRows& input, int first_input, int num_inputs,
                            float* output, size_t output_stride, const uint8_t* ahead) {
  Packed packed;
  Sums sums[kMostInputs];
  std::memset(sums, 0, sizeof(Sums) * static_cast<size_t>(num_inputs));
  const size_t bytes_per_block =
      kLanes * WeightBlockBytes(kFormat) * kWeightBlock / static_cast<size_t>(WeightsInBlock(kFormat));
  const int num_tiles = (num_inputs + kMostTile - 1) / kMostTile;
  for (int first = 0; first < input.num_blocks(); first += kChunk) {
    const int blocks = std::min(kChunk, input.num_blocks() - first);
    Pack<kFormat>(rows, first, blocks, ahead + static_cast<size_t>(first) * bytes_per_block, &packed);
    for (int t = 0; t < num_tiles; ++t) {
      const int begin = num_inputs * t / num_tiles, tile = num_inputs * (t + 1) / num_tiles - begin;
      InputRow of_tile[kMostTile];
      for (int n = 0; n < tile; ++n) {
        const int row = first_input + begin + n;
        of_tile[n] = {input.codes(row) + kWeightBlock * first, input.scales(row) + RoundedRows::ScaleAt(first),
                      input.sums16(row) + 2 * first};
        if (kFormat == WeightFormat::kQ4_1 || kFormat == WeightFormat::kQ5_1)
          AddLeasts(packed, blocks, of_tile[n], &sums[begin + n]);
      }
      AddChunkTo<CodesOf(kFormat), OffsetOf<kFormat>()>(tile, packed, blocks, of_tile, sums + begin);
    }
  }
  const DF df;
  for (int n = 0; n < num_inputs; ++n) {
    const VF sum = hn::Add(SumOfChains(sums[n].of_codes), SumOfChains(sums[n].of_leasts));
    float* to = output + static_cast<size_t>(first_input + n) * output_stride;
    if (count == kLanes) {
      hn::StoreU(sum, df, to);
    } else {
      alignas(64) float all[kLanes];
      hn::Store(sum, df, all);
      std::memcpy(to, all, sizeof(float) * static_cast<size_t>(count));
    }
  }
}

HWY_ATTR void MultiplyManyRowsImpl(const WeightRows& weights, const RoundedRows& input, float* output,
                                   size_t output_stride, const std::byte* next) {
  const auto* data = reinterpret_cast<const uint8_t*>(weights.data);
  const auto* after = reinterpret_cast<const uint8_t*>(next != nullptr ? next : weights.data);
  WithFormat(weights.format, [&](auto format) HWY_ATTR {
    for (int i = 0; i < weights.num_rows; i += kLanes) {
      const int count = std::min(kLanes, weights.num_rows - i);
      LaneRows rows;
      // Where rows are missing, the last one stands in for them.
      for (int r = 0; r < kLanes; ++r)
        rows.at[r] = data + static_cast<size_t>(std::min(i + r, weights.num_rows - 1)) * weights.row_bytes;
      const uint8_t* ahead =
          i + kLanes < weights.num_rows ? data + static_cast<size_t>(i + kLanes) * weights.row_bytes : after;
      for (int n = 0; n < input.num_rows(); n += kMostInputs) {
        MultiplyGroup<format()>(rows, count, input, n, std::min(kMostInputs, input.num_rows() - n), output + i,
                                output_stride, ahead);
      }
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
