// Whether logits are numbers at all.
#ifndef PITH_BASE_LOGITS_H_
#define PITH_BASE_LOGITS_H_

#include <bit>
#include <cstdint>
#include <span>

#include "pith/types.h"

namespace pith {

// kCorrupt: there are none, one is no number or above every number, or all are -inf: damaged weights, or sums beyond
// what a float holds. Of as many rows as there are; the last rule is of all rows together.
inline Status CheckLogits(std::span<const float> logits) {
  // By bits and without a branch: compilers make vectors of it.
  constexpr uint32_t kInfinity = 0x7f800000;
  uint32_t bad = 0, finite = 0;
  for (const float logit : logits) {
    const auto bits = std::bit_cast<uint32_t>(logit);
    const uint32_t size = bits & 0x7fffffff;
    bad |= static_cast<uint32_t>(size > kInfinity) | static_cast<uint32_t>(bits == kInfinity);
    finite |= static_cast<uint32_t>(size < kInfinity);
  }
  if (bad == 0 && finite != 0) return {};
  return Corrupt(
      "the model gives logits that are not numbers, so that there is nothing to choose from: its weights may be "
      "damaged");
}

}  // namespace pith

#endif  // PITH_BASE_LOGITS_H_
