#include "session/logits.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <numeric>

namespace pith {

Status CheckLogits(std::span<const float> logits) {
  // By bits and without a branch: compilers make vectors of it.
  constexpr uint32_t kInfinity = 0x7f800000;
  uint32_t bad = 0;
  uint32_t finite = 0;
  for (const float logit : logits) {
    const auto bits = std::bit_cast<uint32_t>(logit);
    const uint32_t size = bits & 0x7fffffff;
    bad |= static_cast<uint32_t>(size > kInfinity) | static_cast<uint32_t>(bits == kInfinity);
    finite |= static_cast<uint32_t>(size < kInfinity);
  }
  if (bad == 0 && finite != 0) return {};
  return Corrupt("the model gives logits that are not numbers, so that there is nothing to choose from: its weights may be "
                 "damaged");
}

TokenLogprobs LogprobsOf(std::span<const float> logits, int32_t chosen, int num_top) {
  const float largest = *std::ranges::max_element(logits);
  double sum = 0;
  for (const float logit : logits) sum += std::exp(static_cast<double>(logit - largest));
  const double log_sum = static_cast<double>(largest) + std::log(sum);
  const auto entry = [&](int32_t token) {
    return TokenLogprob{token, static_cast<float>(static_cast<double>(logits[static_cast<size_t>(token)]) - log_sum)};
  };
  TokenLogprobs result{entry(chosen), {}};
  if (num_top <= 0) return result;
  const size_t count = std::min(static_cast<size_t>(num_top), logits.size());
  std::vector<int32_t> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  std::partial_sort(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(count), order.end(), [&](int32_t a, int32_t b) {
    const float x = logits[static_cast<size_t>(a)], y = logits[static_cast<size_t>(b)];
    return x != y ? x > y : a < b;
  });
  for (size_t i = 0; i < count; ++i) result.top.push_back(entry(order[i]));
  return result;
}

}  // namespace pith
