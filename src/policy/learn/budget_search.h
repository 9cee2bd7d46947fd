// Budgets of layers found by evolution on a task (EvolKV, arXiv:2509.08315; no official code, formulas by the
// reproduction in github.com/sravanthkod/KVCache-Factory NAS_Assets/run_evolkv_reproduction.py): CMA-ES over groups of
// neighbouring layers, from the first layer on. A candidate is x = budget / mean budget, as in the reproduction; the
// paper does not say.
#ifndef PITH_POLICY_LEARN_BUDGET_SEARCH_H_
#define PITH_POLICY_LEARN_BUDGET_SEARCH_H_

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "pith/types.h"

namespace pith {

// Covariance matrix adaptation (Hansen), maximising. Starts at all ones.
class CmaEs {
 public:
  CmaEs(int num_dims, double sigma);

  int population() const { return population_; }  // P = 4 + floor(3 ln N)
  // Numbers [N] of a normal distribution into a step: y = C^(1/2) z, which does not hang on the eigen solver.
  std::vector<double> Step(std::span<const double> normal) const;
  // m + s y
  std::vector<double> At(std::span<const double> step) const;
  // steps: [P][N]; fitness: [P], of equal ones the first is better.
  void Update(std::span<const std::vector<double>> steps, std::span<const double> fitness);

  const std::vector<double>& mean() const { return mean_; }
  double sigma() const { return sigma_; }
  const std::vector<double>& path_sigma() const { return path_sigma_; }
  const std::vector<double>& path_covariance() const { return path_covariance_; }
  const std::vector<double>& covariance() const { return covariance_; }  // [N, N]

 private:
  void Decompose();
  // V f(eigenvalues) V^T x with f = sqrt, or 1 / sqrt.
  std::vector<double> TimesRoot(std::span<const double> x, bool inverse) const;

  const size_t dims_;
  const int population_;
  std::vector<double> weights_;
  double mu_eff_ = 0, c_sigma_ = 0, d_sigma_ = 0, c_covariance_ = 0, c_1_ = 0, c_mu_ = 0, chi_ = 0;
  int iteration_ = 0;
  double sigma_;
  std::vector<double> mean_, path_sigma_, path_covariance_, covariance_, values_, vectors_;
};

struct BudgetSearchOptions {
  double mean_budget = 128;  // c
  int group = 8;             // layers that are searched together
  int iterations = 15;       // of each group
  double lambda = 0.3;       // weight of the efficiency term
  double gamma = 0.2;        // discount below the mean budget
  double sigma = 0.3;        // first spread, in mean budgets
  int least = 64, most = 4096;
  uint64_t seed = 42;
};

// How well a mean budget keeps to the target: 1 there, falls to 0 at twice of it and to 1 - gamma at 0.
double CacheScore(double mean, double target, double gamma);

// What the task says of budgets [layers]; at least 0.
using BudgetScore = std::function<Result<double>(std::span<const int> budgets)>;

// One generation of one group, for traces and tests.
struct BudgetGeneration {
  int group = 0, iteration = 0;
  std::vector<std::vector<int>> candidates;  // [P][layers of the group]
  std::vector<double> scores, fitness;       // [P]
  const CmaEs* state = nullptr;              // after it
  const std::vector<int>* best = nullptr;    // [layers] so far
  double best_fitness = 0;
};

struct BudgetSearchHooks {
  // Steps [P][N] of a generation; unset: out of the seed.
  std::function<std::vector<std::vector<double>>(int group, int iteration, const CmaEs& state)> steps;
  std::function<void(const BudgetGeneration&)> after;
};

struct BudgetSearchResult {
  std::vector<int> budgets;  // [layers]; their sum is not exact: CompleteBudgets()
  double fitness = 0;
};

// Errors are those of `score`.
Result<BudgetSearchResult> SearchBudgets(int num_layers, const BudgetSearchOptions& options, const BudgetScore& score,
                                         const BudgetSearchHooks& hooks = {});
// How often it asks for a score.
int64_t CountEvaluations(int num_layers, const BudgetSearchOptions& options);

// To another total, in proportion: ours, with an exact sum, and the paper's, whose mean may be larger by up to 1.
std::vector<int> CompleteBudgets(std::span<const int> budgets, int64_t total);
std::vector<int> CompletePaperBudgets(std::span<const int> budgets, int64_t total);

}  // namespace pith

#endif  // PITH_POLICY_LEARN_BUDGET_SEARCH_H_
