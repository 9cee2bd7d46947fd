// Numbers as float16 holds them, in double.
#ifndef PITH_POLICY_TERMS_HALF_H_
#define PITH_POLICY_TERMS_HALF_H_

#include <algorithm>
#include <cmath>

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

}  // namespace pith

#endif  // PITH_POLICY_TERMS_HALF_H_
