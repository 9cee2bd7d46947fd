#include "policy/learn/less_fit.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>
#include <random>
#include <utility>

#include "policy/act/least_squares.h"

namespace pith {
namespace {

constexpr size_t kSinks = 4, kRecent = 16;  // entries that every policy keeps
constexpr size_t kFewestEntries = 64, kFewestQueries = 16;
// Features of queries are so large that gelu changes nothing of them, nor what is below 0 counts.
constexpr double kGain = 1000;
constexpr std::array<double, 8> kShares = {0, 0.1, 0.25, 0.5, 0.75, 1, 1.25, 1.5};

std::vector<float> Rows(std::span<const float> rows, size_t dim, std::span<const size_t> which) {
  std::vector<float> some;
  some.reserve(which.size() * dim);
  for (const size_t i : which) {
    some.insert(some.end(), rows.begin() + static_cast<ptrdiff_t>(i * dim),
                rows.begin() + static_cast<ptrdiff_t>((i + 1) * dim));
  }
  return some;
}

class HeadFit {
 public:
  HeadFit(const LessSample& sample, const LessFitOptions& options)
      : sample_(sample),
        options_(options),
        dim_(static_cast<size_t>(sample.dim)),
        value_dim_(static_cast<size_t>(sample.value_dim)),
        n_(sample.num_entries),
        rows_(sample.num_queries * static_cast<size_t>(sample.group)),
        rank_(static_cast<size_t>(options.rank)),
        hidden_(static_cast<size_t>(options.hidden)),
        random_(options.seed) {}

  LessFit Run() {
    Attend();
    Divide();
    Factor();
    LessFit fit;
    fit.maps = {.num_heads = sample_.group, .num_kv_heads = 1, .dim = sample_.dim, .hidden = options_.hidden};
    FitKeys(fit.maps);
    for (int g = 0; g < sample_.group; ++g) FitQueries(static_cast<size_t>(g), fit.maps);
    Scale(fit);
    return fit;
  }

 private:
  // Every other query is left for the end.
  static bool IsFitted(size_t row) { return row % 2 == 0; }

  // Attention of all queries over all entries, and the logarithms of what their exponentials sum up to.
  void Attend() {
    weights_.resize(rows_ * n_);
    ProductsOfRows(ViewOf(sample_.queries.data(), rows_, dim_), ViewOf(sample_.keys.data(), n_, dim_), weights_.data(),
                   n_, false);
    log_sums_.resize(rows_);
    for (size_t i = 0; i < rows_; ++i) {
      const std::span<float> row = std::span(weights_).subspan(i * n_, n_);
      for (float& x : row) {
        x *= sample_.scale;
        if (sample_.soft_cap != 0) x = sample_.soft_cap * std::tanh(x / sample_.soft_cap);
      }
      const float most = *std::ranges::max_element(row);
      double sum = 0;
      for (float& x : row) sum += static_cast<double>(x = std::exp(x - most));
      for (float& x : row) x = static_cast<float>(x / sum);
      log_sums_[i] = static_cast<double>(most) + std::log(sum);
    }
    std::vector<double> sorted = log_sums_;
    std::ranges::nth_element(sorted, sorted.begin() + static_cast<ptrdiff_t>(rows_ / 2));
    middle_ = sorted[rows_ / 2];
  }

  // What gets most attention of the queries that are fitted stays, with sinks and the newest.
  void Divide() {
    std::vector<double> received(n_, 0);
    for (size_t i = 0; i < rows_; ++i) {
      for (size_t j = 0; j < n_ && IsFitted(i); ++j) received[j] += static_cast<double>(weights_[i * n_ + j]);
    }
    for (size_t j = 0; j < n_; ++j) {
      if (j < kSinks || j + kRecent >= n_) received[j] = INFINITY;
    }
    std::vector<size_t> order(n_);
    std::iota(order.begin(), order.end(), size_t{0});
    std::ranges::stable_sort(order, [&](size_t a, size_t b) { return received[a] > received[b]; });
    const auto keep =
        std::clamp(static_cast<size_t>(options_.keep * static_cast<double>(n_)), kSinks + kRecent, n_ - n_ / 8);
    kept_.assign(order.begin(), order.begin() + static_cast<ptrdiff_t>(keep));
    dropped_.assign(order.begin() + static_cast<ptrdiff_t>(keep), order.end());
    std::ranges::sort(kept_);
    std::ranges::sort(dropped_);
    keys_ = Rows(sample_.keys, dim_, dropped_);
  }

  // P = a b' of the queries that are fitted over the entries that go.
  void Factor() {
    for (size_t i = 0; i < rows_; ++i) {
      if (IsFitted(i)) fitted_.push_back(i);
    }
    const size_t rows = fitted_.size(), n = dropped_.size();
    std::vector<float> p(rows * n);
    double mean = 0;
    for (size_t i = 0; i < rows; ++i) {
      for (size_t j = 0; j < n; ++j) {
        p[i * n + j] = weights_[fitted_[i] * n_ + dropped_[j]];
        mean += static_cast<double>(p[i * n + j]);
      }
    }
    mean /= static_cast<double>(rows * n);
    std::uniform_real_distribution<double> uniform(0.5, 1.5);
    const auto start = [&](std::vector<float>& factor, size_t count) {
      factor.resize(count);
      for (float& x : factor) x = static_cast<float>(std::sqrt(mean / static_cast<double>(rank_)) * uniform(random_));
    };
    start(of_queries_, rows * rank_);  // a
    start(of_keys_, n * rank_);        // b
    const std::vector<float> turned = Transposed(ViewOf(p.data(), rows, n));
    for (int round = 0; round < options_.rounds; ++round) {
      Update(ViewOf(p.data(), rows, n), of_keys_, of_queries_);
      Update(ViewOf(turned.data(), n, rows), of_queries_, of_keys_);
    }
    // Each part of the keys has the mean 1.
    for (size_t r = 0; r < rank_; ++r) {
      double sum = 0;
      for (size_t j = 0; j < n; ++j) sum += static_cast<double>(of_keys_[j * rank_ + r]);
      const double factor = sum > 0 ? static_cast<double>(n) / sum : 0;
      for (size_t j = 0; j < n; ++j) of_keys_[j * rank_ + r] *= static_cast<float>(factor);
      for (size_t i = 0; i < rows; ++i) of_queries_[i * rank_ + r] *= factor > 0 ? static_cast<float>(1 / factor) : 0;
    }
  }

  // left *= (p right) / (left right' right), p [left rows, right rows]
  void Update(const MatrixView& p, const std::vector<float>& right, std::vector<float>& left) const {
    const std::vector<float> columns = Transposed(ViewOf(right.data(), p.columns, rank_));  // [R, right rows]
    std::vector<float> above(p.rows * rank_), gram(rank_ * rank_), below(p.rows * rank_);
    ProductsOfRows(p, ViewOf(columns.data(), rank_, p.columns), above.data(), rank_, false);
    ProductsOfRows(ViewOf(columns.data(), rank_, p.columns), ViewOf(columns.data(), rank_, p.columns), gram.data(),
                   rank_, false);
    ProductsOfRows(ViewOf(left.data(), p.rows, rank_), ViewOf(gram.data(), rank_, rank_), below.data(), rank_, false);
    for (size_t i = 0; i < left.size(); ++i) left[i] *= above[i] / (below[i] + 1e-20F);
  }

  // A direction whose product with each row is as nearly 1 as can be. [D]
  std::vector<float> Constant(const MatrixView& rows) const {
    const std::vector<float> ones(rows.rows, 1.0F);
    std::vector<float> direction(dim_, 0.0F);
    if (!RidgeRegression(rows, ViewOf(ones.data(), rows.rows, 1), options_.ridge, direction)) return {};
    return direction;
  }

  // Hidden units [D, m] of `rows`, which are multiplied with rows drawn from `others`.
  std::vector<float> Units(const MatrixView& rows, const MatrixView& others) {
    const std::vector<float> constant = Constant(rows);
    std::vector<float> w1(dim_ * hidden_, 0);
    std::uniform_int_distribution<size_t> any_other(0, others.rows - 1), any_row(0, rows.rows - 1);
    for (size_t u = 0; u < hidden_; ++u) {
      const float* const other = others.row(any_other(random_));
      // The logit of some row is the threshold.
      const float* const row = rows.row(any_row(random_));
      double threshold = 0;
      for (size_t d = 0; d < dim_; ++d) threshold += static_cast<double>(row[d]) * static_cast<double>(other[d]);
      for (size_t d = 0; d < dim_; ++d) {
        const double shift = constant.empty() ? 0 : threshold * static_cast<double>(constant[d]);
        w1[d * hidden_ + u] =
            static_cast<float>(static_cast<double>(sample_.scale) * (static_cast<double>(other[d]) - shift));
      }
    }
    return w1;
  }

  // gelu(rows W1), [rows, m]
  std::vector<float> HiddenOf(const MatrixView& rows, const std::vector<float>& w1) const {
    std::vector<float> units(rows.rows * hidden_);
    const std::vector<float> columns = Transposed(ViewOf(w1.data(), dim_, hidden_));
    ProductsOfRows(rows, ViewOf(columns.data(), hidden_, dim_), units.data(), hidden_, false);
    for (float& x : units) x = static_cast<float>(0.5 * x * std::erfc(-static_cast<double>(x) / std::sqrt(2.0)));
    return units;
  }

  // W2 [m, R] with units W2 = kGain target, rows weighted.
  std::vector<float> Solve(std::vector<float> units, std::vector<float> target, std::span<const double> weights) const {
    const size_t rows = weights.size();
    for (size_t i = 0; i < rows; ++i) {
      for (size_t u = 0; u < hidden_; ++u) units[i * hidden_ + u] *= static_cast<float>(weights[i]);
      for (size_t r = 0; r < rank_; ++r) target[i * rank_ + r] *= static_cast<float>(kGain * weights[i]);
    }
    std::vector<float> w2(hidden_ * rank_, 0);
    if (!RidgeRegression(ViewOf(units.data(), rows, hidden_), ViewOf(target.data(), rows, rank_), options_.ridge, w2)) {
      std::ranges::fill(w2, 0.0F);
    }
    return w2;
  }

  MatrixView QueriesOf(size_t g) const {
    return ViewOf(sample_.queries.data() + g * sample_.num_queries * dim_, sample_.num_queries, dim_);
  }

  void FitKeys(LessLayer& maps) {
    const MatrixView keys = ViewOf(keys_.data(), dropped_.size(), dim_);
    maps.key_w1 = Units(keys, ViewOf(sample_.queries.data(), rows_, dim_));
    const std::vector<double> weights(dropped_.size(), 1.0);
    maps.key_w2 = Solve(HiddenOf(keys, maps.key_w1), of_keys_, weights);
    maps.key_w3.assign(rank_ * rank_, 0.0F);
    maps.key_s2.assign(rank_, 0.0F);
    // Features of queries are relative to the middle sum, and both are kGain times too large.
    maps.key_s1.assign(rank_, static_cast<float>(std::exp(middle_) / (kGain * kGain)));
  }

  void FitQueries(size_t g, LessLayer& maps) {
    std::vector<size_t> own;
    std::vector<float> target;
    std::vector<double> weights;
    for (size_t i = 0; i < fitted_.size(); ++i) {
      if (fitted_[i] / sample_.num_queries != g) continue;
      own.push_back(fitted_[i]);
      // Of a Z, as an error counts over Z.
      const double sum = std::exp(std::clamp(log_sums_[fitted_[i]] - middle_, -30.0, 30.0));
      weights.push_back(1 / sum);
      for (size_t r = 0; r < rank_; ++r) target.push_back(static_cast<float>(of_queries_[i * rank_ + r] * sum));
    }
    const std::vector<float> queries = Rows(sample_.queries, dim_, own);
    const MatrixView view = ViewOf(queries.data(), own.size(), dim_);
    // Half of the units look at what stays, which makes up most of Z.
    std::vector<float> others = Rows(sample_.keys, dim_, kept_);
    others.insert(others.end(), keys_.begin(),
                  keys_.begin() + static_cast<ptrdiff_t>(std::min(kept_.size() * dim_, keys_.size()) / dim_ * dim_));
    const std::vector<float> w1 = Units(view, ViewOf(others.data(), others.size() / dim_, dim_));
    const std::vector<float> w2 = Solve(HiddenOf(view, w1), std::move(target), weights);
    maps.query_w1.insert(maps.query_w1.end(), w1.begin(), w1.end());
    maps.query_w2.insert(maps.query_w2.end(), w2.begin(), w2.end());
  }

  // Outputs of the held-out queries over all entries, over those that stay, and of the state's part before its share
  // and the kept ones' are weighed.
  struct Outputs {
    std::vector<float> full, kept;  // [Dv]
    double log_kept = 0;
    std::vector<float> features;  // [R]
  };

  Outputs OutputsOf(size_t row, const LessMaps& maps) const {
    Outputs out{std::vector<float>(value_dim_, 0), std::vector<float>(value_dim_, 0), 0, std::vector<float>(rank_)};
    const float* const weights = weights_.data() + row * n_;
    double mass = 0;
    const auto add = [&](size_t j, std::vector<float>& to) {
      for (size_t c = 0; c < value_dim_; ++c) to[c] += weights[j] * sample_.values[j * value_dim_ + c];
    };
    for (size_t j = 0; j < n_; ++j) add(j, out.full);
    for (const size_t j : kept_) add(j, out.kept), mass += static_cast<double>(weights[j]);
    for (float& x : out.kept) x = static_cast<float>(x / mass);
    out.log_kept = log_sums_[row] + std::log(mass);
    kernels::MapFeatures(maps.QueryMap(0, static_cast<int>(row / sample_.num_queries)),
                         sample_.queries.data() + row * dim_, dim_, 1, out.features.data(), rank_);
    return out;
  }

  static double Distance(const std::vector<float>& a, const std::vector<float>& b) {
    double sum = 0;
    for (size_t c = 0; c < a.size(); ++c) sum += std::pow(static_cast<double>(a[c]) - static_cast<double>(b[c]), 2);
    return sum;
  }

  void Scale(LessFit& fit) const {
    const auto maps = LessMaps::Make(options_.rank, {fit.maps});
    if (!maps) {  // numbers beyond float32
      std::ranges::fill(fit.maps.key_s1, 0.0F);
      return;
    }
    std::vector<float> state(kernels::StateFloats(options_.rank, sample_.value_dim), 0), features(rank_);
    for (size_t i = 0; i < dropped_.size(); ++i) {
      kernels::MapFeatures((*maps)->KeyMap(0, 0), keys_.data() + i * dim_, dim_, 1, features.data(), rank_);
      kernels::AddToState(features, sample_.values.subspan(dropped_[i] * value_dim_, value_dim_), state.data());
    }
    std::array<double, kShares.size()> errors{};
    size_t count = 0;
    for (size_t row = 0; row < rows_; ++row) {
      if (IsFitted(row)) continue;
      const Outputs out = OutputsOf(row, **maps);
      ++count;
      for (size_t s = 0; s < kShares.size(); ++s) {
        std::vector<float> joined = out.kept, scaled = out.features;
        for (float& x : scaled) x *= static_cast<float>(kShares[s]);
        kernels::JoinState(scaled, state.data(), static_cast<float>(out.log_kept), joined);
        errors[s] += Distance(joined, out.full);
      }
    }
    const auto best = static_cast<size_t>(std::ranges::min_element(errors) - errors.begin());
    fit.error_without = errors[0] / static_cast<double>(std::max<size_t>(count, 1));
    fit.error_with = errors[best] / static_cast<double>(std::max<size_t>(count, 1));
    for (float& x : fit.maps.key_s1) x *= static_cast<float>(kShares[best]);
  }

  const LessSample& sample_;
  const LessFitOptions& options_;
  const size_t dim_, value_dim_, n_, rows_, rank_, hidden_;
  std::mt19937_64 random_;
  std::vector<float> weights_;    // [G T, n]
  std::vector<double> log_sums_;  // [G T]
  double middle_ = 0;             // their median
  std::vector<size_t> kept_, dropped_, fitted_;
  std::vector<float> keys_;                  // of the dropped ones
  std::vector<float> of_queries_, of_keys_;  // a [fitted, R], b [dropped, R]
};

}  // namespace

Result<LessFit> FitLess(const LessSample& sample, const LessFitOptions& options) {
  if (sample.num_entries < kFewestEntries || sample.num_queries < kFewestQueries) {
    return InvalidArgument("maps are fitted to at least 64 entries and 16 queries after them");
  }
  if (options.rank < 1 || options.rank > kernels::kMostFeatures || options.hidden < 1 ||
      options.hidden > kernels::kMostHiddenUnits) {
    return InvalidArgument("maps of so many features or hidden units are not known");
  }
  return HeadFit(sample, options).Run();
}

void AppendHead(const LessLayer& head, LessLayer& layer) {
  layer.num_heads += head.num_heads;
  layer.num_kv_heads += head.num_kv_heads;
  layer.dim = head.dim;
  layer.hidden = head.hidden;
  const auto append = [](const std::vector<float>& from, std::vector<float>& to) {
    to.insert(to.end(), from.begin(), from.end());
  };
  append(head.query_w1, layer.query_w1), append(head.query_w2, layer.query_w2);
  append(head.key_w1, layer.key_w1), append(head.key_w2, layer.key_w2), append(head.key_w3, layer.key_w3);
  append(head.key_s1, layer.key_s1), append(head.key_s2, layer.key_s2);
}

}  // namespace pith
