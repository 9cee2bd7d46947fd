// Episodes of a conversation (EpiCache, arXiv:2509.17396, parts A and D; github.com/apple/ml-epicache
// utils/cluster.py): segments of it, given as unit vectors, clustered by topic; the segments that stand
// for a topic; the topic of a question.
#ifndef PITH_POLICY_LEARN_EPISODES_H_
#define PITH_POLICY_LEARN_EPISODES_H_

#include <cstdint>
#include <span>
#include <vector>

namespace pith {

// Rows of equal width.
struct Embeddings {
  const float* data = nullptr;  // [count, dim]
  size_t count = 0;
  size_t dim = 0;
  std::span<const float> row(size_t i) const { return {data + i * dim, dim}; }
};

struct Episodes {
  std::vector<int> labels;                     // [segments]
  std::vector<std::vector<double>> centroids;  // [E][dim], means of members, not of unit length
  double inertia = 0;                          // sum of squared distances to the own centroid
};

// Assignment and means in turn until nothing changes (k-means, Euclidean, ties to the lower episode).
// Episodes that fall empty are left out, and the others keep their order.
Episodes Cluster(const Embeddings& segments, std::vector<std::vector<double>> centroids);

// The best of `restarts` runs from k-means++ centroids. Fewer episodes than asked for where there are
// fewer segments, or fewer different ones. The same seed gives the same result everywhere.
Episodes ClusterFromSeed(const Embeddings& segments, int num_episodes, int restarts = 10, uint64_t seed = 42);

// Cosine of each segment to its own centroid. [segments]
std::vector<double> CentroidCosines(const Embeddings& segments, const Episodes& episodes);

// For each episode its `count` segments nearest to the centroid by cosine, in time order; fewer where
// it has fewer.
std::vector<std::vector<int>> Representatives(const Embeddings& segments, const Episodes& episodes, int count);

// Products of a question with the centroids, [E]. As they are, the code's choice, they favour episodes
// that are tight; divided by the centroid's length (cosine) they are the paper's.
std::vector<double> MatchScores(std::span<const float> question, const Episodes& episodes, bool cosine);
// The episode of the largest, ties to the lower.
int BestMatch(std::span<const double> scores);

}  // namespace pith

#endif  // PITH_POLICY_LEARN_EPISODES_H_
