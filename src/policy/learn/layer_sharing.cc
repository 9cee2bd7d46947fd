#include "policy/learn/layer_sharing.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/check.h"

namespace pith {
namespace {

double MeanDistance(const std::vector<double>& a, const std::vector<double>& b, size_t dim) {
  PITH_CHECK(a.size() == b.size() && dim > 0 && a.size() % dim == 0);
  double sum = 0;
  for (size_t row = 0; row < a.size(); row += dim) {
    double squares = 0;
    for (size_t d = row; d < row + dim; ++d) squares += (a[d] - b[d]) * (a[d] - b[d]);
    sum += std::sqrt(squares);
  }
  return a.empty() ? 0 : sum / static_cast<double>(a.size() / dim);
}

}  // namespace

std::vector<double> MeanOverTexts(std::span<const float> caches, size_t texts) {
  PITH_CHECK(texts > 0 && caches.size() % texts == 0);
  const size_t width = caches.size() / texts;
  std::vector<double> mean(width, 0.0);
  for (size_t i = 0; i < caches.size(); ++i) mean[i % width] += static_cast<double>(caches[i]);
  for (double& x : mean) x /= static_cast<double>(texts);
  return mean;
}

double CacheDistance(const MeanCache& a, const MeanCache& b, size_t dim) {
  return (MeanDistance(a.keys, b.keys, dim) + MeanDistance(a.values, b.values, dim)) / 2;
}

std::vector<std::pair<int, int>> DissimilarFirst(const std::vector<std::vector<double>>& distance) {
  std::vector<std::pair<int, int>> pairs;
  for (int l = 0; l < static_cast<int>(distance.size()); ++l) {
    for (int m = 0; m < l; ++m) pairs.emplace_back(l, m);
  }
  const auto of = [&](const std::pair<int, int>& p) {
    return distance[static_cast<size_t>(p.first)][static_cast<size_t>(p.second)];
  };
  std::stable_sort(pairs.begin(), pairs.end(), [&](const auto& a, const auto& b) { return of(a) > of(b); });
  return pairs;
}

SharingMap WithPair(SharingMap map, int l, int m) {
  map[static_cast<size_t>(l)] = m;
  for (size_t a = 0; a < map.size(); ++a) map[a] = map[static_cast<size_t>(map[a])];
  return map;
}

Result<SharingSearch> FindSharing(int num_layers, std::span<const std::pair<int, int>> order, int count,
                                  double threshold, const Similarity& similarity) {
  SharingSearch search;
  search.map.resize(static_cast<size_t>(num_layers));
  std::iota(search.map.begin(), search.map.end(), 0);
  std::vector<bool> shares(search.map.size(), false);
  int shared = 0;
  for (const auto& [l, m] : order) {
    if (shared >= count) break;
    if (shares[static_cast<size_t>(l)]) continue;
    SharingSearch::Try attempt{WithPair(search.map, l, m), 0, false};
    PITH_ASSIGN_OR_RETURN(attempt.similarity, similarity(attempt.map));
    attempt.accepted = attempt.similarity > threshold;
    if (attempt.accepted) {
      search.map = attempt.map;
      shares[static_cast<size_t>(l)] = true;
      ++shared;
    }
    search.tries.push_back(std::move(attempt));
  }
  return search;
}

}  // namespace pith
