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
constexpr int kChunk = kHasDotProducts ? 16 : 32;
constexpr int kChains = 4;
// Rows of input that pass by one packed chunk, and those whose sums fit the registers.
constexpr int kMostInputs = 64;
constexpr int kMostTile = kHas512 && !kHasDotProducts ? 8 : 4;
// Groups of kLanes rows of weights that share what is loaded of the input.
constexpr int kMostGroups = kHasDotProducts ? 2 : 1;

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

// Words of four vectors, within every 16 bytes of them.
HWY_INLINE void TransposeLanes(VU a, VU b, VU c, VU d, VU* words) {
  const DU du;
  const DU64 du64;
  const auto ab_low = hn::BitCast(du64, hn::InterleaveLower(du, a, b)),
             cd_low = hn::BitCast(du64, hn::InterleaveLower(du, c, d));
  const auto ab_high = hn::BitCast(du64, hn::InterleaveUpper(du, a, b)),
             cd_high = hn::BitCast(du64, hn::InterleaveUpper(du, c, d));
  words[0] = hn::BitCast(du, hn::InterleaveLower(du64, ab_low, cd_low));
  words[1] = hn::BitCast(du, hn::InterleaveUpper(du64, ab_low, cd_low));
  words[2] = hn::BitCast(du, hn::InterleaveLower(du64, ab_high, cd_high));
  words[3] = hn::BitCast(du, hn::InterleaveUpper(du64, ab_high, cd_high));
}

#if HWY_TARGET == HWY_AVX2
// Four quads of 16 bytes of every row: quads[q] holds the q-th of all.
HWY_INLINE void LoadFourQuads(const LaneRows& rows, size_t at, VU* quads) {
  const DU du;
  const auto load = [&](int i) HWY_ATTR {
    const auto row = [&](int r) HWY_ATTR { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(rows.at[r] + at)); };
    return VU{_mm256_inserti128_si256(_mm256_castsi128_si256(row(i)), row(i + 4), 1)};
  };
  TransposeLanes(load(0), load(1), load(2), load(3), quads);
}

template <int kNumQuads>
HWY_INLINE void LoadQuads(const LaneRows& rows, size_t at, VU* quads) {
  for (size_t q = 0; q < kNumQuads; q += 4) LoadFourQuads(rows, at + 4 * q, quads + q);
}
#else
// Four or eight quads of 16 or 32 bytes of every row: quads[q] holds the q-th of all.
template <int kNumQuads>
HWY_INLINE void LoadSomeQuads(const LaneRows& rows, size_t at, VU* quads) {
  if constexpr (kNumQuads == 4) {
    const auto load = [&](int i) HWY_ATTR {
      const auto row = [&](int r)
                           HWY_ATTR { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(rows.at[r] + at)); };
      const __m256i low = _mm256_inserti128_si256(_mm256_castsi128_si256(row(i)), row(i + 4), 1);
      const __m256i high = _mm256_inserti128_si256(_mm256_castsi128_si256(row(i + 8)), row(i + 12), 1);
      return VU{_mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1)};
    };
    TransposeLanes(load(0), load(1), load(2), load(3), quads);
  } else {
    static_assert(kNumQuads == 8);
    // Rows i and i + 4 in the halves: lanes are quads q of the first four rows, q + 4, then those of the other four.
    const auto load = [&](int i) HWY_ATTR {
      const auto row = [&](int r)
                           HWY_ATTR { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(rows.at[r] + at)); };
      return VU{_mm512_inserti64x4(_mm512_castsi256_si512(row(i)), row(i + 4), 1)};
    };
    VU first[4], last[4];
    TransposeLanes(load(0), load(1), load(2), load(3), first);
    TransposeLanes(load(8), load(9), load(10), load(11), last);
    for (int q = 0; q < 4; ++q) {
      quads[q] = VU{_mm512_shuffle_i64x2(first[q].raw, last[q].raw, 0x88)};
      quads[q + 4] = VU{_mm512_shuffle_i64x2(first[q].raw, last[q].raw, 0xdd)};
    }
  }
}

template <int kNumQuads>
HWY_INLINE void LoadQuads(const LaneRows& rows, size_t at, VU* quads) {
  for (size_t q = 0; q + 8 <= kNumQuads; q += 8) LoadSomeQuads<8>(rows, at + 4 * q, quads + q);
  if constexpr (kNumQuads % 8 != 0) LoadSomeQuads<4>(rows, at + 4 * (kNumQuads - 4), quads + kNumQuads - 4);
}
#endif

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

// Asks for memory line by line, a few between other work: asked for at once, lines wait for each other.
class Fetcher {
 public:
  Fetcher(const uint8_t* from, size_t bytes) : at_(from), end_(from + bytes) {}
  HWY_INLINE void Ask(size_t bytes) {
    const uint8_t* const to = at_ + std::min(bytes, static_cast<size_t>(end_ - at_));
    for (; at_ < to; at_ += 64) _mm_prefetch(reinterpret_cast<const char*>(at_), _MM_HINT_T0);
  }

 private:
  const uint8_t* at_;
  const uint8_t* end_;
};

// The codes of a block from its quads as they lie; bits: of all fifth ones.
template <class Block>
HWY_INLINE void StoreCodes(const VU* from, VU bits, uint32_t (*to)[kLanes]) {
  const DU du;
  VU quads[kQuads];
  if constexpr (Block::kNibbles) {
    const VU nibble = hn::Set(du, 0x0f0f0f0fU);
    for (int q = 0; q < 4; ++q) {
      quads[q + 4] = hn::And(hn::ShiftRight<4>(from[q]), nibble);
      quads[q] = hn::And(from[q], nibble);
    }
  } else {
    for (int q = 0; q < kQuads; ++q) quads[q] = hn::Xor(from[q], hn::Set(du, 0x80808080U));
  }
  if constexpr (Block::kFifthBits) {
    for (int q = 0; q < kQuads; ++q) quads[q] = hn::Or(quads[q], FifthBits(bits, q));
  }
  for (int q = 0; q < kQuads; ++q) hn::Store(quads[q], du, to[q]);
}

// Of block b from the word that it begins with.
template <class Block>
HWY_INLINE void StoreHead(VU words, int b, Packed* packed) {
  hn::Store(FromHalves(hn::And(words, hn::Set(DU(), 0xffffU))), DF(), packed->scales[b]);
  if constexpr (Block::kHasLeast) hn::Store(FromHalves(hn::ShiftRight<16>(words)), DF(), packed->leasts[b]);
}

HWY_INLINE VU LoadWords(const LaneRows& rows, size_t at) {
  alignas(64) uint32_t words[kLanes];
  for (int r = 0; r < kLanes; ++r) words[r] = WordAt(rows.at[r] + at);
  return hn::Load(DU(), words);
}

template <class Block>
HWY_INLINE void PackBlock(const LaneRows& rows, size_t at, int b, Packed* packed) {
  VU quads[kQuads];
  LoadQuads<Block::kNibbles ? 4 : 8>(rows, at + Block::kCodesAt, quads);
  StoreCodes<Block>(quads, Block::kFifthBits ? LoadWords(rows, at + Block::kBitsAt) : VU(), packed->codes[b]);
}

// Four blocks of whole words, whose heads come with the codes.
template <class Block>
HWY_INLINE void PackFourBlocks(const LaneRows& rows, size_t at, int b, Packed* packed) {
  constexpr int kWords = Block::kBytes / 4;
  VU words[4 * kWords];
  LoadQuads<4 * kWords>(rows, at, words);
  for (int i = 0; i < 4; ++i) {
    const VU* block = words + kWords * i;
    StoreHead<Block>(block[0], b + i, packed);
    StoreCodes<Block>(block + Block::kCodesAt / 4, block[Block::kBitsAt / 4], packed->codes[b + i]);
  }
}

// Blocks first .. first+count-1. Asks for `fetch` bytes at each.
template <WeightFormat kFormat>
HWY_ATTR void Pack(const LaneRows& rows, int first, int count, size_t fetch, Fetcher* ahead, Packed* packed) {
  using Block = BlockOf<kFormat>;
  const auto at = [&](int b) { return static_cast<size_t>(first + b) * Block::kBytes; };
  int b = 0;
  if constexpr (Block::kBytes % 4 == 0) {
    for (; b + 4 <= count; b += 4) {
      ahead->Ask(4 * fetch);
      PackFourBlocks<Block>(rows, at(b), b, packed);
    }
  }
  alignas(64) uint32_t heads[kChunk][kLanes];
  const int rest = b;
  for (; b < count; ++b) {
    ahead->Ask(fetch);
    for (int r = 0; r < kLanes; ++r) heads[b][r] = WordAt(rows.at[r] + at(b));
    PackBlock<Block>(rows, at(b), b, packed);
  }
  // Behind all of them, when the words have reached the cache.
  for (b = rest; b < count; ++b) StoreHead<Block>(hn::Load(DU(), heads[b]), b, packed);
}

// One half of a block of Q6_K, four blocks of 32.
HWY_ATTR void PackHalfQ6K(const LaneRows& rows, size_t at, size_t half, int b, Packed* packed) {
  using Block = BlockOfQ6K;
  const DU du;
  VU low[16], high[8];
  LoadQuads<16>(rows, at + half * Block::kLowBytes, low);
  LoadQuads<8>(rows, at + Block::kHighAt + half * Block::kHighBytes, high);
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
HWY_ATTR void Pack<WeightFormat::kQ6_K>(const LaneRows& rows, int first, int count, size_t fetch, Fetcher* ahead,
                                        Packed* packed) {
  using Block = BlockOfQ6K;
  constexpr int kBlocks = 2 * Block::kBlocksInHalf;
  const DI di;
  for (int b = 0; b < count; b += kBlocks) {
    const size_t at = static_cast<size_t>((first + b) / kBlocks) * Block::kBytes;
    ahead->Ask(kBlocks * fetch);
    for (const int half : {0, 1}) {
      PackHalfQ6K(rows, at, static_cast<size_t>(half), b + half * Block::kBlocksInHalf, packed);
    }
    alignas(64) uint32_t scales[kLanes];
    for (int r = 0; r < kLanes; ++r) scales[r] = WordAt(rows.at[r] + at + Block::kScaleAt - 2) >> 16;
    const VF scale = FromHalves(hn::Load(DU(), scales));
    VU scales16[4];
    LoadQuads<4>(rows, at + Block::kScalesAt, scales16);
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
HWY_INLINE void SumBlock(const Packed* of_group, int b, const InputRow* input, VI* sums) {
  static_assert(kGroups == 1);
  const Packed& packed = *of_group;
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
    for (int i = 0; i < weights.num_rows;) {
      const int left = weights.num_rows - i;
      WithCount<kMostGroups>(std::min(kMostGroups, (left + kLanes - 1) / kLanes), [&](auto groups) HWY_ATTR {
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
