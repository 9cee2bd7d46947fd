#include "lab/measure.h"

#include <algorithm>
#include <cmath>

#include "base/check.h"

namespace pith {

double LogSumExp(std::span<const float> logits) {
  const double top = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (const float logit : logits) sum += std::exp(logit - top);
  return top + std::log(sum);
}

size_t ArgMax(std::span<const float> logits) {
  return static_cast<size_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
}

Difference Compare(std::span<const float> reference, std::span<const float> other) {
  PITH_CHECK(reference.size() == other.size() && !reference.empty());
  const double reference_sum = LogSumExp(reference);
  const double other_sum = LogSumExp(other);
  Difference difference;
  for (size_t i = 0; i < reference.size(); ++i) {
    const double a = reference[i];
    const double b = other[i];
    if (a == b && std::isinf(a)) continue;  // both masked: contributes nothing
    difference.max_abs = std::max(difference.max_abs, std::abs(a - b));
    const double log_p = a - reference_sum;
    if (std::isinf(log_p)) continue;
    difference.kl += std::exp(log_p) * (log_p - (b - other_sum));
  }
  difference.same_top = ArgMax(reference) == ArgMax(other);
  return difference;
}

void DifferenceSum::Add(const Difference& difference) {
  ++rows_;
  same_ += difference.same_top ? 1 : 0;
  kl_ += difference.kl;
  // Written so that a NaN stays visible.
  if (!(difference.kl <= max_kl_)) max_kl_ = difference.kl;
  if (!(difference.max_abs <= max_abs_)) max_abs_ = difference.max_abs;
}

TargetMeasure MeasureTarget(std::span<const float> rows, std::span<const int32_t> target) {
  TargetMeasure measure;
  PITH_CHECK(!target.empty() && rows.size() % target.size() == 0);
  const size_t vocab = rows.size() / target.size();
  for (size_t i = 0; i < target.size(); ++i) {
    const auto row = rows.subspan(i * vocab, vocab);
    const auto token = static_cast<size_t>(target[i]);
    measure.nll += LogSumExp(row) - static_cast<double>(row[token]);
    measure.all_top = measure.all_top && ArgMax(row) == token;
  }
  measure.nll /= static_cast<double>(target.size());
  return measure;
}

double MeanKl(std::span<const float> reference, std::span<const float> other, size_t vocab) {
  PITH_CHECK(reference.size() == other.size() && vocab > 0);
  DifferenceSum sum;
  for (size_t at = 0; at + vocab <= reference.size(); at += vocab) {
    sum.Add(Compare(reference.subspan(at, vocab), other.subspan(at, vocab)));
  }
  return sum.mean_kl();
}

namespace {

struct RowSum {
  float top = 0;
  size_t top_idx = 0;
  double log_sum = 0;
};

// One pass for the largest logit, one for the sum. Partial sums of 1024 keep the rounding of floats small.
RowSum SumRow(std::span<const float> row) {
  RowSum result;
  result.top_idx = ArgMax(row);
  result.top = row[result.top_idx];
  double sum = 0;
  constexpr size_t kPart = 1024;
  for (size_t at = 0; at < row.size(); at += kPart) {
    float part = 0;
    for (const float logit : row.subspan(at, std::min(kPart, row.size() - at))) part += std::exp(logit - result.top);
    sum += static_cast<double>(part);
  }
  result.log_sum = static_cast<double>(result.top) + std::log(sum);
  return result;
}

}  // namespace

void TargetReference::Set(std::span<const float> rows, std::span<const int32_t> target) {
  PITH_CHECK(!target.empty() && rows.size() % target.size() == 0);
  target_.assign(target.begin(), target.end());
  rows_.assign(rows.begin(), rows.end());
  probabilities_.resize(rows.size());
  log_sums_.resize(target.size());
  own_ = MeasureTarget(rows, target);
  const size_t vocab = rows.size() / target.size();
  for (size_t i = 0; i < target.size(); ++i) {
    const auto row = rows.subspan(i * vocab, vocab);
    log_sums_[i] = LogSumExp(row);
    for (size_t v = 0; v < vocab; ++v) {
      probabilities_[i * vocab + v] = static_cast<float>(std::exp(static_cast<double>(row[v]) - log_sums_[i]));
    }
  }
}

TargetMeasure TargetReference::Compare(std::span<const float> rows, double& kl) const {
  PITH_CHECK(!target_.empty() && rows.size() == rows_.size());
  const size_t vocab = rows.size() / target_.size();
  TargetMeasure measure;
  kl = 0;
  for (size_t i = 0; i < target_.size(); ++i) {
    const auto row = rows.subspan(i * vocab, vocab);
    const float* reference = rows_.data() + i * vocab;
    const float* probabilities = probabilities_.data() + i * vocab;
    const RowSum sum = SumRow(row);
    // Differences of logits, so that what both rows share cancels before it is rounded.
    double weighted = 0;
    for (size_t v = 0; v < vocab; ++v) {
      if (probabilities[v] > 0) weighted += static_cast<double>(probabilities[v] * (reference[v] - row[v]));
    }
    kl += weighted - log_sums_[i] + sum.log_sum;
    const auto token = static_cast<size_t>(target_[i]);
    measure.nll += sum.log_sum - static_cast<double>(row[token]);
    measure.all_top = measure.all_top && sum.top_idx == token;
  }
  // In this order a NaN stays visible.
  kl = std::max(kl / static_cast<double>(target_.size()), 0.0);
  measure.nll /= static_cast<double>(target_.size());
  return measure;
}

double Median(std::vector<double> values) {
  if (values.empty()) return 0;
  std::sort(values.begin(), values.end());
  const size_t middle = values.size() / 2;
  return values.size() % 2 == 1 ? values[middle] : (values[middle - 1] + values[middle]) / 2;
}

}  // namespace pith
