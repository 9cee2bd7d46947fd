#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/feature_maps.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
// Must come after foreach_target.h.
#include "hwy/contrib/math/math-inl.h"
#include "hwy/highway.h"
#include "kernels/feature_maps.h"
#include "kernels/load_up_to-inl.h"

HWY_BEFORE_NAMESPACE();
namespace pith::kernels {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

// x Phi(x), by erfc as in Abramowitz and Stegun, 7.1.26: its error falls with exp(-x^2 / 2), so that far below 0
// nothing is left of it.
template <class D>
HWY_INLINE hn::Vec<D> Gelu(D d, hn::Vec<D> x) {
  const auto y = hn::Mul(hn::Abs(x), hn::Set(d, 0.70710678118654752f));
  const auto one = hn::Set(d, 1.0f);
  const auto t = hn::Div(one, hn::MulAdd(y, hn::Set(d, 0.3275911f), one));
  auto p = hn::Set(d, 1.061405429f);
  p = hn::MulAdd(p, t, hn::Set(d, -1.453152027f));
  p = hn::MulAdd(p, t, hn::Set(d, 1.421413741f));
  p = hn::MulAdd(p, t, hn::Set(d, -0.284496736f));
  p = hn::MulAdd(p, t, hn::Set(d, 0.254829592f));
  // Half of erfc(y); hn::Exp wants no less than this.
  const auto exponent = hn::Max(hn::Neg(hn::Mul(y, y)), hn::Set(d, -87.0f));
  const auto half = hn::Mul(hn::Mul(hn::Mul(p, t), hn::Set(d, 0.5f)), hn::Exp(d, exponent));
  return hn::Mul(x, hn::IfThenElse(hn::Lt(x, hn::Zero(d)), half, hn::Sub(one, half)));
}

// out[j] = sum_i x[i] w[i, j], and gelu of it. out: room for whole vectors.
template <bool kActivates, class D>
HWY_INLINE void Times(D d, const float* x, size_t n, const float* w, size_t width, float* out) {
  const size_t lanes = hn::Lanes(d);
  size_t j = 0;
  const auto store = [&](hn::Vec<D> sum, size_t at) { hn::StoreU(kActivates ? Gelu(d, sum) : sum, d, out + at); };
  for (; j + 4 * lanes <= width; j += 4 * lanes) {
    auto a = hn::Zero(d), b = hn::Zero(d), c = hn::Zero(d), e = hn::Zero(d);
    for (size_t i = 0; i < n; ++i) {
      const float* row = w + i * width + j;
      const auto factor = hn::Set(d, x[i]);
      a = hn::MulAdd(factor, hn::LoadU(d, row), a);
      b = hn::MulAdd(factor, hn::LoadU(d, row + lanes), b);
      c = hn::MulAdd(factor, hn::LoadU(d, row + 2 * lanes), c);
      e = hn::MulAdd(factor, hn::LoadU(d, row + 3 * lanes), e);
    }
    store(a, j), store(b, j + lanes), store(c, j + 2 * lanes), store(e, j + 3 * lanes);
  }
  for (; j < width; j += lanes) {
    auto sum = hn::Zero(d);
    for (size_t i = 0; i < n; ++i) sum = hn::MulAdd(hn::Set(d, x[i]), LoadUpTo(d, w + i * width, j, width), sum);
    store(sum, j);
  }
}

HWY_ATTR void MapFeaturesImpl(const FeatureMap& map, const float* rows, size_t row_stride, size_t count,
                              float* features, size_t feature_stride) {
  const hn::ScalableTag<float> d;
  // Of as many features, so that no vector is half empty.
  const hn::CappedTag<float, 8> narrow;
  const auto dim = static_cast<size_t>(map.dim), hidden = static_cast<size_t>(map.hidden);
  const auto rank = static_cast<size_t>(map.rank);
  constexpr size_t kSpare = HWY_MAX_BYTES / sizeof(float);
  HWY_ALIGN float units[kMostHiddenUnits + kSpare];
  HWY_ALIGN float out[kMostFeatures + kSpare];
  HWY_ALIGN float turned[kMostFeatures + kSpare];
  for (size_t r = 0; r < count; ++r, rows += row_stride, features += feature_stride) {
    Times<true>(d, rows, dim, map.w1, hidden, units);
    Times<true>(narrow, units, hidden, map.w2, rank, out);
    if (map.w3 != nullptr) {
      for (size_t i = 0; i < rank; ++i) out[i] *= map.s1[i] < 0 ? -map.s1[i] : map.s1[i];
      Times<false>(narrow, out, rank, map.w3, rank, turned);
      for (size_t i = 0; i < rank; ++i) out[i] += turned[i] * map.s2[i];
    }
    for (size_t i = 0; i < rank; ++i) features[i] = out[i] < 0 ? -out[i] : out[i];
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace pith::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE

#include <algorithm>
#include <cmath>
#include <numbers>
#include <vector>

namespace pith::kernels {

HWY_EXPORT(MapFeaturesImpl);

void MapFeatures(const FeatureMap& map, const float* rows, size_t row_stride, size_t count, float* features,
                 size_t feature_stride) {
  HWY_DYNAMIC_DISPATCH(MapFeaturesImpl)(map, rows, row_stride, count, features, feature_stride);
}

namespace {

double Gelu(double x) { return 0.5 * x * std::erfc(-x / std::numbers::sqrt2); }

template <typename X>
std::vector<double> Times(const X* x, size_t n, const float* w, size_t width) {
  std::vector<double> out(width, 0);
  for (size_t i = 0; i < n; ++i) {
    for (size_t j = 0; j < width; ++j) out[j] += static_cast<double>(x[i]) * static_cast<double>(w[i * width + j]);
  }
  return out;
}

}  // namespace

void FeaturesReference(const FeatureMap& map, const float* row, double* features) {
  const auto hidden = static_cast<size_t>(map.hidden), rank = static_cast<size_t>(map.rank);
  std::vector<double> units = Times(row, static_cast<size_t>(map.dim), map.w1, hidden);
  std::ranges::transform(units, units.begin(), Gelu);
  std::vector<double> t = Times(units.data(), hidden, map.w2, rank);
  std::ranges::transform(t, t.begin(), Gelu);
  if (map.w3 != nullptr) {
    for (size_t i = 0; i < rank; ++i) t[i] *= std::abs(static_cast<double>(map.s1[i]));
    const std::vector<double> turned = Times(t.data(), rank, map.w3, rank);
    for (size_t i = 0; i < rank; ++i) t[i] += turned[i] * static_cast<double>(map.s2[i]);
  }
  for (size_t i = 0; i < rank; ++i) features[i] = std::abs(t[i]);
}

void AddToState(std::span<const float> features, std::span<const float> value, float* state) {
  float* const mass = state + features.size() * value.size();
  for (size_t r = 0; r < features.size(); ++r) {
    float* const sums = state + r * value.size();
    for (size_t c = 0; c < value.size(); ++c) sums[c] += features[r] * value[c];
    mass[r] += features[r];
  }
}

void JoinState(std::span<const float> features, const float* state, float log_sum_exp, std::span<float> output) {
  const float* const mass = state + features.size() * output.size();
  double own = 0;
  for (size_t r = 0; r < features.size(); ++r) own += static_cast<double>(features[r]) * static_cast<double>(mass[r]);
  if (!(own > 0)) return;
  const double log_own = std::log(own), log_kept = static_cast<double>(log_sum_exp);
  const double most = std::max(log_own, log_kept);
  const double total = most + std::log(std::exp(log_own - most) + std::exp(log_kept - most));
  const auto kept = static_cast<float>(std::exp(log_kept - total));
  for (float& x : output) x *= kept;
  for (size_t r = 0; r < features.size(); ++r) {
    if (features[r] == 0) continue;
    // Not exp(-total): features and masses may be as far from 1 as logits let them be.
    const auto weight = static_cast<float>(std::exp(std::log(static_cast<double>(features[r])) - total));
    for (size_t c = 0; c < output.size(); ++c) output[c] += weight * state[r * output.size() + c];
  }
}

}  // namespace pith::kernels
#endif  // HWY_ONCE
