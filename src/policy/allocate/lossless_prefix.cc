#include "policy/allocate/lossless_prefix.h"

#include <algorithm>
#include <cmath>

namespace pith {
namespace {

// Mean over the last rows that can see the entry, squared; entry i. [n] per query head.
std::vector<double> Squares(const LayerInputs& inputs, const HeadInputs& head, int g, int rows) {
  const WindowProbs probs(inputs, head, rows, /*all_columns=*/true);
  std::vector<double> squares(static_cast<size_t>(head.num_entries), 0.0);
  for (size_t j = 0; j < squares.size(); ++j) {
    double sum = 0;
    for (int t = 0; t < probs.rows(); ++t) sum += static_cast<double>(probs.row(g, t)[j]);
    const double seen = std::min(static_cast<double>(probs.rows()), static_cast<double>(squares.size() - j));
    squares[j] = (sum / seen) * (sum / seen);
  }
  return squares;
}

}  // namespace

int SharedSuffix(const LayerInputs& inputs, const PrefixOptions& options) {
  std::vector<double> norms;  // [s]: sum over query heads of the norm of the newest s entries
  for (const HeadInputs& head : inputs.heads) {
    const size_t length = static_cast<size_t>(std::max(0, head.num_entries - options.sinks));
    if (norms.size() < length + 1) norms.resize(length + 1, norms.empty() ? 0 : norms.back());
    for (int g = 0; g < inputs.group; ++g) {
      const std::vector<double> squares = Squares(inputs, head, g, options.rows);
      double sum = 0;
      for (size_t s = 0; s < norms.size(); ++s) {
        if (s > 0 && s <= length) sum += squares[squares.size() - s];
        norms[s] += std::sqrt(sum);
      }
    }
  }
  if (norms.size() < 2 || !(norms.back() > 0)) return 1;
  size_t s = 1;
  while (s + 1 < norms.size() && (norms.back() - norms[s]) / norms.back() > options.threshold) ++s;
  return static_cast<int>(s);
}

int LargestPrefix(const LayerInputs& inputs, const HeadInputs& head, const PrefixOptions& options) {
  const auto n = static_cast<size_t>(head.num_entries);
  const size_t sinks = std::min(n, static_cast<size_t>(options.sinks));
  size_t most = std::min(n, sinks + static_cast<size_t>(options.floor));
  if (options.floor == 0) most = std::min<size_t>(n, 1);
  for (int g = 0; g < inputs.group; ++g) {
    const std::vector<double> squares = Squares(inputs, head, g, options.rows);
    double full = 0;
    for (size_t i = n; i-- > 0;) full += squares[i];
    double sum = 0;
    size_t count = 0;
    while (count < n) {
      sum += squares[count < sinks ? count : n - 1 - (count - sinks)];
      ++count;
      if (full > 0 && 1 - std::sqrt(sum / full) < options.threshold) break;
    }
    most = std::max(most, count);
  }
  return static_cast<int>(most);
}

}  // namespace pith
