// Weights laid anew for products of several rows (byte_products_many.cc): one row in each lane.
//
// A lane of 32 bits holds four neighbouring codes ("quad") of one row of weights:
//
//   weights, packed      row 0   row 1   row 2  ...        for each block: 8 quads, then scales,
//     quad 0            [c0-c3] [c0-c3] [c0-c3]            kLanes rows at a time, kChunk blocks at a time:
//     quad 1            [c4-c7] [c4-c7] [c4-c7]            what several rows of input pass by stays in the
//     ...                                                  first-level cache
#if defined(PITH_KERNELS_LANE_ROWS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef PITH_KERNELS_LANE_ROWS_INL_H_
#undef PITH_KERNELS_LANE_ROWS_INL_H_
#else
#define PITH_KERNELS_LANE_ROWS_INL_H_
#endif

#include <hwy/highway.h>

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "kernels/byte_product_blocks.h"
#include "kernels/quad_products-inl.h"

#if HWY_TARGET == HWY_AVX2 || HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_AVX3_DL
HWY_BEFORE_NAMESPACE();
namespace pith::kernels {
namespace HWY_NAMESPACE {
namespace {  // each file of a target has its own

constexpr bool kHas512 = HWY_TARGET != HWY_AVX2;
constexpr bool kHasDotProducts = HWY_TARGET == HWY_AVX3_DL;
constexpr int kLanes = kHas512 ? 16 : 8;
constexpr int kQuads = kWeightBlock / 4;
// Blocks that are packed at once, a multiple of those of Q6_K and of the chains of sums.
constexpr int kChunk = kHasDotProducts ? 16 : 32;
constexpr int kChains = 4;

using DF = hn::CappedTag<float, 16>;
using DU = hn::RebindToUnsigned<DF>;
using DU64 = hn::Repartition<uint64_t, DU>;
using VF = hn::Vec<DF>;
using VU = hn::Vec<DU>;

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

}  // namespace
// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace pith::kernels
HWY_AFTER_NAMESPACE();
#endif  // HWY_TARGET

#endif  // per-target include guard
