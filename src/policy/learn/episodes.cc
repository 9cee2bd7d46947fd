#include "policy/learn/episodes.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>

namespace pith {
namespace {

using Centroids = std::vector<std::vector<double>>;

double SquaredDistance(std::span<const float> a, const std::vector<double>& b) {
  double sum = 0;
  for (size_t d = 0; d < a.size(); ++d) {
    const double x = static_cast<double>(a[d]) - b[d];
    sum += x * x;
  }
  return sum;
}

double Dot(std::span<const float> a, const std::vector<double>& b) {
  double sum = 0;
  for (size_t d = 0; d < a.size(); ++d) sum += static_cast<double>(a[d]) * b[d];
  return sum;
}

double Length(const std::vector<double>& a) {
  double sum = 0;
  for (double x : a) sum += x * x;
  return std::sqrt(sum);
}

// The nearest centroid and its squared distance.
std::pair<int, double> Nearest(std::span<const float> point, const Centroids& centroids) {
  std::pair<int, double> best = {0, std::numeric_limits<double>::infinity()};
  for (size_t c = 0; c < centroids.size(); ++c) {
    const double distance = SquaredDistance(point, centroids[c]);
    if (distance < best.second) best = {static_cast<int>(c), distance};
  }
  return best;
}

// Means of the members; centroids without any keep their place and are counted as 0.
std::vector<size_t> MoveToMeans(const Embeddings& segments, const std::vector<int>& labels, Centroids& centroids) {
  std::vector<size_t> members(centroids.size(), 0);
  Centroids sums(centroids.size(), std::vector<double>(segments.dim, 0.0));
  for (size_t i = 0; i < segments.count; ++i) {
    const auto c = static_cast<size_t>(labels[i]);
    ++members[c];
    for (size_t d = 0; d < segments.dim; ++d) sums[c][d] += static_cast<double>(segments.row(i)[d]);
  }
  for (size_t c = 0; c < centroids.size(); ++c) {
    if (members[c] == 0) continue;
    for (size_t d = 0; d < segments.dim; ++d) centroids[c][d] = sums[c][d] / static_cast<double>(members[c]);
  }
  return members;
}

void DropEmpty(const std::vector<size_t>& members, Episodes& episodes) {
  std::vector<int> renumbered(members.size(), -1);
  Centroids kept;
  for (size_t c = 0; c < members.size(); ++c) {
    if (members[c] == 0) continue;
    renumbered[c] = static_cast<int>(kept.size());
    kept.push_back(std::move(episodes.centroids[c]));
  }
  episodes.centroids = std::move(kept);
  for (int& label : episodes.labels) label = renumbered[static_cast<size_t>(label)];
}

// In [0, 1). std's distributions differ between libraries, this does not.
double Uniform(std::mt19937_64& random) { return static_cast<double>(random() >> 11) * 0x1.0p-53; }

// k-means++ (Arthur and Vassilvitskii, 2007): each next centroid is a segment, drawn by its squared
// distance to those chosen so far.
Centroids Spread(const Embeddings& segments, size_t count, std::mt19937_64& random) {
  const auto as_centroid = [&](size_t i) {
    return std::vector<double>(segments.row(i).begin(), segments.row(i).end());
  };
  Centroids centroids = {as_centroid(static_cast<size_t>(Uniform(random) * static_cast<double>(segments.count)))};
  while (centroids.size() < count) {
    std::vector<double> distances;
    double sum = 0;
    for (size_t i = 0; i < segments.count; ++i)
      sum += distances.emplace_back(Nearest(segments.row(i), centroids).second);
    if (!(sum > 0)) break;
    double at = Uniform(random) * sum;
    size_t chosen = 0;
    for (size_t i = 0; i < segments.count; ++i) {
      if (distances[i] > 0) chosen = i;
      at -= distances[i];
      if (at < 0) break;
    }
    centroids.push_back(as_centroid(chosen));
  }
  return centroids;
}

}  // namespace

Episodes Cluster(const Embeddings& segments, Centroids centroids) {
  Episodes episodes{std::vector<int>(segments.count, -1), std::move(centroids), 0};
  if (segments.count == 0 || episodes.centroids.empty()) return {{}, {}, 0};
  std::vector<size_t> members;
  for (bool changed = true; changed;) {
    changed = false;
    episodes.inertia = 0;
    for (size_t i = 0; i < segments.count; ++i) {
      const auto [label, distance] = Nearest(segments.row(i), episodes.centroids);
      changed |= label != episodes.labels[i];
      episodes.labels[i] = label;
      episodes.inertia += distance;
    }
    if (changed) members = MoveToMeans(segments, episodes.labels, episodes.centroids);
  }
  DropEmpty(members, episodes);
  return episodes;
}

Episodes ClusterFromSeed(const Embeddings& segments, int num_episodes, int restarts, uint64_t seed) {
  const size_t count = std::min(segments.count, static_cast<size_t>(std::max(num_episodes, 1)));
  if (count == 0) return {};
  std::mt19937_64 random(seed);
  Episodes best;
  for (int i = 0; i < std::max(restarts, 1); ++i) {
    Episodes episodes = Cluster(segments, Spread(segments, count, random));
    if (i == 0 || episodes.inertia < best.inertia) best = std::move(episodes);
  }
  return best;
}

std::vector<double> CentroidCosines(const Embeddings& segments, const Episodes& episodes) {
  std::vector<double> cosines;
  for (size_t i = 0; i < segments.count; ++i) {
    const std::vector<double>& centroid = episodes.centroids[static_cast<size_t>(episodes.labels[i])];
    const std::span<const float> row = segments.row(i);
    const double lengths = Length(centroid) * Length({row.begin(), row.end()});
    cosines.push_back(lengths > 0 ? Dot(row, centroid) / lengths : 0);
  }
  return cosines;
}

std::vector<std::vector<int>> Representatives(const Embeddings& segments, const Episodes& episodes, int count) {
  const std::vector<double> cosines = CentroidCosines(segments, episodes);
  std::vector<std::vector<int>> chosen(episodes.centroids.size());
  for (size_t i = 0; i < segments.count; ++i) {
    chosen[static_cast<size_t>(episodes.labels[i])].push_back(static_cast<int>(i));
  }
  for (std::vector<int>& members : chosen) {
    std::stable_sort(members.begin(), members.end(), [&](int a, int b) {
      return cosines[static_cast<size_t>(a)] > cosines[static_cast<size_t>(b)];
    });
    members.resize(std::min(members.size(), static_cast<size_t>(std::max(count, 0))));
    std::sort(members.begin(), members.end());
  }
  return chosen;
}

std::vector<double> MatchScores(std::span<const float> question, const Episodes& episodes, bool cosine) {
  std::vector<double> scores;
  for (const std::vector<double>& centroid : episodes.centroids) {
    const double length = cosine ? Length(centroid) : 1;
    scores.push_back(length > 0 ? Dot(question, centroid) / length : 0);
  }
  return scores;
}

int BestMatch(std::span<const double> scores) {
  return static_cast<int>(std::max_element(scores.begin(), scores.end()) - scores.begin());
}

}  // namespace pith
