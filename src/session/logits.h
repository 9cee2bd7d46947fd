// Logits before they are sampled from: whether they are numbers at all, and their log probabilities.
#ifndef PITH_SESSION_LOGITS_H_
#define PITH_SESSION_LOGITS_H_

#include <cstdint>
#include <span>
#include <vector>

#include "pith/types.h"

namespace pith {

// kCorrupt: there are none, one is no number or above every number, or all are -inf: damaged weights, or sums beyond
// what a float holds.
Status CheckLogits(std::span<const float> logits);

struct TokenLogprob {
  int32_t token = -1;
  float logprob = 0;  // natural logarithm of the softmax over the whole vocabulary
};

struct TokenLogprobs {
  TokenLogprob chosen;
  std::vector<TokenLogprob> top;  // the likeliest, descending
};

// Before any sampler has changed them. num_top: at most so many in `top`.
TokenLogprobs LogprobsOf(std::span<const float> logits, int32_t chosen, int num_top);

}  // namespace pith

#endif  // PITH_SESSION_LOGITS_H_
