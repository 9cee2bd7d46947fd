// Which layers may read another layer's cache (KVSharer, arXiv:2410.18517;
// github.com/Xiangyi1996/KVSharer test_llama.ipynb): the most dissimilar pairs are tried first, and
// those that leave the model's output close stay.
#ifndef PITH_POLICY_LEARN_LAYER_SHARING_H_
#define PITH_POLICY_LEARN_LAYER_SHARING_H_

#include <functional>
#include <span>
#include <utility>
#include <vector>

#include "pith/types.h"

namespace pith {

// Means over calibration texts of a layer's keys after RoPE and of its values.
struct MeanCache {
  std::vector<double> keys;    // [kv heads, tokens, dim]
  std::vector<double> values;  // the same
};

// texts * width numbers, [texts, width] -> [width].
std::vector<double> MeanOverTexts(std::span<const float> caches, size_t texts);

// Mean over heads and tokens of the Euclidean distance of keys, and of values; the mean of the two.
double CacheDistance(const MeanCache& a, const MeanCache& b, size_t dim);

// Pairs (l, m), l > m, by falling distance; ties: lower l, then lower m. distance: [L][L], read at [l][m].
std::vector<std::pair<int, int>> DissimilarFirst(const std::vector<std::vector<double>>& distance);

// [L]: the layer whose cache layer l reads; l itself where it has its own. Values are roots, at most l.
using SharingMap = std::vector<int>;

// The map with l reading m's cache, and every follower of l with it. Flattened in ascending order over
// values that are flat already, so that only roots are left.
SharingMap WithPair(SharingMap map, int l, int m);

// How close the model's final hidden state stays with this map: mean cosine over texts.
using Similarity = std::function<Result<double>(const SharingMap&)>;

struct SharingSearch {
  SharingMap map;
  struct Try {
    SharingMap map;
    double similarity = 0;
    bool accepted = false;
  };
  std::vector<Try> tries;  // one for each evaluation
};

// Takes pairs in order until `count` layers share; a pair stays if the similarity is above the
// threshold; a layer that shares already is not tried again. Errors are those of `similarity`.
Result<SharingSearch> FindSharing(int num_layers, std::span<const std::pair<int, int>> order, int count,
                                  double threshold, const Similarity& similarity);

}  // namespace pith

#endif  // PITH_POLICY_LEARN_LAYER_SHARING_H_
