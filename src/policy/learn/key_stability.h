// How much a layer's keys change when far tokens are hidden (EpiCache, arXiv:2509.17396, part B;
// github.com/apple/ml-epicache utils/metric.py). The layer budgets follow from it.
#ifndef PITH_POLICY_LEARN_KEY_STABILITY_H_
#define PITH_POLICY_LEARN_KEY_STABILITY_H_

#include <cstddef>
#include <vector>

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

// The mean cosine of such keys, of which some tokens at a time are there.
class KeySimilaritySum {
 public:
  explicit KeySimilaritySum(size_t window) : window_(window < 1 ? 1 : window) {}
  // Of `count` tokens of one head from `first` on. [count, dim]
  void Add(size_t head, size_t first, const float* causal, const float* blocked, size_t count, size_t dim);
  double Mean() const;

 private:
  struct Window {
    double dot = 0, aa = 0, bb = 0;
  };
  size_t window_;
  std::vector<std::vector<Window>> heads_;
};

// Mean cosine over heads and windows of `window` tokens, each window's keys one long vector; a shorter
// last window counts as one. window = 1 is the paper's cosine per token, 100 the code's default.
double KeySimilarity(const KeyPair& keys, size_t window);

}  // namespace pith

#endif  // PITH_POLICY_LEARN_KEY_STABILITY_H_
