// Mean and covariance of each query head's queries before RoPE, kept as the queries come: what a policy needs that
// foresees queries (kNeedQueryMoments), without any of them.
#ifndef PITH_ENGINE_QUERY_MOMENTS_H_
#define PITH_ENGINE_QUERY_MOMENTS_H_

#include <cstddef>
#include <cstdint>
#include <vector>

namespace pith {

class QueryMoments {
 public:
  struct Shape {
    int num_layers = 0;  // with a global cache
    int num_heads = 0;   // the most of any layer
    int key_dim = 0;     // likewise
  };

  QueryMoments() = default;
  explicit QueryMoments(const Shape& shape);

  // Bytes of one sequence.
  static size_t Bytes(const Shape& shape) { return NumFloats(shape) * sizeof(float); }

  bool empty() const { return data_.empty(); }
  std::vector<float>& data() { return data_; }
  const std::vector<float>& data() const { return data_; }

  // rows [count, dim] follow `before` others of the head; they are overwritten. Threads: one per head.
  void Add(int layer, int head, int64_t before, float* rows, int count, int dim);
  const float* mean(int layer, int head) const { return data_.data() + Offset(layer, head); }  // [dim]
  // Between two arrays like data(): what Add() changes of a head; the sums only if ChangesSums().
  void CopyHead(int layer, int head, bool sums, const float* from, float* to) const;
  static bool ChangesSums(int64_t before, int count);
  // [dim (dim + 1) / 2], as a triangle; of all `seen` queries, over their number.
  void Covariance(int layer, int head, int64_t seen, int dim, float* triangle) const;

 private:
  static size_t NumFloats(const Shape& shape);
  size_t Offset(int layer, int head) const;

  Shape shape_;
  // [layers, heads] of a mean, the sums of products of deviations, and deviations that are not yet in those sums: one
  // token's alone would go through all sums for a few operations each.
  std::vector<float> data_;
};

}  // namespace pith

#endif  // PITH_ENGINE_QUERY_MOMENTS_H_
