#include "policy/learn/key_stability.h"

#include <algorithm>
#include <cmath>

namespace pith {

void KeySimilaritySum::Add(size_t head, size_t first, const float* causal, const float* blocked, size_t count,
                           size_t dim) {
  if (heads_.size() <= head) heads_.resize(head + 1);
  std::vector<Window>& windows = heads_[head];
  for (size_t token = 0; token < count; ++token) {
    const size_t at = (first + token) / window_;
    if (windows.size() <= at) windows.resize(at + 1);
    Window& window = windows[at];
    for (size_t i = token * dim; i < (token + 1) * dim; ++i) {
      const auto a = static_cast<double>(causal[i]);
      const auto b = static_cast<double>(blocked[i]);
      window.dot += a * b;
      window.aa += a * a;
      window.bb += b * b;
    }
  }
}

double KeySimilaritySum::Mean() const {
  double sum = 0;
  size_t count = 0;
  for (const std::vector<Window>& windows : heads_) {
    for (const Window& window : windows) {
      const double lengths = std::sqrt(window.aa * window.bb);
      sum += lengths > 0 ? window.dot / lengths : 0;
    }
    count += windows.size();
  }
  return count > 0 ? sum / static_cast<double>(count) : 1;
}

double KeySimilarity(const KeyPair& keys, size_t window) {
  KeySimilaritySum sum(window);
  for (size_t h = 0; h < keys.num_heads; ++h) {
    const size_t from = h * keys.num_tokens * keys.dim;
    sum.Add(h, 0, keys.causal + from, keys.blocked + from, keys.num_tokens, keys.dim);
  }
  return sum.Mean();
}

}  // namespace pith
