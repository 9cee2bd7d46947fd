#include "cli/measure.h"

#include <algorithm>
#include <cmath>

#include "base/check.h"

namespace pith::cli {

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

double Median(std::vector<double> values) {
  if (values.empty()) return 0;
  std::sort(values.begin(), values.end());
  const size_t middle = values.size() / 2;
  return values.size() % 2 == 1 ? values[middle] : (values[middle - 1] + values[middle]) / 2;
}

}  // namespace pith::cli
