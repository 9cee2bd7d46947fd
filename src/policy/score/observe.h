// What entries received of observed attention.
#ifndef PITH_POLICY_SCORE_OBSERVE_H_
#define PITH_POLICY_SCORE_OBSERVE_H_

#include <algorithm>
#include <cstddef>
#include <vector>

#include "policy/policy.h"

namespace pith {

enum class Received { kSum, kSquares, kLargest };

// [n] of an observation: as it came, or out of its rows.
class ReceivedAttention {
 public:
  ReceivedAttention(const Observation& seen, Received which) {
    const float* given = which == Received::kSum ? seen.sum : which == Received::kSquares ? seen.squares : seen.largest;
    if (seen.probabilities == nullptr) {
      data_ = given;
      return;
    }
    own_.assign(static_cast<size_t>(seen.num_entries), 0.0F);
    for (int t = 0; t < seen.num_queries; ++t) AddQuery(seen, static_cast<size_t>(t), which);
    data_ = own_.data();
  }
  ReceivedAttention(const ReceivedAttention&) = delete;

  const float* data() const { return data_; }

 private:
  void AddQuery(const Observation& seen, size_t t, Received which) {
    const auto n = static_cast<size_t>(seen.num_entries);
    const size_t stride = static_cast<size_t>(seen.num_queries) * n;
    const float* row = seen.probabilities + t * n;
    for (size_t j = 0; j < n; ++j) {
      float total = 0, most = 0;
      for (size_t g = 0; g < static_cast<size_t>(seen.group); ++g) {
        total += row[g * stride + j];
        most = std::max(most, row[g * stride + j]);
      }
      const float mean = total / static_cast<float>(seen.group);
      if (which == Received::kLargest)
        own_[j] = std::max(own_[j], most);
      else
        own_[j] += which == Received::kSum ? mean : mean * mean;
    }
  }

  std::vector<float> own_;
  const float* data_ = nullptr;
};

inline void AddReceived(const Observation& seen, Received which, float* column) {
  const ReceivedAttention received(seen, which);
  const float* __restrict from = received.data();  // no column
  float* __restrict to = column;
  for (size_t j = 0; j < static_cast<size_t>(seen.num_entries); ++j) to[j] += from[j];
}

// Raises a column [n] to the largest weight that each entry gets, over queries and the group.
inline void KeepLargest(const Observation& seen, float* column) {
  const ReceivedAttention largest(seen, Received::kLargest);
  const float* __restrict from = largest.data();
  float* __restrict to = column;
  for (size_t j = 0; j < static_cast<size_t>(seen.num_entries); ++j) to[j] = std::max(to[j], from[j]);
}

// How many queries have seen an entry: its own and all after it.
inline int32_t QueriesThatSaw(const LayerInputs& inputs, int32_t position) { return inputs.next_position - position; }

// A head's column as its scores.
inline void ScoreByColumn(const HeadInputs& head, size_t column, std::vector<float>& scores) {
  scores.assign(head.columns[column], head.columns[column] + head.num_entries);
}

}  // namespace pith

#endif  // PITH_POLICY_SCORE_OBSERVE_H_
