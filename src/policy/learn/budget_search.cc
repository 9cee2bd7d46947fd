#include "policy/learn/budget_search.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>
#include <numeric>
#include <random>

#include "policy/learn/layer_budgets.h"

namespace pith {
namespace {

// Eigenvalues and columns of eigenvectors of a symmetric matrix by Jacobi's rotations.
void Eigen(std::vector<double> matrix, size_t n, std::vector<double>& values, std::vector<double>& vectors) {
  constexpr int kSweeps = 64;
  vectors.assign(n * n, 0);
  for (size_t i = 0; i < n; ++i) vectors[i * n + i] = 1;
  for (int sweep = 0; sweep < kSweeps; ++sweep) {
    double off = 0, all = 0;
    for (size_t i = 0; i < n * n; ++i) {
      all += matrix[i] * matrix[i];
      if (i / n != i % n) off += matrix[i] * matrix[i];
    }
    if (off <= 1e-30 * all) break;
    for (size_t p = 0; p + 1 < n; ++p) {
      for (size_t q = p + 1; q < n; ++q) {
        const double apq = matrix[p * n + q];
        if (apq == 0) continue;
        const double theta = (matrix[q * n + q] - matrix[p * n + p]) / (2 * apq);
        const double t = (theta >= 0 ? 1 : -1) / (std::abs(theta) + std::sqrt(theta * theta + 1));
        const double c = 1 / std::sqrt(t * t + 1), s = t * c;
        for (size_t k = 0; k < n; ++k) {
          const double kp = matrix[k * n + p], kq = matrix[k * n + q];
          matrix[k * n + p] = c * kp - s * kq;
          matrix[k * n + q] = s * kp + c * kq;
        }
        for (size_t k = 0; k < n; ++k) {
          const double pk = matrix[p * n + k], qk = matrix[q * n + k];
          matrix[p * n + k] = c * pk - s * qk;
          matrix[q * n + k] = s * pk + c * qk;
          const double vp = vectors[k * n + p], vq = vectors[k * n + q];
          vectors[k * n + p] = c * vp - s * vq;
          vectors[k * n + q] = s * vp + c * vq;
        }
      }
    }
  }
  values.resize(n);
  for (size_t i = 0; i < n; ++i) values[i] = matrix[i * n + i];
}

double Norm(std::span<const double> x) {
  return std::sqrt(std::inner_product(x.begin(), x.end(), x.begin(), 0.0));
}

// The same everywhere, as std::normal_distribution is not.
class NormalNumbers {
 public:
  explicit NormalNumbers(uint64_t seed) : random_(seed) {}
  double Next() {
    const double a = Uniform(), b = Uniform();
    return std::sqrt(-2 * std::log(1 - a)) * std::cos(2 * std::numbers::pi * b);
  }

 private:
  double Uniform() { return static_cast<double>(random_() >> 11) * 0x1p-53; }
  std::mt19937_64 random_;
};

int Population(size_t dims) { return 4 + static_cast<int>(3 * std::log(static_cast<double>(dims))); }

}  // namespace

CmaEs::CmaEs(int num_dims, double sigma)
    : dims_(static_cast<size_t>(num_dims)), population_(Population(dims_)), sigma_(sigma) {
  const auto n = static_cast<double>(num_dims);
  const int mu = population_ / 2;
  double sum = 0, squares = 0;
  for (int i = 1; i <= mu; ++i) weights_.push_back(std::log((population_ + 1) / 2.0) - std::log(i));
  for (const double w : weights_) sum += w;
  for (double& w : weights_) w /= sum, squares += w * w;
  mu_eff_ = 1 / squares;
  c_sigma_ = (mu_eff_ + 2) / (n + mu_eff_ + 5);
  d_sigma_ = 1 + c_sigma_ + 2 * std::max(0.0, std::sqrt((mu_eff_ - 1) / (n + 1)) - 1);
  c_covariance_ = (4 + mu_eff_ / n) / (n + 4 + 2 * mu_eff_ / n);
  c_1_ = 2 / ((n + 1.3) * (n + 1.3) + mu_eff_);
  c_mu_ = std::min(1 - c_1_, 2 * (mu_eff_ - 2 + 1 / mu_eff_) / ((n + 2) * (n + 2) + mu_eff_));
  chi_ = std::sqrt(n) * (1 - 1 / (4 * n) + 1 / (21 * n * n));
  mean_.assign(dims_, 1);
  path_sigma_.assign(dims_, 0);
  path_covariance_.assign(dims_, 0);
  covariance_.assign(dims_ * dims_, 0);
  for (size_t i = 0; i < dims_; ++i) covariance_[i * dims_ + i] = 1;
  Decompose();
}

void CmaEs::Decompose() { Eigen(covariance_, dims_, values_, vectors_); }

std::vector<double> CmaEs::TimesRoot(std::span<const double> x, bool inverse) const {
  std::vector<double> out(dims_, 0);
  for (size_t e = 0; e < dims_; ++e) {
    double dot = 0;
    for (size_t i = 0; i < dims_; ++i) dot += vectors_[i * dims_ + e] * x[i];
    const double root = std::sqrt(std::max(values_[e], std::numeric_limits<double>::min()));
    dot *= inverse ? 1 / root : root;
    for (size_t i = 0; i < dims_; ++i) out[i] += vectors_[i * dims_ + e] * dot;
  }
  return out;
}

std::vector<double> CmaEs::Step(std::span<const double> normal) const { return TimesRoot(normal, false); }

std::vector<double> CmaEs::At(std::span<const double> step) const {
  std::vector<double> x(dims_);
  for (size_t i = 0; i < dims_; ++i) x[i] = mean_[i] + sigma_ * step[i];
  return x;
}

void CmaEs::Update(std::span<const std::vector<double>> steps, std::span<const double> fitness) {
  std::vector<size_t> order(steps.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::ranges::stable_sort(order, [&](size_t a, size_t b) { return fitness[a] > fitness[b]; });
  std::vector<double> mean_step(dims_, 0);
  for (size_t i = 0; i < weights_.size(); ++i) {
    for (size_t d = 0; d < dims_; ++d) mean_step[d] += weights_[i] * steps[order[i]][d];
  }
  for (size_t d = 0; d < dims_; ++d) mean_[d] += sigma_ * mean_step[d];
  const std::vector<double> white = TimesRoot(mean_step, true);
  const double of_sigma = std::sqrt(c_sigma_ * (2 - c_sigma_) * mu_eff_);
  for (size_t d = 0; d < dims_; ++d) path_sigma_[d] = (1 - c_sigma_) * path_sigma_[d] + of_sigma * white[d];
  const double length = Norm(path_sigma_);
  const double faded = std::sqrt(1 - std::pow(1 - c_sigma_, 2.0 * (iteration_ + 1)));
  const double h = length / faded < (1.4 + 2 / (static_cast<double>(dims_) + 1)) * chi_ ? 1 : 0;
  const double of_covariance = h * std::sqrt(c_covariance_ * (2 - c_covariance_) * mu_eff_);
  for (size_t d = 0; d < dims_; ++d)
    path_covariance_[d] = (1 - c_covariance_) * path_covariance_[d] + of_covariance * mean_step[d];
  for (size_t i = 0; i < dims_; ++i) {
    for (size_t j = 0; j < dims_; ++j) {
      double& c = covariance_[i * dims_ + j];
      double rank_mu = 0;
      for (size_t k = 0; k < weights_.size(); ++k) rank_mu += weights_[k] * steps[order[k]][i] * steps[order[k]][j];
      const double rank_1 =
          path_covariance_[i] * path_covariance_[j] + (1 - h) * c_covariance_ * (2 - c_covariance_) * c;
      c = (1 - c_1_ - c_mu_) * c + c_1_ * rank_1 + c_mu_ * rank_mu;
    }
  }
  sigma_ *= std::exp((c_sigma_ / d_sigma_) * (length / chi_ - 1));
  ++iteration_;
  Decompose();
}

double CacheScore(double mean, double target, double gamma) {
  if (mean > target) return std::max(0.0, 1 - (mean - target) / target);
  return 1 - gamma * (1 - mean / target);
}

namespace {

// One group of layers, with those before it as they were found.
class GroupSearch {
 public:
  GroupSearch(const BudgetSearchOptions& options, int group, size_t first, size_t count)
      : options_(options),
        group_(group),
        first_(first),
        count_(count),
        state_(static_cast<int>(count), options.sigma) {}

  Status Run(const BudgetScore& score, const BudgetSearchHooks& hooks, NormalNumbers& normal,
             BudgetSearchResult& found) {
    for (int iteration = 0; iteration < options_.iterations; ++iteration) {
      BudgetGeneration generation{
          .group = group_, .iteration = iteration, .candidates = {}, .scores = {}, .fitness = {}};
      const std::vector<std::vector<double>> steps =
          hooks.steps ? hooks.steps(group_, iteration, state_) : Steps(normal);
      // Those of this generation start from what was best before it.
      const std::vector<int> base = found.budgets;
      for (const std::vector<double>& step : steps) {
        std::vector<int> own = Candidate(step), all = base;
        std::ranges::copy(own, all.begin() + static_cast<ptrdiff_t>(first_));
        PITH_ASSIGN_OR_RETURN(const double says, score(all));
        const double mean = std::accumulate(own.begin(), own.end(), 0.0) / static_cast<double>(count_);
        const double fitness = says * (1 + options_.lambda * CacheScore(mean, options_.mean_budget, options_.gamma));
        if (fitness > found.fitness) found = {std::move(all), fitness};
        generation.candidates.push_back(std::move(own));
        generation.scores.push_back(says);
        generation.fitness.push_back(fitness);
      }
      state_.Update(steps, generation.fitness);
      generation.state = &state_;
      generation.best = &found.budgets;
      generation.best_fitness = found.fitness;
      if (hooks.after) hooks.after(generation);
    }
    return {};
  }

 private:
  std::vector<std::vector<double>> Steps(NormalNumbers& normal) const {
    std::vector<std::vector<double>> steps;
    std::vector<double> z(count_);
    for (int k = 0; k < state_.population(); ++k) {
      for (double& x : z) x = normal.Next();
      steps.push_back(state_.Step(z));
    }
    return steps;
  }

  std::vector<int> Candidate(std::span<const double> step) const {
    std::vector<int> budgets;
    for (const double x : state_.At(step)) {
      const double bounded = std::clamp(x, options_.least / options_.mean_budget, options_.most / options_.mean_budget);
      budgets.push_back(static_cast<int>(std::lround(bounded * options_.mean_budget)));
    }
    return budgets;
  }

  const BudgetSearchOptions& options_;
  const int group_;
  const size_t first_, count_;
  CmaEs state_;
};

size_t LayersOf(const BudgetSearchOptions& options, size_t first, size_t num_layers) {
  return std::min(static_cast<size_t>(std::max(options.group, 1)), num_layers - first);
}

}  // namespace

Result<BudgetSearchResult> SearchBudgets(int num_layers, const BudgetSearchOptions& options, const BudgetScore& score,
                                         const BudgetSearchHooks& hooks) {
  const auto count = static_cast<size_t>(num_layers);
  BudgetSearchResult found{std::vector<int>(count, static_cast<int>(std::lround(options.mean_budget))),
                           -std::numeric_limits<double>::infinity()};
  NormalNumbers normal(options.seed);
  int group = 0;
  for (size_t first = 0; first < count; first += LayersOf(options, first, count), ++group) {
    GroupSearch search(options, group, first, LayersOf(options, first, count));
    PITH_RETURN_IF_ERROR(search.Run(score, hooks, normal, found));
  }
  return found;
}

int64_t CountEvaluations(int num_layers, const BudgetSearchOptions& options) {
  const auto count = static_cast<size_t>(num_layers);
  int64_t evaluations = 0;
  for (size_t first = 0; first < count; first += LayersOf(options, first, count)) {
    evaluations += static_cast<int64_t>(options.iterations) * Population(LayersOf(options, first, count));
  }
  return evaluations;
}

std::vector<int> CompleteBudgets(std::span<const int> budgets, int64_t total) {
  return ShareByWeights(total, std::vector<double>(budgets.begin(), budgets.end()), 0);
}

std::vector<int> CompletePaperBudgets(std::span<const int> budgets, int64_t total) {
  const auto sum = static_cast<double>(std::accumulate(budgets.begin(), budgets.end(), int64_t{0}));
  std::vector<int> completed;
  for (const int budget : budgets) {
    // 1e-9: what is whole stays so, whatever the binary fraction says.
    completed.push_back(static_cast<int>(std::ceil(budget + budget / sum * (static_cast<double>(total) - sum) - 1e-9)));
  }
  return completed;
}

}  // namespace pith
