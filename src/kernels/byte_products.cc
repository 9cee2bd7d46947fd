#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/byte_products.cc"
#include <hwy/foreach_target.h>  // IWYU pragma: keep
// Must come after foreach_target.h.
#include <hwy/highway.h>

#include <cmath>
#include <cstring>
#include <type_traits>

#include "base/check.h"
#include "kernels/byte_products.h"
#include "kernels/target.h"

// Vectors of 32 bytes, one block, on every processor of this family: scales are of one block.
#undef PITH_BYTE_PRODUCTS_AVX2
#if HWY_TARGET == HWY_AVX2 || HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_AVX3_DL
#define PITH_BYTE_PRODUCTS_AVX2 1
#else
#define PITH_BYTE_PRODUCTS_AVX2 0
#endif

#ifndef PITH_BYTE_PRODUCTS_BLOCKS
#define PITH_BYTE_PRODUCTS_BLOCKS
namespace pith::kernels {

// How a block of the formats of 32 weights is laid out: weight = scale * (code - kOffset) + least.
template <WeightFormat kFormat>
struct BlockOf {
  static constexpr bool kNibbles = kFormat != WeightFormat::kQ8_0;
  static constexpr bool kFifthBits = kFormat == WeightFormat::kQ5_0 || kFormat == WeightFormat::kQ5_1;
  static constexpr bool kHasLeast = kFormat == WeightFormat::kQ4_1 || kFormat == WeightFormat::kQ5_1;
  static constexpr int kOffset = kFormat == WeightFormat::kQ4_0 ? 8 : kFormat == WeightFormat::kQ5_0 ? 16 : 0;
  static constexpr size_t kBitsAt = kHasLeast ? 4 : 2;
  static constexpr size_t kCodesAt = kBitsAt + (kFifthBits ? 4 : 0);
  static constexpr size_t kBytes = kCodesAt + (kNibbles ? kWeightBlock / 2 : kWeightBlock);
};

// 256 weights: low nibbles and two high bits of their codes, scales in 8 bits of 16 weights each, and one in f16 of
// those: weight = scale * scale16 * (code - kOffset).
struct BlockOfQ6K {
  static constexpr int kOffset = 32;
  static constexpr int kWeights = 256;
  static constexpr size_t kHighAt = 128, kScalesAt = 192, kScaleAt = 208, kBytes = 210;
  // Codes of either half lie together.
  static constexpr int kBlocksInHalf = kWeights / kWeightBlock / 2;
  static constexpr size_t kLowBytes = 64, kHighBytes = 32;
};

// Calls function(std::integral_constant<WeightFormat, format>()).
template <class Function>
decltype(auto) WithFormat(WeightFormat format, const Function& function) {
  switch (format) {
    case WeightFormat::kQ4_0:
      return function(std::integral_constant<WeightFormat, WeightFormat::kQ4_0>());
    case WeightFormat::kQ4_1:
      return function(std::integral_constant<WeightFormat, WeightFormat::kQ4_1>());
    case WeightFormat::kQ5_0:
      return function(std::integral_constant<WeightFormat, WeightFormat::kQ5_0>());
    case WeightFormat::kQ5_1:
      return function(std::integral_constant<WeightFormat, WeightFormat::kQ5_1>());
    case WeightFormat::kQ6_K:
      return function(std::integral_constant<WeightFormat, WeightFormat::kQ6_K>());
    case WeightFormat::kQ8_0:
      break;
  }
  return function(std::integral_constant<WeightFormat, WeightFormat::kQ8_0>());
}

}  // namespace pith::kernels
#endif

HWY_BEFORE_NAMESPACE();
namespace pith::kernels {
namespace HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;

HWY_ATTR void RoundRowImpl(const float* input, int num_blocks, int8_t* codes, float* scales) {
  const hn::CappedTag<float, 8> d;
  const hn::RebindToSigned<decltype(d)> di;
  const hn::Rebind<int8_t, decltype(d)> d8;
  const int lanes = static_cast<int>(hn::Lanes(d));
  for (int b = 0; b < num_blocks; ++b, input += kWeightBlock, codes += kWeightBlock, scales += 2) {
    auto largest = hn::Zero(d);
    for (int c = 0; c < kWeightBlock; c += lanes) largest = hn::Max(largest, hn::Abs(hn::LoadU(d, input + c)));
    const float scale = hn::GetLane(hn::MaxOfLanes(d, largest)) / 127;
    const auto inverse = hn::Set(d, scale > 0 ? 1 / scale : 0);
    auto sum = hn::Zero(di);
    for (int c = 0; c < kWeightBlock; c += lanes) {
      const auto code = hn::NearestInt(hn::Mul(hn::LoadU(d, input + c), inverse));
      sum = hn::Add(sum, code);
      hn::StoreU(hn::DemoteTo(d8, code), d8, codes + c);
    }
    scales[0] = scale;
    scales[1] = scale * static_cast<float>(hn::GetLane(hn::SumOfLanes(di, sum)));
  }
}

#if PITH_BYTE_PRODUCTS_AVX2
template <class Block>
HWY_INLINE __m256i Codes(const uint8_t* block) {
  if constexpr (!Block::kNibbles) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(block + Block::kCodesAt));
  } else {
    // Low nibbles are the first 16 codes, high ones the others.
    const __m128i both = _mm_loadu_si128(reinterpret_cast<const __m128i*>(block + Block::kCodesAt));
    const __m256i shifted =
        _mm256_srlv_epi32(_mm256_broadcastsi128_si256(both), _mm256_setr_epi32(0, 0, 0, 0, 4, 4, 4, 4));
    const __m256i nibbles = _mm256_and_si256(shifted, _mm256_set1_epi8(0x0f));
    if constexpr (!Block::kFifthBits) {
      return nibbles;
    } else {
      int32_t bits;
      std::memcpy(&bits, block + Block::kBitsAt, sizeof bits);
      const __m256i of_byte = _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303);
      const __m256i bit = _mm256_set1_epi64x(static_cast<int64_t>(0x8040201008040201U));
      const __m256i spread = _mm256_and_si256(_mm256_shuffle_epi8(_mm256_set1_epi32(bits), of_byte), bit);
      return _mm256_or_si256(nibbles, _mm256_and_si256(_mm256_cmpeq_epi8(spread, bit), _mm256_set1_epi8(0x10)));
    }
  }
}

// Eight sums of four products, signed bytes with the codes of a block.
template <class Block>
HWY_INLINE __m256 Products(__m256i codes, __m256i input) {
  // Codes without signs: of those that have some, the sign goes to the input. Pairs of products fit 16 bits.
  const __m256i first = Block::kNibbles ? codes : _mm256_abs_epi8(codes);
  const __m256i second = Block::kNibbles ? input : _mm256_sign_epi8(input, codes);
#if HWY_TARGET == HWY_AVX3_DL
  __m256i sums = _mm256_setzero_si256();
  // Highway 1.0.3 detects VNNI for this target but does not name it to the compiler, which refuses the intrinsic.
  asm("vpdpbusd %2, %1, %0" : "+v"(sums) : "v"(first), "v"(second));
#else
  const __m256i sums = _mm256_madd_epi16(_mm256_maddubs_epi16(first, second), _mm256_set1_epi16(1));
#endif
  return _mm256_cvtepi32_ps(sums);
}

// The sums of lanes of kCount vectors, at most four.
template <int kCount>
HWY_INLINE void StoreSums(const __m256* lanes, float* sums) {
  const __m256 zero = _mm256_setzero_ps();
  const __m256 first = _mm256_hadd_ps(lanes[0], kCount > 1 ? lanes[1] : zero);
  const __m256 last = kCount > 2 ? _mm256_hadd_ps(lanes[2], kCount > 3 ? lanes[3] : zero) : zero;
  const __m256 halves = _mm256_hadd_ps(first, last);
  alignas(16) float all[4];
  _mm_store_ps(all, _mm_add_ps(_mm256_castps256_ps128(halves), _mm256_extractf128_ps(halves, 1)));
  std::memcpy(sums, all, kCount * sizeof(float));
}

// Scale and least weight of kBlocks blocks, side by side.
template <class Block, int kBlocks>
HWY_INLINE __m256 Scales(const uint8_t* block) {
  int32_t words[4] = {};
  for (int b = 0; b < kBlocks; ++b) std::memcpy(&words[b], block + static_cast<size_t>(b) * Block::kBytes, 4);
  const __m256 both = _mm256_cvtph_ps(_mm_setr_epi32(words[0], words[1], words[2], words[3]));
  if constexpr (Block::kHasLeast) return both;
  constexpr float kLeast = -Block::kOffset;
  return _mm256_mul_ps(_mm256_moveldup_ps(both), _mm256_setr_ps(1, kLeast, 1, kLeast, 1, kLeast, 1, kLeast));
}

// kRows rows of weights times kInputs rows of input. Asks for kRows rows from `ahead` on in the order of addresses,
// beside the arithmetic: processors of AMD continue by themselves only what goes on in that order, and drop a prefetch
// that finds no free miss buffer.
template <class Block, int kRows, int kInputs>
HWY_ATTR void MultiplyTile(const uint8_t* weights, size_t row_bytes, int num_blocks, const int8_t* codes,
                           size_t codes_stride, const float* scales, size_t scales_stride, float* output,
                           size_t output_stride, const uint8_t* ahead) {
  __m256 sum[kRows][kInputs], least[kRows][kInputs];
  for (int r = 0; r < kRows; ++r) {
    for (int n = 0; n < kInputs; ++n) sum[r][n] = least[r][n] = _mm256_setzero_ps();
  }
  const auto step = [&]<int kBlocks>(std::integral_constant<int, kBlocks>) HWY_ATTR {
    constexpr size_t kStepBytes = kBlocks * Block::kBytes;
    alignas(32) float products[kRows][kInputs][8];
    for (size_t at = 0; at < kRows * kStepBytes; at += 64) {
      _mm_prefetch(reinterpret_cast<const char*>(ahead + at), _MM_HINT_NTA);
    }
    for (int r = 0; r < kRows; ++r) {
      const __m256 of_weights = Scales<Block, kBlocks>(weights + static_cast<size_t>(r) * row_bytes);
      for (int n = 0; n < kInputs; ++n) {
        const __m256 of_input = _mm256_loadu_ps(scales + static_cast<size_t>(n) * scales_stride);
        const __m256 product = _mm256_mul_ps(of_weights, of_input);
        _mm256_store_ps(products[r][n], product);
        least[r][n] = _mm256_add_ps(least[r][n], product);
      }
    }
    for (int b = 0; b < kBlocks; ++b) {
      __m256i input[kInputs];
      for (int n = 0; n < kInputs; ++n) {
        input[n] = _mm256_loadu_si256(
            reinterpret_cast<const __m256i*>(codes + static_cast<size_t>(n) * codes_stride + kWeightBlock * b));
      }
      for (int r = 0; r < kRows; ++r) {
        const __m256i of_weights =
            Codes<Block>(weights + static_cast<size_t>(r) * row_bytes + static_cast<size_t>(b) * Block::kBytes);
        for (int n = 0; n < kInputs; ++n) {
          sum[r][n] = _mm256_fmadd_ps(Products<Block>(of_weights, input[n]),
                                      _mm256_broadcast_ss(&products[r][n][2 * b]), sum[r][n]);
        }
      }
    }
    ahead += kRows * kStepBytes;
    weights += kStepBytes;
    codes += kBlocks * kWeightBlock;
    scales += 2 * kBlocks;
  };
  for (; num_blocks >= 4; num_blocks -= 4) step(std::integral_constant<int, 4>());
  switch (num_blocks) {
    case 3:
      step(std::integral_constant<int, 3>());
      break;
    case 2:
      step(std::integral_constant<int, 2>());
      break;
    case 1:
      step(std::integral_constant<int, 1>());
      break;
    default:
      break;
  }
  for (int n = 0; n < kInputs; ++n) {
    __m256 of_input[kRows];
    for (int r = 0; r < kRows; ++r) {
      // Odd lanes are least weights times sums of input, even ones have been used.
      constexpr bool kAddLeast = Block::kHasLeast || Block::kOffset != 0;
      const __m256 of_least = _mm256_blend_ps(_mm256_setzero_ps(), least[r][n], 0xaa);
      of_input[r] = kAddLeast ? _mm256_add_ps(sum[r][n], of_least) : sum[r][n];
    }
    StoreSums<kRows>(of_input, output + static_cast<size_t>(n) * output_stride);
  }
}

// The same for Q6_K, whose width is a multiple of 256. What the offset of codes adds is taken off pairs of products,
// before scales of 16 weights multiply them.
template <int kRows, int kInputs>
HWY_ATTR void MultiplyTileQ6K(const uint8_t* weights, size_t row_bytes, int num_blocks, const int8_t* codes,
                              size_t codes_stride, const float* scales, size_t scales_stride, float* output,
                              size_t output_stride, const uint8_t* ahead) {
  using Block = BlockOfQ6K;
  __m256 sum[kRows][kInputs];
  for (int r = 0; r < kRows; ++r) {
    for (int n = 0; n < kInputs; ++n) sum[r][n] = _mm256_setzero_ps();
  }
  const auto half = [&]<int kHalf>(std::integral_constant<int, kHalf>) HWY_ATTR {
    alignas(32) float products[kRows][kInputs][8];
    __m256i scales16[kRows];
    for (size_t at = 0; at < kRows * Block::kBytes / 2; at += 64) {
      _mm_prefetch(reinterpret_cast<const char*>(ahead + at), _MM_HINT_NTA);
    }
    ahead += kRows * Block::kBytes / 2;
    for (int r = 0; r < kRows; ++r) {
      const uint8_t* block = weights + static_cast<size_t>(r) * row_bytes;
      uint16_t bits;
      std::memcpy(&bits, block + Block::kScaleAt, sizeof bits);
      const __m256 scale = _mm256_broadcastss_ps(_mm_cvtph_ps(_mm_cvtsi32_si128(bits)));
      for (int n = 0; n < kInputs; ++n) {
        _mm256_store_ps(products[r][n],
                        _mm256_mul_ps(scale, _mm256_loadu_ps(scales + static_cast<size_t>(n) * scales_stride)));
      }
      int64_t eight;
      std::memcpy(&eight, block + Block::kScalesAt + kHalf * sizeof eight, sizeof eight);
      scales16[r] = _mm256_set1_epi64x(eight);
    }
    const auto multiply = [&]<int kBlock>(std::integral_constant<int, kBlock>) HWY_ATTR {
      __m256i input[kInputs], offset[kInputs];
      for (int n = 0; n < kInputs; ++n) {
        input[n] = _mm256_loadu_si256(
            reinterpret_cast<const __m256i*>(codes + static_cast<size_t>(n) * codes_stride + kWeightBlock * kBlock));
        offset[n] = _mm256_maddubs_epi16(_mm256_set1_epi8(Block::kOffset), input[n]);
      }
      for (int r = 0; r < kRows; ++r) {
        const uint8_t* block = weights + static_cast<size_t>(r) * row_bytes;
        const __m256i low = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(
            block + kHalf * Block::kLowBytes + kBlock % 2 * static_cast<size_t>(kWeightBlock)));
        const __m256i high =
            _mm256_loadu_si256(reinterpret_cast<const __m256i*>(block + Block::kHighAt + kHalf * Block::kHighBytes));
        const __m256i nibbles = kBlock < 2 ? low : _mm256_srli_epi16(low, 4);
        const __m256i two_bits =
            kBlock < 2 ? _mm256_slli_epi16(high, 4 - 2 * kBlock) : _mm256_srli_epi16(high, 2 * kBlock - 4);
        const __m256i of_weights = _mm256_or_si256(_mm256_and_si256(nibbles, _mm256_set1_epi8(0x0f)),
                                                   _mm256_and_si256(two_bits, _mm256_set1_epi8(0x30)));
        const __m256i of_lane = _mm256_inserti128_si256(_mm256_set1_epi8(2 * kBlock), _mm_set1_epi8(2 * kBlock + 1), 1);
        const __m256i scale16 = _mm256_srai_epi16(_mm256_shuffle_epi8(scales16[r], of_lane), 8);
        for (int n = 0; n < kInputs; ++n) {
          const __m256i pairs = _mm256_sub_epi16(_mm256_maddubs_epi16(of_weights, input[n]), offset[n]);
          sum[r][n] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(_mm256_madd_epi16(pairs, scale16)),
                                      _mm256_broadcast_ss(&products[r][n][2 * kBlock]), sum[r][n]);
        }
      }
    };
    multiply(std::integral_constant<int, 0>());
    multiply(std::integral_constant<int, 1>());
    multiply(std::integral_constant<int, 2>());
    multiply(std::integral_constant<int, 3>());
    codes += Block::kBlocksInHalf * kWeightBlock;
    scales += 2 * Block::kBlocksInHalf;
  };
  for (; num_blocks > 0; num_blocks -= 2 * Block::kBlocksInHalf) {
    half(std::integral_constant<int, 0>());
    half(std::integral_constant<int, 1>());
    weights += Block::kBytes;
  }
  for (int n = 0; n < kInputs; ++n) {
    __m256 of_input[kRows];
    for (int r = 0; r < kRows; ++r) of_input[r] = sum[r][n];
    StoreSums<kRows>(of_input, output + static_cast<size_t>(n) * output_stride);
  }
}

// All rows of input in tiles of 8, 4, 2 and 1 times rows of weights.
template <WeightFormat kFormat, int kRows>
HWY_ATTR void MultiplyGroup(const uint8_t* weights, size_t row_bytes, const RoundedRows& input, float* output,
                            size_t output_stride, const uint8_t* ahead) {
  const auto tiles = [&]<int kTileRows, int kInputs>(int n) HWY_ATTR {
    for (int r = 0; r < kRows; r += kTileRows) {
      const size_t at = static_cast<size_t>(r) * row_bytes;
      const auto tile = [] {
        if constexpr (kFormat == WeightFormat::kQ6_K)
          return &MultiplyTileQ6K<kTileRows, kInputs>;
        else
          return &MultiplyTile<BlockOf<kFormat>, kTileRows, kInputs>;
      }();
      tile(weights + at, row_bytes, input.num_blocks(), input.codes(n), input.num_codes(), input.scales(n),
           input.num_scales(), output + static_cast<size_t>(n) * output_stride + r, output_stride, ahead + at);
    }
  };
  const int num_rows = input.num_rows();
  int n = 0;
  for (; n + 8 <= num_rows; n += 8) tiles.template operator()<1, 8>(n);
  if (n + 4 <= num_rows) {
    tiles.template operator()<1, 4>(n);
    n += 4;
  }
  if (n + 2 <= num_rows) {
    tiles.template operator()<HWY_MIN(kRows, 2), 2>(n);
    n += 2;
  }
  if (n < num_rows) tiles.template operator()<kRows, 1>(n);
}

// In groups of kGroup rows of weights; the rows that are left over one by one.
template <WeightFormat kFormat, int kGroup>
HWY_ATTR void MultiplyGroups(const WeightRows& weights, const RoundedRows& input, float* output, size_t output_stride,
                             const std::byte* next) {
  const auto* data = reinterpret_cast<const uint8_t*>(weights.data);
  const auto* after = reinterpret_cast<const uint8_t*>(next != nullptr ? next : weights.data);
  int i = 0;
  for (; i + kGroup <= weights.num_rows; i += kGroup) {
    const uint8_t* group = data + static_cast<size_t>(i) * weights.row_bytes;
    const uint8_t* ahead = i + kGroup < weights.num_rows ? group + kGroup * weights.row_bytes : after;
    MultiplyGroup<kFormat, kGroup>(group, weights.row_bytes, input, output + i, output_stride, ahead);
  }
  for (; i < weights.num_rows; ++i) {
    MultiplyGroup<kFormat, 1>(data + static_cast<size_t>(i) * weights.row_bytes, weights.row_bytes, input, output + i,
                              output_stride, after);
  }
}

HWY_ATTR void MultiplyRowsImpl(const WeightRows& weights, const RoundedRows& input, float* output, size_t output_stride,
                               const std::byte* next) {
  // What is asked for ahead must still be in the first-level cache when its turn comes: more was slower.
  constexpr size_t kMostAhead = 4096;
  WithFormat(weights.format, [&](auto format) HWY_ATTR {
    const auto multiply = 4 * weights.row_bytes <= kMostAhead   ? MultiplyGroups<format(), 4>
                          : 2 * weights.row_bytes <= kMostAhead ? MultiplyGroups<format(), 2>
                                                                : MultiplyGroups<format(), 1>;
    multiply(weights, input, output, output_stride, next);
  });
}
#else
template <class Block>
int CodeAt(const uint8_t* block, int k) {
  if constexpr (!Block::kNibbles) {
    return static_cast<int8_t>(block[Block::kCodesAt + static_cast<size_t>(k)]);
  } else {
    const int nibble = block[Block::kCodesAt + static_cast<size_t>(k % 16)] >> (k < 16 ? 0 : 4) & 0x0f;
    if constexpr (!Block::kFifthBits) return nibble;
    uint32_t bits;
    std::memcpy(&bits, block + Block::kBitsAt, sizeof bits);
    return nibble | static_cast<int>(bits >> k & 1) << 4;
  }
}

float HalfAt(const uint8_t* at) {
  hwy::float16_t value;
  std::memcpy(&value, at, sizeof value);
  const hn::CappedTag<float, 1> d;
  const hn::Rebind<hwy::float16_t, decltype(d)> d16;
  return hn::GetLane(hn::PromoteTo(d, hn::Load(d16, &value)));
}

// A row's block of 32 times the input's. of_input: its scale, and its sum.
template <WeightFormat kFormat>
float BlockProduct(const uint8_t* row, int b, const int8_t* codes, const float* of_input) {
  if constexpr (kFormat == WeightFormat::kQ6_K) {
    using Block = BlockOfQ6K;
    const uint8_t* block = row + static_cast<size_t>(b / 8) * Block::kBytes;
    const auto in_block = static_cast<size_t>(b % 8), in_half = in_block % 4, half = in_block / 4;
    int32_t products = 0;
    for (size_t k = 0; k < kWeightBlock; ++k) {
      const int low = block[half * Block::kLowBytes + in_half % 2 * kWeightBlock + k] >> (in_half < 2 ? 0 : 4) & 0x0f;
      const int high = block[Block::kHighAt + half * Block::kHighBytes + k] >> (2 * in_half) & 3;
      const int scale16 = static_cast<int8_t>(block[Block::kScalesAt + 2 * in_block + k / 16]);
      products += scale16 * ((low | high << 4) - Block::kOffset) * codes[k];
    }
    return HalfAt(block + Block::kScaleAt) * of_input[0] * static_cast<float>(products);
  } else {
    using Block = BlockOf<kFormat>;
    const uint8_t* block = row + static_cast<size_t>(b) * Block::kBytes;
    int32_t products = 0;
    for (int k = 0; k < kWeightBlock; ++k) products += CodeAt<Block>(block, k) * codes[k];
    const float scale = HalfAt(block), least = Block::kHasLeast ? HalfAt(block + 2) : -Block::kOffset * scale;
    return scale * of_input[0] * static_cast<float>(products) + least * of_input[1];
  }
}

void MultiplyRowsImpl(const WeightRows& weights, const RoundedRows& input, float* output, size_t output_stride,
                      const std::byte* /*next*/) {
  WithFormat(weights.format, [&](auto format) {
    for (int i = 0; i < weights.num_rows; ++i) {
      const auto* row = reinterpret_cast<const uint8_t*>(weights.data) + static_cast<size_t>(i) * weights.row_bytes;
      for (int n = 0; n < input.num_rows(); ++n) {
        float sum = 0;
        for (int b = 0; b < input.num_blocks(); ++b) {
          sum += BlockProduct<format()>(row, b, input.codes(n) + kWeightBlock * b, input.scales(n) + 2 * b);
        }
        output[static_cast<size_t>(n) * output_stride + static_cast<size_t>(i)] = sum;
      }
    }
  });
}
#endif

bool IsFastImpl() { return PITH_BYTE_PRODUCTS_AVX2; }

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace pith::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace pith::kernels {

HWY_EXPORT(RoundRowImpl);
HWY_EXPORT(MultiplyRowsImpl);
HWY_EXPORT(IsFastImpl);

int WeightsInBlock(WeightFormat format) { return format == WeightFormat::kQ6_K ? BlockOfQ6K::kWeights : kWeightBlock; }

size_t WeightBlockBytes(WeightFormat format) {
  return WithFormat(format, [](auto constant) {
    if constexpr (constant() == WeightFormat::kQ6_K)
      return BlockOfQ6K::kBytes;
    else
      return BlockOf<constant()>::kBytes;
  });
}

void RoundedRows::Round(const float* input, size_t stride, int num_rows, int width) {
  PITH_CHECK(width % kWeightBlock == 0);
  num_rows_ = num_rows;
  num_blocks_ = width / kWeightBlock;
  const auto rows = static_cast<size_t>(num_rows);
  if (codes_.size() < rows * num_codes()) codes_.resize(rows * num_codes());
  if (scales_.size() < rows * num_scales()) scales_.resize(rows * num_scales());
  ApplyForcedTarget();
  const auto round_row = HWY_DYNAMIC_DISPATCH(RoundRowImpl);
  for (size_t n = 0; n < rows; ++n) {
    float* scales = scales_.data() + n * num_scales();
    round_row(input + n * stride, num_blocks_, codes_.data() + n * num_codes(), scales);
    std::memset(scales + 2 * num_blocks_, 0, (num_scales() - static_cast<size_t>(2 * num_blocks_)) * sizeof(float));
  }
}

bool ByteProductsAreFast() {
  ApplyForcedTarget();
  return HWY_DYNAMIC_DISPATCH(IsFastImpl)();
}

void MultiplyRows(const WeightRows& weights, const RoundedRows& input, float* output, size_t output_stride,
                  const std::byte* next) {
  HWY_DYNAMIC_DISPATCH(MultiplyRowsImpl)(weights, input, output, output_stride, next);
}

}  // namespace pith::kernels
#endif  // HWY_ONCE
