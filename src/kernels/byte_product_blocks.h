// How blocks of quantised weights lie in memory, for the kernels of byte_products.h.
#ifndef PITH_KERNELS_BYTE_PRODUCT_BLOCKS_H_
#define PITH_KERNELS_BYTE_PRODUCT_BLOCKS_H_

#include <cstddef>
#include <type_traits>

#include "kernels/byte_products.h"

namespace pith::kernels {

// A block of the formats of 32 weights: weight = scale * (code - kOffset) + least.
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

#endif  // PITH_KERNELS_BYTE_PRODUCT_BLOCKS_H_
