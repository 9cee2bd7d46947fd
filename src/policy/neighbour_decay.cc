#include "policy/neighbour_decay.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace pith {
namespace {

constexpr double kLeastFactor = 1e-6;

// The candidates' keys at unit length, transposed: [dim, candidates].
std::vector<float> Directions(const float* keys, const std::vector<size_t>& candidates, size_t dim) {
  std::vector<float> out(dim * candidates.size());
  for (size_t c = 0; c < candidates.size(); ++c) {
    const float* key = keys + candidates[c] * dim;
    float squares = 0;
    for (size_t d = 0; d < dim; ++d) squares += key[d] * key[d];
    const float scale = squares > 0 ? 1 / std::sqrt(squares) : 0;
    for (size_t d = 0; d < dim; ++d) out[d * candidates.size() + c] = key[d] * scale;
  }
  return out;
}

double Cosine(const float* a, const float* b, size_t dim) {
  double dot = 0, aa = 0, bb = 0;
  for (size_t d = 0; d < dim; ++d) {
    const double x = static_cast<double>(a[d]);
    const double y = static_cast<double>(b[d]);
    dot += x * y;
    aa += x * x;
    bb += y * y;
  }
  const double lengths = std::sqrt(aa * bb);
  return lengths > 0 ? dot / lengths : 0;
}

}  // namespace

// Neighbours are found in float32; their cosines are then taken in double,
// since 1 - cos of near-copies has few digits left.
std::vector<double> DecayFactors(const HeadRank& rank, const std::vector<size_t>& candidates,
                                 const DecayOptions& options) {
  const auto dim = static_cast<size_t>(rank.key_dim);
  const float* keys = rank.inputs->keys;
  const size_t count = candidates.size();
  const std::vector<float> directions = Directions(keys, candidates, dim);
  std::vector<size_t> order(count);
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return rank.scores[candidates[a]] > rank.scores[candidates[b]]; });
  std::vector<size_t> rank_of(count);
  for (size_t r = 0; r < count; ++r) rank_of[order[r]] = r;

  std::vector<double> factors(count, 1.0);
  std::vector<float> cosine(count);
  std::vector<size_t> near(count);
  for (size_t r = 0; r < options.num_sources; ++r) {
    const size_t source = order[r];
    std::fill(cosine.begin(), cosine.end(), 0.0F);
    for (size_t d = 0; d < dim; ++d) {
      const float* row = directions.data() + d * count;
      const float x = row[source];
      for (size_t c = 0; c < count; ++c) cosine[c] += x * row[c];
    }
    cosine[source] = -2;  // not its own neighbour
    std::iota(near.begin(), near.end(), size_t{0});
    const size_t wanted = std::min(options.num_neighbours, count - 1);
    std::partial_sort(near.begin(), near.begin() + static_cast<ptrdiff_t>(wanted), near.end(),
                      [&](size_t a, size_t b) { return cosine[a] != cosine[b] ? cosine[a] > cosine[b] : a < b; });
    for (size_t k = 0; k < wanted; ++k) {
      if (!options.literal && rank_of[near[k]] < r) continue;
      const double exact = Cosine(keys + candidates[source] * dim, keys + candidates[near[k]] * dim, dim);
      factors[near[k]] *= std::max(1 - options.gamma * std::clamp(exact, 0.0, 1.0), kLeastFactor);
    }
  }
  return factors;
}

}  // namespace pith
