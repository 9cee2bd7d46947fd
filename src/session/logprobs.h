// Log probabilities of logits, before they are sampled from.
#ifndef PITH_SESSION_LOGPROBS_H_
#define PITH_SESSION_LOGPROBS_H_

#include <cstdint>
#include <span>
#include <vector>

namespace pith {

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

#endif  // PITH_SESSION_LOGPROBS_H_
