// Feature maps of queries and keys whose products stand for exp(q.k), and the sums over entries that use them (LESS,
// arXiv:2402.09398, formulas 1 to 4): what attention adds for entries that are gone.
//
// For D channels, m hidden units, R features; rows of matrices are inputs; gelu is the exact form, of erf:
//   phi(q) = |gelu(gelu(q W1) W2)|                                   a query after RoPE, not scaled
//   psi(k) = |t + (t W3) s2|,  t = |s1| gelu(gelu(k W1) W2)          a key after RoPE
#ifndef PITH_KERNELS_FEATURE_MAPS_H_
#define PITH_KERNELS_FEATURE_MAPS_H_

#include <cstddef>
#include <span>

namespace pith::kernels {

inline constexpr int kMostHiddenUnits = 1024;
inline constexpr int kMostFeatures = 64;

// One head's map; w1 [D, m], w2 [m, R]. Of keys also w3 [R, R], s1 and s2 [R], which are null for queries.
struct FeatureMap {
  const float* w1 = nullptr;
  const float* w2 = nullptr;
  const float* w3 = nullptr;
  const float* s1 = nullptr;
  const float* s2 = nullptr;
  int dim = 0;     // D
  int hidden = 0;  // m, at most kMostHiddenUnits
  int rank = 0;    // R, at most kMostFeatures
};

// Features of `count` rows [D], `row_stride` floats apart, into rows [R], `feature_stride` apart. Below 1e-6 +
// 1e-5 |feature| from FeaturesReference(). O(count m (D + R)); allocates nothing; one thread.
void MapFeatures(const FeatureMap& map, const float* rows, size_t row_stride, size_t count, float* features,
                 size_t feature_stride);

// The same of one row, in double.
void FeaturesReference(const FeatureMap& map, const float* row, double* features);

// What a head knows of entries that are gone: sums [R, Dv] of psi(k) v, and masses [R] of psi(k), one behind the other.
inline constexpr size_t StateFloats(int rank, int value_dim) {
  return static_cast<size_t>(rank) * (static_cast<size_t>(value_dim) + 1);
}

// An entry with these features [R] and value [Dv] joins the state.
void AddToState(std::span<const float> features, std::span<const float> value, float* state);

// output [Dv]: attention over the entries that are there, log_sum_exp that of their logits (minus infinity: none was
// seen). It becomes the attention over these and the state's, for a query with such features [R]; stable for any
// logits. As it is, where query and state have nothing in common.
void JoinState(std::span<const float> features, const float* state, float log_sum_exp, std::span<float> output);

}  // namespace pith::kernels

#endif  // PITH_KERNELS_FEATURE_MAPS_H_
