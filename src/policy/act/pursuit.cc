// Orthogonal matching pursuit over the keys of one head, as in the authors' code (match.h).
#include <algorithm>
#include <cmath>
#include <span>
#include <utility>

#include "policy/act/masses.h"
#include "policy/act/match.h"
#include "policy/act/references.h"

namespace pith {
namespace {

constexpr int kRefills = 3;
constexpr double kNextToNothing = 1e-12;  // weight of what waits to be fitted
constexpr double kLeastBias = -7, kMostBias = 7;

// Least squares over a set of columns that grows: a Cholesky factor that gains a row with each.
class GrowingFit {
 public:
  explicit GrowingFit(const Masses& masses) : masses_(masses) {}

  void Add(size_t column) {
    const size_t n = chosen_.size();
    std::vector<double> row(n + 1);
    for (size_t j = 0; j < n; ++j) {
      double sum = Dot(masses_.column(column), masses_.column(chosen_[j]));
      for (size_t k = 0; k < j; ++k) sum -= row[k] * factor_[j][k];
      row[j] = sum / factor_[j][j];
    }
    const double own = Dot(masses_.column(column), masses_.column(column));
    double rest = own;
    for (size_t k = 0; k < n; ++k) rest -= row[k] * row[k];
    row[n] = std::sqrt(std::max(rest, own * 1e-12 + 1e-300));  // nearly a sum of others: it gets what is left
    factor_.push_back(std::move(row));
    right_.push_back(Dot(masses_.column(column), std::span<const double>(masses_.wanted())));
    chosen_.push_back(column);
  }

  // Weights of all that were added, cut off.
  std::vector<double> Solve(double least, double most) const {
    std::vector<double> x = right_;
    for (size_t i = 0; i < x.size(); ++i) {
      for (size_t k = 0; k < i; ++k) x[i] -= factor_[i][k] * x[k];
      x[i] /= factor_[i][i];
    }
    for (size_t i = x.size(); i-- > 0;) {
      x[i] /= factor_[i][i];
      for (size_t k = 0; k < i; ++k) x[k] -= factor_[i][k] * x[i];
    }
    for (double& weight : x) weight = std::clamp(weight, least, most);
    return x;
  }

 private:
  const Masses& masses_;
  std::vector<size_t> chosen_;
  std::vector<std::vector<double>> factor_;
  std::vector<double> right_;
};

class Pursuit {
 public:
  Pursuit(const Masses& masses, size_t at_once) : masses_(masses), at_once_(at_once), taken_(masses.count(), 0) {}

  std::vector<size_t> Run(size_t count) && {
    Fill(count);
    for (int refill = 0; refill < kRefills; ++refill) {
      const std::vector<double> weights = Fit();
      std::vector<size_t> left;
      for (size_t i = 0; i < chosen_.size(); ++i) {
        if (std::log(weights[i]) >= kLeastBias) left.push_back(chosen_[i]);
      }
      if (left.size() == chosen_.size()) break;
      chosen_ = left;  // what goes stays taken
      Fill(count);
    }
    return std::move(chosen_);
  }

 private:
  std::vector<double> Fit() const {
    GrowingFit fit(masses_);
    for (const size_t column : chosen_) fit.Add(column);
    return fit.Solve(kNextToNothing, std::exp(kMostBias));
  }

  void Fill(size_t count) {
    GrowingFit fit(masses_);
    for (const size_t column : chosen_) fit.Add(column);
    std::vector<double> weights = fit.Solve(kNextToNothing, std::exp(kMostBias));
    for (int round = 0; chosen_.size() < count; ++round) {
      const std::vector<size_t> best = Best(weights, std::min(at_once_, count - chosen_.size()));
      if (best.empty()) return;
      for (const size_t column : best) {
        taken_[column] = 1;
        fit.Add(column);
        chosen_.push_back(column);
      }
      if (at_once_ == 1 || round % 2 == 0) {
        weights = fit.Solve(kNextToNothing, std::exp(kMostBias));
      } else {
        weights.resize(chosen_.size(), kNextToNothing);
      }
    }
  }

  // Free columns with most of what those weights leave missing.
  std::vector<size_t> Best(const std::vector<double>& weights, size_t count) const {
    std::vector<double> missing = masses_.wanted();
    for (size_t i = 0; i < chosen_.size(); ++i) masses_.Subtract(chosen_[i], weights[i], missing);
    std::vector<std::pair<double, size_t>> found;
    for (size_t j = 0; j < masses_.count(); ++j) {
      if (taken_[j] == 0) found.emplace_back(-Dot(masses_.column(j), std::span<const double>(missing)), j);
    }
    count = std::min(count, found.size());
    std::partial_sort(found.begin(), found.begin() + static_cast<ptrdiff_t>(count), found.end());
    std::vector<size_t> best;
    for (size_t i = 0; i < count; ++i) best.push_back(found[i].second);
    return best;
  }

  const Masses& masses_;
  const size_t at_once_;
  std::vector<uint8_t> taken_;
  std::vector<size_t> chosen_;
};

}  // namespace

std::vector<int32_t> PursueKeys(const MatchOptions& options, size_t count, const ResidueInputs& inputs) {
  // In the order of positions, so that the earlier of two equals is taken.
  std::vector<int32_t> entries(inputs.kept.begin(), inputs.kept.end());
  entries.insert(entries.end(), inputs.dropped.begin(), inputs.dropped.end());
  std::ranges::sort(entries);
  ResidueInputs block = inputs;
  block.kept = entries;
  block.dropped = {};
  const Masses masses(References(inputs.queries, inputs.scale, inputs.soft_cap), block);
  std::vector<int32_t> chosen;
  const std::vector<size_t> found = Pursuit(masses, static_cast<size_t>(options.pursuit)).Run(count);
  for (const size_t column : found) chosen.push_back(entries[column]);
  return chosen;
}

}  // namespace pith
