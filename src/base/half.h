// Numbers as float16 holds them, in double.
#ifndef PITH_BASE_HALF_H_
#define PITH_BASE_HALF_H_

#include <algorithm>
#include <cmath>
#include <cstdint>

namespace pith {

inline const double kLeastHalf = std::ldexp(1.0, -24);

// The nearest float16, ties to even.
inline double RoundToHalf(double value) {
  if (value == 0 || !std::isfinite(value)) return value;
  constexpr int kMantissaBits = 10, kLeastExponent = -14;
  constexpr double kGreatest = 65504;
  const double quantum = std::ldexp(1.0, std::max(std::ilogb(value), kLeastExponent) - kMantissaBits);
  return std::clamp(std::nearbyint(value / quantum) * quantum, -kGreatest, kGreatest);
}

// The bits of a number that float16 holds, from 0 on.
inline uint16_t HalfBits(double value) {
  if (value < std::ldexp(1.0, -14)) return static_cast<uint16_t>(value / kLeastHalf);
  const int exponent = std::ilogb(value);
  return static_cast<uint16_t>((exponent + 14) * 1024 + static_cast<int>(std::ldexp(value, 10 - exponent)));
}
// And back; bits of a finite number without a sign.
inline double HalfOf(uint16_t bits) {
  const int exponent = bits >> 10, mantissa = bits & 1023;
  return exponent == 0 ? mantissa * kLeastHalf : std::ldexp(1024 + mantissa, exponent - 25);
}
inline bool IsFiniteHalf(uint16_t bits) { return (bits & 0x7c00) != 0x7c00; }

}  // namespace pith

#endif  // PITH_BASE_HALF_H_
