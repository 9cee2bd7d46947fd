// Orthogonal matching pursuit over the keys of one head, as in the authors' code (match.h).
#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include "policy/act/match.h"
#include "policy/act/references.h"

namespace pith {
namespace {

constexpr int kRefills = 3;
constexpr double kNextToNothing = 1e-12;  // weight of what waits to be fitted
constexpr double kLeastBias = -7, kMostBias = 7;

// Columns of exp(s - m) [entries, N], and their sum.
struct Columns {
  size_t rows = 0, count = 0;
  std::vector<float> numbers;
  std::vector<double> wanted;

  Columns(const References& references, const ResidueInputs& inputs)
      : rows(references.size()), count(inputs.kept.size() + inputs.dropped.size()), numbers(rows * count) {
    wanted.assign(rows, 0);
    AttendAll(references, inputs, [&](const AttentionTile& tile) {
      for (size_t t = 0; t < tile.count; ++t) {
        const float* row = tile.row(t);
        const float largest = *std::max_element(row, row + tile.width);
        for (size_t j = 0; j < count; ++j) {
          const float mass = row[inputs.fixed.size() + j] / largest;
          numbers[j * rows + tile.first + t] = mass;
          wanted[tile.first + t] += static_cast<double>(mass);
        }
      }
    });
  }

  std::span<const float> column(size_t j) const { return std::span(numbers).subspan(j * rows, rows); }
};

double Dot(std::span<const float> a, std::span<const float> b) {
  return std::inner_product(a.begin(), a.end(), b.begin(), 0.0, std::plus<>(),
                            [](float x, float y) { return static_cast<double>(x) * static_cast<double>(y); });
}

double Dot(std::span<const float> a, const std::vector<double>& b) {
  return std::inner_product(a.begin(), a.end(), b.begin(), 0.0, std::plus<>(),
                            [](float x, double y) { return static_cast<double>(x) * y; });
}

// Least squares over a set of columns that grows: a Cholesky factor that gains a row with each.
class GrowingFit {
 public:
  explicit GrowingFit(const Columns& columns) : columns_(columns) {}

  void Add(size_t column) {
    const size_t n = chosen_.size();
    std::vector<double> row(n + 1);
    for (size_t j = 0; j < n; ++j) {
      double sum = Dot(columns_.column(column), columns_.column(chosen_[j]));
      for (size_t k = 0; k < j; ++k) sum -= row[k] * factor_[j][k];
      row[j] = sum / factor_[j][j];
    }
    const double own = Dot(columns_.column(column), columns_.column(column));
    double rest = own;
    for (size_t k = 0; k < n; ++k) rest -= row[k] * row[k];
    row[n] = std::sqrt(std::max(rest, own * 1e-12 + 1e-300));  // nearly a sum of others: it gets what is left
    factor_.push_back(std::move(row));
    right_.push_back(Dot(columns_.column(column), columns_.wanted));
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
  const Columns& columns_;
  std::vector<size_t> chosen_;
  std::vector<std::vector<double>> factor_;
  std::vector<double> right_;
};

class Pursuit {
 public:
  Pursuit(const Columns& columns, size_t at_once) : columns_(columns), at_once_(at_once), taken_(columns.count, 0) {}

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
    GrowingFit fit(columns_);
    for (const size_t column : chosen_) fit.Add(column);
    return fit.Solve(kNextToNothing, std::exp(kMostBias));
  }

  void Fill(size_t count) {
    GrowingFit fit(columns_);
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
    std::vector<double> missing = columns_.wanted;
    for (size_t i = 0; i < chosen_.size(); ++i) {
      const std::span<const float> column = columns_.column(chosen_[i]);
      for (size_t q = 0; q < columns_.rows; ++q) missing[q] -= weights[i] * static_cast<double>(column[q]);
    }
    std::vector<std::pair<double, size_t>> found;
    for (size_t j = 0; j < columns_.count; ++j) {
      if (taken_[j] == 0) found.emplace_back(-Dot(columns_.column(j), missing), j);
    }
    count = std::min(count, found.size());
    std::partial_sort(found.begin(), found.begin() + static_cast<ptrdiff_t>(count), found.end());
    std::vector<size_t> best;
    for (size_t i = 0; i < count; ++i) best.push_back(found[i].second);
    return best;
  }

  const Columns& columns_;
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
  const Columns columns(References(inputs.queries, inputs.scale, inputs.soft_cap), block);
  std::vector<int32_t> chosen;
  const std::vector<size_t> found = Pursuit(columns, static_cast<size_t>(options.pursuit)).Run(count);
  for (const size_t column : found) chosen.push_back(entries[column]);
  return chosen;
}

}  // namespace pith
