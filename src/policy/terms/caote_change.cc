#include "policy/terms/caote_change.h"

#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

namespace pith {

void OutputChange(std::span<const float> weights, const float* values, int dim, bool fast, std::span<float> change) {
  const size_t n = weights.size();
  const auto width = static_cast<size_t>(dim);
  const double total = std::accumulate(weights.begin(), weights.end(), 0.0);
  std::vector<double> output(width, 0.0);
  for (size_t i = 0; i < n; ++i) {
    const double share =
        fast ? 1.0 / static_cast<double>(n) : (total > 0 ? static_cast<double>(weights[i]) / total : 0);
    if (share == 0) continue;
    for (size_t d = 0; d < width; ++d) output[d] += share * static_cast<double>(values[i * width + d]);
  }
  for (size_t j = 0; j < n; ++j) {
    const auto weight = static_cast<double>(weights[j]);
    const double others = total - weight;
    if (weight <= 0) {
      change[j] = 0;
      continue;
    }
    if (others <= 0) {
      change[j] = std::numeric_limits<float>::infinity();
      continue;
    }
    double squares = 0;
    for (size_t d = 0; d < width; ++d) {
      const double diff = output[d] - static_cast<double>(values[j * width + d]);
      squares += diff * diff;
    }
    change[j] = static_cast<float>(weight / others * std::sqrt(squares));
  }
}

}  // namespace pith
