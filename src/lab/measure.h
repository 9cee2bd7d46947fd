// Distances between rows of logits, in double precision.
#ifndef PITH_LAB_MEASURE_H_
#define PITH_LAB_MEASURE_H_

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace pith {

// log(sum(exp(logits))). [vocab]
double LogSumExp(std::span<const float> logits);
// Index of the largest logit, the first of equals. [vocab], not empty.
size_t ArgMax(std::span<const float> logits);

struct Difference {
  double max_abs = 0;  // of the logits
  double kl = 0;       // KL(reference || other), nats
  bool same_top = false;
};
// Two rows of equal length.
Difference Compare(std::span<const float> reference, std::span<const float> other);

// Differences over many rows.
class DifferenceSum {
 public:
  void Add(const Difference& difference);
  int64_t rows() const { return rows_; }
  double max_abs() const { return max_abs_; }
  double max_kl() const { return max_kl_; }
  double mean_kl() const { return rows_ == 0 ? 0 : kl_ / static_cast<double>(rows_); }
  double top1() const { return rows_ == 0 ? 1 : static_cast<double>(same_) / static_cast<double>(rows_); }

 private:
  int64_t rows_ = 0;
  int64_t same_ = 0;
  double kl_ = 0;
  double max_kl_ = 0;
  double max_abs_ = 0;
};

// How well rows of logits say a target. rows [target.size(), vocab].
struct TargetMeasure {
  double nll = 0;  // mean, nats
  bool all_top = true;
};
TargetMeasure MeasureTarget(std::span<const float> rows, std::span<const int32_t> target);

// Mean KL(reference || other) over rows of `vocab` logits.
double MeanKl(std::span<const float> reference, std::span<const float> other, size_t vocab);

// What one set of logits says of a target, for comparing many others with it: its probabilities are computed once,
// and each comparison costs one exponential per logit, in single precision (about 1e-6 nats).
class TargetReference {
 public:
  // rows [target.size(), vocab]
  void Set(std::span<const float> rows, std::span<const int32_t> target);
  const TargetMeasure& own() const { return own_; }
  // rows as in Set(). Sets kl to the mean KL(reference || rows).
  TargetMeasure Compare(std::span<const float> rows, double& kl) const;

 private:
  std::vector<int32_t> target_;
  std::vector<float> rows_;           // [target, vocab]
  std::vector<float> probabilities_;  // [target, vocab]
  std::vector<double> log_sums_;      // [target]
  TargetMeasure own_;
};

double Median(std::vector<double> values);

}  // namespace pith

#endif  // PITH_LAB_MEASURE_H_
