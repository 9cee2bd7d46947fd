// A constant-size state that takes in what is evicted (LESS, arXiv:2402.09398; github.com/hdong920/LESS
// src/inference/generative/llama_gen.py): small learned feature maps of queries and keys stand for the exponential, so
// that evicted entries go on contributing to attention. Keys' map and state are a kv head's, queries' maps a query
// head's.
#ifndef PITH_POLICY_ACT_LESS_H_
#define PITH_POLICY_ACT_LESS_H_

#include <cstddef>
#include <span>
#include <vector>

namespace pith {

// Weights of one head, rows of the matrices are inputs. R features of D channels over m hidden units.
struct QueryFeatures {
  std::span<const float> w1, w2;  // [D, m], [m, R]
  size_t rank = 0;
};
struct KeyFeatures {
  std::span<const float> w1, w2, w3;  // [D, m], [m, R], [R, R]
  std::span<const float> s1, s2;      // [R]
};

// |gelu(gelu(q W1) W2)| of one query after RoPE, not scaled. [R]
std::vector<double> FeaturesOf(const QueryFeatures& map, std::span<const float> query);
// |t + (t W3) s2| with t = |s1| gelu(gelu(k W1) W2). [R]
std::vector<double> FeaturesOf(const KeyFeatures& map, std::span<const float> key);

class EvictedState {
 public:
  EvictedState(size_t rank, size_t value_dim) : sums_(rank * value_dim, 0), mass_(rank, 0), value_dim_(value_dim) {}

  // An entry that leaves the cache, by its key's features.
  void Absorb(std::span<const double> features, std::span<const float> value);

  // What attention over the kept entries gives, log_sum_exp of their logits and the output [Dv], with the state beside
  // them. Stable for any logits. As it is, where nothing was absorbed.
  std::vector<double> Join(std::span<const double> query_features, double log_sum_exp,
                           std::span<const double> output) const;

  const std::vector<double>& sums() const { return sums_; }  // [R, Dv]
  const std::vector<double>& mass() const { return mass_; }  // [R]

 private:
  std::vector<double> sums_, mass_;
  size_t value_dim_;
  bool empty_ = true;
};

}  // namespace pith

#endif  // PITH_POLICY_ACT_LESS_H_
