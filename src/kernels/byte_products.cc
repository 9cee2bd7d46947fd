#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/byte_products.cc"
#include <hwy/foreach_target.h>  // IWYU pragma: keep
// Must come after foreach_target.h.
#include <hwy/highway.h>

#include <cmath>
#include <cstring>
#include <type_traits>

#include "base/check.h"
#include "kernels/byte_product_blocks.h"
#include "kernels/byte_products.h"
#include "kernels/byte_products_many.h"
#include "kernels/target.h"

// Vectors of 32 bytes, one block, on every processor of this family: scales are of one block.
#undef PITH_BYTE_PRODUCTS_AVX2
#if HWY_TARGET == HWY_AVX2 || HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_AVX3_DL
#define PITH_BYTE_PRODUCTS_AVX2 1
#else
#define PITH_BYTE_PRODUCTS_AVX2 0
#endif

HWY_BEFORE_NAMESPACE();
namespace pith::kernels {
namespace HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;

// Blocks first .. num_blocks-1 of a row.
HWY_ATTR void RoundBlocks(const float* input, int first, int num_blocks, int8_t* codes, float* scales,
                          int16_t* sums16) {
  const hn::CappedTag<float, 8> d;
  const hn::RebindToSigned<decltype(d)> di;
  const hn::Rebind<int8_t, decltype(d)> d8;
  const int lanes = static_cast<int>(hn::Lanes(d));
  input += kWeightBlock * first;
  codes += kWeightBlock * first;
  for (int b = first; b < num_blocks; ++b, input += kWeightBlock, codes += kWeightBlock) {
    auto largest = hn::Zero(d);
    for (int c = 0; c < kWeightBlock; c += lanes) largest = hn::Max(largest, hn::Abs(hn::LoadU(d, input + c)));
    const float scale = hn::GetLane(hn::MaxOfLanes(d, largest)) / 127;
    const auto inverse = hn::Set(d, scale > 0 ? 1 / scale : 0);
    int32_t sum = 0;
    for (int half = 0; half < 2; ++half) {
      auto of_half = hn::Zero(di);
      for (int c = half * kWeightBlock / 2; c < (half + 1) * kWeightBlock / 2; c += lanes) {
        const auto code = hn::NearestInt(hn::Mul(hn::LoadU(d, input + c), inverse));
        of_half = hn::Add(of_half, code);
        hn::StoreU(hn::DemoteTo(d8, code), d8, codes + c);
      }
      const int32_t sum16 = hn::GetLane(hn::SumOfLanes(di, of_half));
      sums16[2 * b + half] = static_cast<int16_t>(sum16);
      sum += sum16;
    }
    scales[RoundedRows::ScaleAt(b)] = scale;
    scales[RoundedRows::SumAt(b)] = scale * static_cast<float>(sum);
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

// Sums of products of a block's codes with signed bytes: of two in 16 bits, or of four in 32 for codes of 8 bits.
template <class Block>
HWY_INLINE __m256i Products(__m256i codes, __m256i input) {
  if constexpr (Block::kNibbles) return _mm256_maddubs_epi16(codes, input);
  // Of codes that have signs, the sign goes to the input.
  const __m256i first = _mm256_abs_epi8(codes), second = _mm256_sign_epi8(input, codes);
#if HWY_TARGET == HWY_AVX3_DL
  __m256i sums = _mm256_setzero_si256();
  // Highway 1.0.3 detects VNNI for this target but does not name it to the compiler, which refuses the intrinsic.
  asm("vpdpbusd %2, %1, %0" : "+v"(sums) : "v"(first), "v"(second));
  return sums;
#else
  return _mm256_madd_epi16(_mm256_maddubs_epi16(first, second), _mm256_set1_epi16(1));
#endif
}

// The sums of four blocks, side by side. kOf16: `of` are sums in 16 bits, eight of which fit them once more.
template <bool kOf16>
HWY_INLINE __m128i SumsOfBlocks(const __m256i* of) {
  const auto add = [](__m256i a, __m256i b)
                       HWY_ATTR { return kOf16 ? _mm256_add_epi16(a, b) : _mm256_add_epi32(a, b); };
  // 64 bits of either block in both halves of a vector, then 32 of each of the four.
  const auto join = [&](__m256i a, __m256i b)
                        HWY_ATTR { return add(_mm256_blend_epi32(a, b, 0xcc), _mm256_alignr_epi8(b, a, 8)); };
  const __m256 first = _mm256_castsi256_ps(join(of[0], of[1])), last = _mm256_castsi256_ps(join(of[2], of[3]));
  const __m256i all = add(_mm256_castps_si256(_mm256_shuffle_ps(first, last, 0x88)),
                          _mm256_castps_si256(_mm256_shuffle_ps(first, last, 0xdd)));
  const __m256i halves = kOf16 ? _mm256_madd_epi16(all, _mm256_set1_epi16(1)) : all;
  return _mm_add_epi32(_mm256_castsi256_si128(halves), _mm256_extracti128_si256(halves, 1));
}

// The largest value of four blocks each, from eight of each.
HWY_INLINE __m128 LargestOfBlocks(const __m256* of) {
  const auto join = [](__m256 a, __m256 b) HWY_ATTR {
    const __m256i turned = _mm256_alignr_epi8(_mm256_castps_si256(b), _mm256_castps_si256(a), 8);
    return _mm256_max_ps(_mm256_blend_ps(a, b, 0xcc), _mm256_castsi256_ps(turned));
  };
  const __m256 first = join(of[0], of[1]), last = join(of[2], of[3]);
  const __m256 all = _mm256_max_ps(_mm256_shuffle_ps(first, last, 0x88), _mm256_shuffle_ps(first, last, 0xdd));
  return _mm_max_ps(_mm256_castps256_ps128(all), _mm256_extractf128_ps(all, 1));
}

// RoundBlocks, four at a time: every thread rounds all rows for each matrix.
HWY_ATTR void RoundRowImpl(const float* input, int num_blocks, int8_t* codes, float* scales, int16_t* sums16) {
  const __m256 sign = _mm256_set1_ps(-0.0F);
  int first = 0;
  for (; first + 4 <= num_blocks; first += 4) {
    const float* from = input + kWeightBlock * first;
    __m256 largest[4];
    for (int b = 0; b < 4; ++b) {
      const auto size = [&](int i) HWY_ATTR {
        return _mm256_andnot_ps(sign, _mm256_loadu_ps(from + kWeightBlock * b + 8 * i));
      };
      largest[b] = _mm256_max_ps(_mm256_max_ps(size(0), size(1)), _mm256_max_ps(size(2), size(3)));
    }
    const __m128 scale = _mm_div_ps(LargestOfBlocks(largest), _mm_set1_ps(127));
    const __m128 is_any = _mm_cmpgt_ps(scale, _mm_setzero_ps());
    alignas(16) float inverse[4];
    _mm_store_ps(inverse, _mm_and_ps(is_any, _mm_div_ps(_mm_set1_ps(1), scale)));
    __m256i halves[8];  // two of each block
    for (int b = 0; b < 4; ++b) {
      const __m256 factor = _mm256_broadcast_ss(&inverse[b]);
      const auto code = [&](int i) HWY_ATTR {
        return _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(from + kWeightBlock * b + 8 * i), factor));
      };
      const __m256i c0 = code(0), c1 = code(1), c2 = code(2), c3 = code(3);
      halves[2 * b] = _mm256_add_epi32(c0, c1);
      halves[2 * b + 1] = _mm256_add_epi32(c2, c3);
      const __m256i mixed = _mm256_packs_epi16(_mm256_packs_epi32(c0, c1), _mm256_packs_epi32(c2, c3));
      const __m256i in_order = _mm256_permutevar8x32_epi32(mixed, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(codes + kWeightBlock * (first + b)), in_order);
    }
    const __m128i of_halves = _mm_packs_epi32(SumsOfBlocks<false>(halves), SumsOfBlocks<false>(halves + 4));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(sums16 + 2 * first), of_halves);
    const __m128 sums = _mm_cvtepi32_ps(_mm_madd_epi16(of_halves, _mm_set1_epi16(1)));
    _mm_storeu_ps(scales + RoundedRows::ScaleAt(first), scale);
    _mm_storeu_ps(scales + RoundedRows::SumAt(first), _mm_mul_ps(scale, sums));
  }
  RoundBlocks(input, first, num_blocks, codes, scales, sums16);
}

// (sum of the first four lanes) + (sum of the others) of kCount vectors, at most four.
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

HWY_INLINE __m256 Whole(__m256 chains) { return chains; }
HWY_INLINE __m256 Whole(__m128 chains) { return _mm256_zextps128_ps256(chains); }

template <int kRows, int kInputs, class Chains>
HWY_INLINE void StoreTile(const Chains (&sum)[kRows][kInputs], float* output, size_t output_stride) {
  for (int n = 0; n < kInputs; ++n) {
    __m256 of_input[kRows];
    for (int r = 0; r < kRows; ++r) of_input[r] = Whole(sum[r][n]);
    StoreSums<kRows>(of_input, output + static_cast<size_t>(n) * output_stride);
  }
}

// Scales of kBlocks blocks, then their least weights.
template <class Block, int kBlocks>
HWY_INLINE __m256 Scales(const uint8_t* block) {
  int32_t words[4] = {};
  for (int b = 0; b < kBlocks; ++b) std::memcpy(&words[b], block + static_cast<size_t>(b) * Block::kBytes, 4);
  const __m128i order = Block::kHasLeast ? _mm_setr_epi8(0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15)
                                         : _mm_setr_epi8(0, 1, 4, 5, 8, 9, 12, 13, -1, -1, -1, -1, -1, -1, -1, -1);
  return _mm256_cvtph_ps(_mm_shuffle_epi8(_mm_setr_epi32(words[0], words[1], words[2], words[3]), order));
}

// A row of input from some block on.
struct InputRow {
  const int8_t* codes;
  const float* scales;
  const int16_t* sums16;
};

// kRows rows of weights times kInputs rows of input. Asks for kRows rows from `ahead` on in the order of addresses,
// beside the arithmetic: processors of AMD continue by themselves only what goes on in that order, and drop a prefetch
// that finds no free miss buffer.
template <class Block, int kRows, int kInputs>
HWY_ATTR void MultiplyTile(const uint8_t* weights, size_t row_bytes, int num_blocks, const InputRow* input,
                           float* output, size_t output_stride, const uint8_t* ahead) {
  __m256 sum[kRows][kInputs];  // chains of blocks, then those of least weights
  for (int r = 0; r < kRows; ++r) {
    for (int n = 0; n < kInputs; ++n) sum[r][n] = _mm256_setzero_ps();
  }
  int first = 0;
  const auto step = [&]<int kBlocks>(std::integral_constant<int, kBlocks>) HWY_ATTR {
    constexpr size_t kStepBytes = kBlocks * Block::kBytes;
    __m256i products[kRows][kInputs][4];
    for (size_t at = 0; at < kRows * kStepBytes; at += 64) {
      _mm_prefetch(reinterpret_cast<const char*>(ahead + at), _MM_HINT_NTA);
    }
    for (int b = 0; b < 4; ++b) {
      __m256i of_input[kInputs];
      for (int n = 0; n < kInputs && b < kBlocks; ++n) {
        of_input[n] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(input[n].codes + kWeightBlock * (first + b)));
      }
      for (int r = 0; r < kRows; ++r) {
        __m256i codes = _mm256_setzero_si256();
        if (b < kBlocks) {
          codes = Codes<Block>(weights + static_cast<size_t>(r) * row_bytes + static_cast<size_t>(b) * Block::kBytes);
        }
        for (int n = 0; n < kInputs; ++n) {
          products[r][n][b] = b < kBlocks ? Products<Block>(codes, of_input[n]) : _mm256_setzero_si256();
        }
      }
    }
    for (int r = 0; r < kRows; ++r) {
      const __m256 of_weights = Scales<Block, kBlocks>(weights + static_cast<size_t>(r) * row_bytes);
      for (int n = 0; n < kInputs; ++n) {
        __m128i sums = SumsOfBlocks<Block::kNibbles>(products[r][n]);
        if constexpr (Block::kOffset != 0) {
          const __m128i sums16 = _mm_loadu_si128(reinterpret_cast<const __m128i*>(input[n].sums16 + 2 * first));
          sums = _mm_sub_epi32(sums, _mm_madd_epi16(sums16, _mm_set1_epi16(Block::kOffset)));
        }
        const __m256 exact = _mm256_castps128_ps256(_mm_cvtepi32_ps(sums));
        const __m256 of_input = _mm256_loadu_ps(input[n].scales + 2 * first);
        const __m256 scales = _mm256_mul_ps(of_weights, of_input);
        if constexpr (Block::kHasLeast) {
          sum[r][n] = _mm256_fmadd_ps(_mm256_blend_ps(of_weights, exact, 0x0f), _mm256_blend_ps(of_input, scales, 0x0f),
                                      sum[r][n]);
        } else {
          sum[r][n] = _mm256_zextps128_ps256(_mm_fmadd_ps(_mm256_castps256_ps128(exact), _mm256_castps256_ps128(scales),
                                                          _mm256_castps256_ps128(sum[r][n])));
        }
      }
    }
    ahead += kRows * kStepBytes;
    weights += kStepBytes;
    first += kBlocks;
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
  StoreTile<kRows, kInputs>(sum, output, output_stride);
}

// The same for Q6_K, whose width is a multiple of 256. What the offset of codes adds is taken off pairs of products,
// before scales of 16 weights multiply them.
template <int kRows, int kInputs>
HWY_ATTR void MultiplyTileQ6K(const uint8_t* weights, size_t row_bytes, int num_blocks, const InputRow* input,
                              float* output, size_t output_stride, const uint8_t* ahead) {
  using Block = BlockOfQ6K;
  __m128 sum[kRows][kInputs];
  for (int r = 0; r < kRows; ++r) {
    for (int n = 0; n < kInputs; ++n) sum[r][n] = _mm_setzero_ps();
  }
  int first = 0;
  const auto half = [&]<int kHalf>(std::integral_constant<int, kHalf>) HWY_ATTR {
    __m256i products[kRows][kInputs][4], scales16[kRows];
    for (size_t at = 0; at < kRows * Block::kBytes / 2; at += 64) {
      _mm_prefetch(reinterpret_cast<const char*>(ahead + at), _MM_HINT_NTA);
    }
    ahead += kRows * Block::kBytes / 2;
    for (int r = 0; r < kRows; ++r) {
      int64_t eight;
      std::memcpy(&eight, weights + static_cast<size_t>(r) * row_bytes + Block::kScalesAt + kHalf * sizeof eight,
                  sizeof eight);
      scales16[r] = _mm256_set1_epi64x(eight);
    }
    const auto multiply = [&]<int kBlock>(std::integral_constant<int, kBlock>) HWY_ATTR {
      __m256i of_input[kInputs], offset[kInputs];
      for (int n = 0; n < kInputs; ++n) {
        of_input[n] =
            _mm256_loadu_si256(reinterpret_cast<const __m256i*>(input[n].codes + kWeightBlock * (first + kBlock)));
        offset[n] = _mm256_maddubs_epi16(_mm256_set1_epi8(Block::kOffset), of_input[n]);
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
          const __m256i pairs = _mm256_sub_epi16(_mm256_maddubs_epi16(of_weights, of_input[n]), offset[n]);
          products[r][n][kBlock] = _mm256_madd_epi16(pairs, scale16);
        }
      }
    };
    multiply(std::integral_constant<int, 0>());
    multiply(std::integral_constant<int, 1>());
    multiply(std::integral_constant<int, 2>());
    multiply(std::integral_constant<int, 3>());
    for (int r = 0; r < kRows; ++r) {
      uint16_t bits;
      std::memcpy(&bits, weights + static_cast<size_t>(r) * row_bytes + Block::kScaleAt, sizeof bits);
      const __m128 scale = _mm_broadcastss_ps(_mm_cvtph_ps(_mm_cvtsi32_si128(bits)));
      for (int n = 0; n < kInputs; ++n) {
        const __m128 scales = _mm_mul_ps(scale, _mm_loadu_ps(input[n].scales + 2 * first));
        sum[r][n] = _mm_fmadd_ps(_mm_cvtepi32_ps(SumsOfBlocks<false>(products[r][n])), scales, sum[r][n]);
      }
    }
    first += Block::kBlocksInHalf;
  };
  for (; num_blocks > 0; num_blocks -= 2 * Block::kBlocksInHalf) {
    half(std::integral_constant<int, 0>());
    half(std::integral_constant<int, 1>());
    weights += Block::kBytes;
  }
  StoreTile<kRows, kInputs>(sum, output, output_stride);
}

// All rows of input in tiles of 2 and 1 times rows of weights.
template <WeightFormat kFormat, int kRows>
HWY_ATTR void MultiplyGroup(const uint8_t* weights, size_t row_bytes, const RoundedRows& input, float* output,
                            size_t output_stride, const uint8_t* ahead) {
  const auto tiles = [&]<int kTileRows, int kInputs>(int n) HWY_ATTR {
    InputRow rows[kInputs];
    for (int i = 0; i < kInputs; ++i) rows[i] = {input.codes(n + i), input.scales(n + i), input.sums16(n + i)};
    for (int r = 0; r < kRows; r += kTileRows) {
      const size_t at = static_cast<size_t>(r) * row_bytes;
      const auto tile = [] {
        if constexpr (kFormat == WeightFormat::kQ6_K)
          return &MultiplyTileQ6K<kTileRows, kInputs>;
        else
          return &MultiplyTile<BlockOf<kFormat>, kTileRows, kInputs>;
      }();
      tile(weights + at, row_bytes, input.num_blocks(), rows, output + static_cast<size_t>(n) * output_stride + r,
           output_stride, ahead + at);
    }
  };
  const int num_rows = input.num_rows();
  int n = 0;
  for (; n + 2 <= num_rows; n += 2) tiles.template operator()<HWY_MIN(kRows, 2), 2>(n);
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
HWY_ATTR void RoundRowImpl(const float* input, int num_blocks, int8_t* codes, float* scales, int16_t* sums16) {
  RoundBlocks(input, 0, num_blocks, codes, scales, sums16);
}

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

// A row's block: its products with the input's codes, exact, and what they and the input's sum are worth.
struct BlockProduct {
  int32_t products;
  float scale, least;
};

template <WeightFormat kFormat>
BlockProduct ProductOf(const uint8_t* row, int b, const int8_t* codes) {
  int32_t products = 0;
  if constexpr (kFormat == WeightFormat::kQ6_K) {
    using Block = BlockOfQ6K;
    const uint8_t* block = row + static_cast<size_t>(b / 8) * Block::kBytes;
    const auto in_block = static_cast<size_t>(b % 8), in_half = in_block % 4, half = in_block / 4;
    for (size_t k = 0; k < kWeightBlock; ++k) {
      const int low = block[half * Block::kLowBytes + in_half % 2 * kWeightBlock + k] >> (in_half < 2 ? 0 : 4) & 0x0f;
      const int high = block[Block::kHighAt + half * Block::kHighBytes + k] >> (2 * in_half) & 3;
      const int scale16 = static_cast<int8_t>(block[Block::kScalesAt + 2 * in_block + k / 16]);
      products += scale16 * ((low | high << 4) - Block::kOffset) * codes[k];
    }
    return {products, HalfAt(block + Block::kScaleAt), 0};
  } else {
    using Block = BlockOf<kFormat>;
    const uint8_t* block = row + static_cast<size_t>(b) * Block::kBytes;
    for (int k = 0; k < kWeightBlock; ++k) products += (CodeAt<Block>(block, k) - Block::kOffset) * codes[k];
    return {products, HalfAt(block), Block::kHasLeast ? HalfAt(block + 2) : 0};
  }
}

void MultiplyRowsImpl(const WeightRows& weights, const RoundedRows& input, float* output, size_t output_stride,
                      const std::byte* /*next*/) {
  WithFormat(weights.format, [&](auto format) {
    for (int i = 0; i < weights.num_rows; ++i) {
      const auto* row = reinterpret_cast<const uint8_t*>(weights.data) + static_cast<size_t>(i) * weights.row_bytes;
      for (int n = 0; n < input.num_rows(); ++n) {
        const float* scales = input.scales(n);
        float c[4] = {}, l[4] = {};
        for (int b = 0; b < input.num_blocks(); ++b) {
          const BlockProduct block = ProductOf<format()>(row, b, input.codes(n) + kWeightBlock * b);
          const float scale = block.scale * scales[RoundedRows::ScaleAt(b)];
          c[b % 4] = std::fma(static_cast<float>(block.products), scale, c[b % 4]);
          l[b % 4] = std::fma(block.least, scales[RoundedRows::SumAt(b)], l[b % 4]);
        }
        output[static_cast<size_t>(n) * output_stride + static_cast<size_t>(i)] =
            ((c[0] + c[1]) + (c[2] + c[3])) + ((l[0] + l[1]) + (l[2] + l[3]));
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

void RoundedRows::Reserve(int num_rows, int width) {
  const auto rows = static_cast<size_t>(num_rows);
  const size_t codes = rows * static_cast<size_t>(width), scales = rows * ScalesOf(width / kWeightBlock);
  if (codes_.size() < codes) codes_.resize(codes);
  if (scales_.size() < scales) scales_.resize(scales);
  if (sums16_.size() < scales) sums16_.resize(scales);
}

void RoundedRows::Round(const float* input, size_t stride, int num_rows, int width) {
  PITH_CHECK(width % kWeightBlock == 0);
  num_rows_ = num_rows;
  num_blocks_ = width / kWeightBlock;
  Reserve(num_rows, width);
  ApplyForcedTarget();
  const auto round_row = HWY_DYNAMIC_DISPATCH(RoundRowImpl);
  for (size_t n = 0; n < static_cast<size_t>(num_rows); ++n) {
    float* scales = scales_.data() + n * num_scales();
    int16_t* sums16 = sums16_.data() + n * num_scales();
    if (num_blocks_ % 4 != 0) {
      std::memset(scales + num_scales() - 8, 0, 8 * sizeof(float));
      std::memset(sums16 + num_scales() - 8, 0, 8 * sizeof(int16_t));
    }
    round_row(input + n * stride, num_blocks_, codes_.data() + n * num_codes(), scales, sums16);
  }
}

bool ByteProductsAreFast() {
  ApplyForcedTarget();
  return HWY_DYNAMIC_DISPATCH(IsFastImpl)();
}

void MultiplyRows(const WeightRows& weights, const RoundedRows& input, float* output, size_t output_stride,
                  const std::byte* next) {
  if (input.num_rows() >= kManyRows && ByteProductsAreFast()) {
    return MultiplyManyRows(weights, input, output, output_stride, next);
  }
  HWY_DYNAMIC_DISPATCH(MultiplyRowsImpl)(weights, input, output, output_stride, next);
}

}  // namespace pith::kernels
#endif  // HWY_ONCE
