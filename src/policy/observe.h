// What entries received of observed attention.
#ifndef PITH_POLICY_OBSERVE_H_
#define PITH_POLICY_OBSERVE_H_

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

  float operator[](size_t entry) const { return data_[entry]; }

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
  for (size_t j = 0; j < static_cast<size_t>(seen.num_entries); ++j) column[j] += received[j];
}

// Raises a column [n] to the largest weight that each entry gets, over queries and the group.
inline void KeepLargest(const Observation& seen, float* column) {
  const ReceivedAttention largest(seen, Received::kLargest);
  for (size_t j = 0; j < static_cast<size_t>(seen.num_entries); ++j) column[j] = std::max(column[j], largest[j]);
}

// Adds to a column [n] the number of queries that can see each entry.
inline void CountQueries(const Observation& seen, float* column) {
  const std::span<const int32_t> positions = seen.positions.first(static_cast<size_t>(seen.num_entries));
  if (positions.empty() || seen.query_positions.empty()) return;
  // Both ascend, so most entries are seen by all.
  const auto all = static_cast<size_t>(std::upper_bound(positions.begin(), positions.end(), seen.query_positions.front()) - positions.begin());
  for (size_t j = 0; j < all; ++j) column[j] += static_cast<float>(seen.query_positions.size());
  size_t first = 0;  // query that sees the entry
  for (size_t j = all; j < positions.size(); ++j) {
    while (first < seen.query_positions.size() && seen.query_positions[first] < seen.positions[j]) ++first;
    column[j] += static_cast<float>(seen.query_positions.size() - first);
  }
}

// A head's column as its scores.
inline void ScoreByColumn(const HeadInputs& head, size_t column, std::vector<float>& scores) {
  scores.assign(head.columns[column], head.columns[column] + head.num_entries);
}

}  // namespace pith

#endif  // PITH_POLICY_OBSERVE_H_
