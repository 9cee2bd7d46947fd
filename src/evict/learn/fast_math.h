// Logarithms and powers of two to three digits, the same on every machine, for features of what may be millions of
// requests a second.
#ifndef PITH_EVICT_LEARN_FAST_MATH_H_
#define PITH_EVICT_LEARN_FAST_MATH_H_

#include <bit>
#include <cstdint>

#include "evict/learn/lanes.h"

namespace pith::evict {

// x > 0 and finite; within 0.008 of the logarithm, exact for powers of two.
inline float FastLog2(float x) {
  const auto bits = std::bit_cast<uint32_t>(x);
  const float m = std::bit_cast<float>((bits & 0x007fffffu) | 0x3f800000u);  // in [1, 2)
  // Through 0 at 1 and 1 at 2.
  return static_cast<float>(static_cast<int32_t>(bits >> 23) - 127) + (m - 1) * (1.694f - 0.347f * m);
}

// The same of lanes. (A function that returns them would have another ABI on each processor.)
template <typename L>
[[gnu::always_inline]] inline void FastLog2(const typename L::Floats& x, typename L::Floats& to) {
  const typename L::Bits bits = reinterpret_cast<typename L::Bits>(x);
  const typename L::Floats m = reinterpret_cast<typename L::Floats>((bits & 0x007fffffu) | 0x3f800000u);
  const typename L::Signed exponent = reinterpret_cast<typename L::Signed>(bits >> 23) - 127;
  to = __builtin_convertvector(exponent, typename L::Floats) + (m - 1) * (1.694f - 0.347f * m);
}

// x <= 0; within half a percent of 2^x, 0 below 2^-120.
inline float FastExp2(float x) {
  if (x < -120) return 0;
  const auto whole = static_cast<int32_t>(x) - 1;
  const float rest = x - static_cast<float>(whole);  // in (0, 1]
  const float mantissa = 1 + rest * (0.6565f + 0.3435f * rest);
  return mantissa * std::bit_cast<float>(static_cast<uint32_t>(whole + 127) << 23);
}

}  // namespace pith::evict

#endif  // PITH_EVICT_LEARN_FAST_MATH_H_
