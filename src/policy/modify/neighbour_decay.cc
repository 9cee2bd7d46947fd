#include "policy/modify/neighbour_decay.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <span>

#include "base/parallel.h"
#include "kernels/nearest.h"
#include "policy/terms/key_columns.h"

namespace pith {
namespace {

constexpr double kLeastFactor = 1e-6;

// Sources that are one task.
constexpr size_t kSourceStretch = 64;

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
  const KeyColumns columns = UnitColumns(keys, dim, candidates);
  std::vector<int32_t> order(count);
  std::iota(order.begin(), order.end(), 0);
  const auto score = [&](int32_t c) { return rank.scores[candidates[static_cast<size_t>(c)]]; };
  const auto last_source = order.begin() + static_cast<ptrdiff_t>(options.num_sources);
  std::partial_sort(order.begin(), last_source, order.end(),
                    [&](int32_t a, int32_t b) { return score(a) != score(b) ? score(a) > score(b) : a < b; });
  std::vector<size_t> rank_of(count, count);  // of sources
  for (size_t r = 0; r < options.num_sources; ++r) rank_of[static_cast<size_t>(order[r])] = r;

  std::vector<double> factors(count, 1.0);
  const size_t wanted = std::min(options.num_neighbours, count - 1);
  std::vector<int32_t> nearest(options.num_sources * wanted);
  ParallelStretches(options.num_sources, kSourceStretch, [&](size_t begin, size_t end) {
    kernels::Nearest(columns.units.data(), static_cast<int>(count), static_cast<int>(dim), columns.stride,
                     std::span(order).subspan(begin, end - begin), static_cast<int>(wanted),
                     nearest.data() + begin * wanted);
  });
  for (size_t r = 0; r < options.num_sources; ++r) {
    const auto source = static_cast<size_t>(order[r]);
    for (size_t k = 0; k < wanted; ++k) {
      const auto near = static_cast<size_t>(nearest[r * wanted + k]);
      if (!options.literal && rank_of[near] < r) continue;
      const double exact = Cosine(keys + candidates[source] * dim, keys + candidates[near] * dim, dim);
      factors[near] *= std::max(1 - options.gamma * std::clamp(exact, 0.0, 1.0), kLeastFactor);
    }
  }
  return factors;
}

}  // namespace pith
