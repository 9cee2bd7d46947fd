#include "policy/learn/key_stability.h"

#include <algorithm>
#include <cmath>

namespace pith {

double KeySimilarity(const KeyPair& keys, size_t window) {
  window = std::max<size_t>(window, 1);
  double sum = 0;
  size_t count = 0;
  for (size_t h = 0; h < keys.num_heads; ++h) {
    for (size_t first = 0; first < keys.num_tokens; first += window, ++count) {
      const size_t from = (h * keys.num_tokens + first) * keys.dim;
      const size_t to = from + std::min(window, keys.num_tokens - first) * keys.dim;
      double dot = 0, aa = 0, bb = 0;
      for (size_t i = from; i < to; ++i) {
        const auto a = static_cast<double>(keys.causal[i]);
        const auto b = static_cast<double>(keys.blocked[i]);
        dot += a * b;
        aa += a * a;
        bb += b * b;
      }
      const double lengths = std::sqrt(aa * bb);
      sum += lengths > 0 ? dot / lengths : 0;
    }
  }
  return count > 0 ? sum / static_cast<double>(count) : 1;
}

}  // namespace pith
