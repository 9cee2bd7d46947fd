// How much a layer's keys change when far tokens are hidden (EpiCache, arXiv:2509.17396, part B;
// github.com/apple/ml-epicache utils/metric.py). The layer budgets follow from it.
#ifndef PITH_POLICY_LEARN_KEY_STABILITY_H_
#define PITH_POLICY_LEARN_KEY_STABILITY_H_

#include <cstddef>

namespace pith {

// Keys of one layer after RoPE, of the same tokens read twice: once causally, once each token seeing
// the first tokens, its own block and the end of the block before.
struct KeyPair {
  const float* causal = nullptr;   // [heads, tokens, dim]
  const float* blocked = nullptr;  // the same
  size_t num_heads = 0;
  size_t num_tokens = 0;
  size_t dim = 0;
};

// Mean cosine over heads and windows of `window` tokens, each window's keys one long vector; a shorter
// last window counts as one. window = 1 is the paper's cosine per token, 100 the code's default.
double KeySimilarity(const KeyPair& keys, size_t window);

}  // namespace pith

#endif  // PITH_POLICY_LEARN_KEY_STABILITY_H_
