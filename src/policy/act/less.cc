#include "policy/act/less.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace pith {
namespace {

double Gelu(double x) { return 0.5 * x * (1 + std::erf(x / std::numbers::sqrt2)); }

// x W, with `activate` of each.
template <typename X, typename Activate>
std::vector<double> Times(const X& x, std::span<const float> matrix, const Activate& activate) {
  const size_t width = matrix.size() / x.size();
  std::vector<double> out(width, 0);
  for (size_t i = 0; i < x.size(); ++i) {
    for (size_t j = 0; j < width; ++j)
      out[j] += static_cast<double>(x[i]) * static_cast<double>(matrix[i * width + j]);
  }
  for (double& y : out) y = activate(y);
  return out;
}

}  // namespace

std::vector<double> FeaturesOf(const QueryFeatures& map, std::span<const float> query) {
  return Times(Times(query, map.w1, Gelu), map.w2, [](double y) { return std::abs(Gelu(y)); });
}

std::vector<double> FeaturesOf(const KeyFeatures& map, std::span<const float> key) {
  std::vector<double> t = Times(Times(key, map.w1, Gelu), map.w2, Gelu);
  for (size_t i = 0; i < t.size(); ++i) t[i] *= std::abs(static_cast<double>(map.s1[i]));
  const std::vector<double> turned = Times(t, map.w3, [](double y) { return y; });
  for (size_t i = 0; i < t.size(); ++i) t[i] = std::abs(t[i] + turned[i] * static_cast<double>(map.s2[i]));
  return t;
}

void EvictedState::Absorb(std::span<const double> features, std::span<const float> value) {
  for (size_t r = 0; r < mass_.size(); ++r) {
    mass_[r] += features[r];
    for (size_t c = 0; c < value_dim_; ++c) sums_[r * value_dim_ + c] += features[r] * static_cast<double>(value[c]);
  }
  empty_ = false;
}

std::vector<double> EvictedState::Join(std::span<const double> query_features, double log_sum_exp,
                                       std::span<const double> output) const {
  std::vector<double> joined(output.begin(), output.end());
  double own = 0;
  for (size_t r = 0; r < mass_.size(); ++r) own += query_features[r] * mass_[r];
  if (empty_ || !(own > 0)) return joined;
  const double log_own = std::log(own), most = std::max(log_own, log_sum_exp);
  const double total = most + std::log(std::exp(log_own - most) + std::exp(log_sum_exp - most));
  const double kept = std::exp(log_sum_exp - total), scale = std::exp(-total);
  for (double& x : joined) x *= kept;
  for (size_t r = 0; r < mass_.size(); ++r) {
    for (size_t c = 0; c < value_dim_; ++c) joined[c] += query_features[r] * scale * sums_[r * value_dim_ + c];
  }
  return joined;
}

}  // namespace pith
