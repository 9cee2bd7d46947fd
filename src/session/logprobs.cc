#include "session/logprobs.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace pith {

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
  std::partial_sort(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(count), order.end(),
                    [&](int32_t a, int32_t b) {
                      const float x = logits[static_cast<size_t>(a)], y = logits[static_cast<size_t>(b)];
                      return x != y ? x > y : a < b;
                    });
  for (size_t i = 0; i < count; ++i) result.top.push_back(entry(order[i]));
  return result;
}

}  // namespace pith
