// The last w queries of every global layer, after RoPE, for policies that observe a window. In f16: what is computed of
// them are softmax weights, which rounding in the eleventh bit moves less than the rounding of the keys beside them.
#ifndef PITH_ENGINE_QUERY_RING_H_
#define PITH_ENGINE_QUERY_RING_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "engine/query_moments.h"
#include "policy/policy.h"

namespace pith {

// Of how many of the last queries a recipe wants to know something; 0: of none.
inline int QueryWindow(const Policy& policy) {
  return (policy.needs() & (kNeedWindowProbs | kNeedWindowQueries)) != 0 ? policy.window() : 0;
}

class QueryRing {
 public:
  QueryRing() = default;
  // Heads and channels are the most of any layer.
  QueryRing(const QueryMoments::Shape& shape, int window)
      : row_size_(RowSize(shape)), window_(window), data_(Bytes(shape, window) / sizeof(uint16_t)) {}

  static size_t Bytes(const QueryMoments::Shape& shape, int window) {
    return static_cast<size_t>(shape.num_layers) * static_cast<size_t>(window) * RowSize(shape) * sizeof(uint16_t);
  }

  int window() const { return window_; }
  size_t row_size() const { return row_size_; }  // numbers
  std::vector<uint16_t>& data() { return data_; }
  const std::vector<uint16_t>& data() const { return data_; }
  // [H, D] of the query at `position`; valid for the last window() positions.
  uint16_t* row(int layer, int32_t position) { return data_.data() + Offset(layer, position); }
  const uint16_t* row(int layer, int32_t position) const { return data_.data() + Offset(layer, position); }

 private:
  static size_t RowSize(const QueryMoments::Shape& shape) {
    return static_cast<size_t>(shape.num_heads) * static_cast<size_t>(shape.key_dim);
  }
  size_t Offset(int layer, int32_t position) const {
    return (static_cast<size_t>(layer) * static_cast<size_t>(window_) + static_cast<size_t>(position % window_)) *
           row_size_;
  }

  size_t row_size_ = 0;
  int window_ = 0;
  std::vector<uint16_t> data_;
};

}  // namespace pith

#endif  // PITH_ENGINE_QUERY_RING_H_
