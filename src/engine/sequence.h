// What the engine remembers of one sequence beside its cache.
#ifndef PITH_ENGINE_SEQUENCE_H_
#define PITH_ENGINE_SEQUENCE_H_

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "engine/query_moments.h"
#include "engine/repeat.h"

namespace pith {

// The last w queries of every global layer, after RoPE, for policies that observe a window.
class QueryRing {
 public:
  QueryRing() = default;
  QueryRing(int num_layers, int num_heads, int key_dim, int window)
      : num_heads_(num_heads), key_dim_(key_dim), window_(window),
        data_(static_cast<size_t>(num_layers) * static_cast<size_t>(window) * row_floats()) {}

  int window() const { return window_; }
  std::vector<float>& data() { return data_; }
  const std::vector<float>& data() const { return data_; }
  size_t row_floats() const { return static_cast<size_t>(num_heads_) * static_cast<size_t>(key_dim_); }
  // [H, D] of the query at `position`; valid for the last window() positions.
  float* row(int layer, int32_t position) {
    return data_.data() + (static_cast<size_t>(layer) * static_cast<size_t>(window_) + static_cast<size_t>(position % window_)) *
                              row_floats();
  }

 private:
  int num_heads_ = 0;
  int key_dim_ = 0;
  int window_ = 0;
  std::vector<float> data_;
};

struct Sequence {
  int cache_id = 0;
  int slot = 0;           // of the host context
  int32_t next_position = 0;
  int output = -1;        // index of its logits row in the last block, -1: none
  int64_t entries_seen = 0;
  std::vector<std::pair<int32_t, int32_t>> pinned;  // [from, to) positions, ascending
  QueryRing queries;
  QueryMoments moments;  // empty where no recipe reads them
  std::vector<double> merge_thresholds;  // act=merge: of each global layer, NaN before its first eviction
  std::vector<float> restored_logits;  // [vocab] of the last token, of a restored sequence until its next block
  std::vector<int32_t> tokens;         // all that was read, where a recipe reads it again; else empty
  std::shared_ptr<RepeatColumns> repeat;  // what a second reading found, until the sequence changes

  bool IsPinned(int32_t position) const {
    const auto next = std::upper_bound(pinned.begin(), pinned.end(), position,
                                       [](int32_t at, const auto& range) { return at < range.first; });
    return next != pinned.begin() && position < std::prev(next)->second;
  }
};

}  // namespace pith

#endif  // PITH_ENGINE_SEQUENCE_H_
