// Which layers of a model may read another layer's cache: runs of its own text (KVSharer,
// policy/learn/layer_sharing.h).
#ifndef PITH_LAB_SHARING_SEARCH_H_
#define PITH_LAB_SHARING_SEARCH_H_

#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "host/model.h"
#include "pith/types.h"
#include "policy/learn/layer_sharing.h"

namespace pith {

enum class PairOrder : uint8_t { kDissimilar, kSimilar, kRandom };

struct SharingOptions {
  int count = 4;           // layers that lose their cache
  double threshold = 0.5;  // of the similarity
  PairOrder order = PairOrder::kDissimilar;
  uint64_t seed = 0;       // of a random order
  int num_threads = 1;
};

// How a map is told to a model.
using LoadWithMap = std::function<Result<std::shared_ptr<HostModel>>(const SharingMap&)>;
// After each map that was tried; false: stop (kCancelled).
using SharingProgress = std::function<bool(const SharingSearch::Try&)>;

// texts: of equal length. How close a map keeps the model is the mean over texts of the cosine of its logits, each row
// less its mean, flattened over tokens: the authors take the final hidden states, of which logits are a projection.
// kInvalidArgument: the model has layers other than whole attention.
Result<SharingSearch> SearchSharing(const LoadWithMap& load, std::span<const std::vector<int32_t>> texts,
                                    const SharingOptions& options, const SharingProgress& progress);

}  // namespace pith

#endif  // PITH_LAB_SHARING_SEARCH_H_
