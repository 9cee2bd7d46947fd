// EvolKV (arXiv:2509.08315): the trace of its search on a task with a known optimum, and what follows from budgets.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cmath>

#include "policy/learn/budget_search.h"
#include "tests/support/golden.h"

namespace pith::testing {
namespace {

std::vector<float> Floats(const std::vector<double>& values) { return {values.begin(), values.end()}; }

// Everything that one group's generations leave behind, in the file's order.
struct Trace {
  std::vector<int64_t> candidates;
  std::vector<float> scores, fitness, mean, sigma, path_sigma, path_covariance, covariance;

  void Add(const BudgetGeneration& generation) {
    for (const std::vector<int>& one : generation.candidates)
      candidates.insert(candidates.end(), one.begin(), one.end());
    const auto append = [](std::vector<float>& to, const std::vector<double>& from) {
      to.insert(to.end(), from.begin(), from.end());
    };
    append(scores, generation.scores);
    append(fitness, generation.fitness);
    append(mean, generation.state->mean());
    sigma.push_back(static_cast<float>(generation.state->sigma()));
    append(path_sigma, generation.state->path_sigma());
    append(path_covariance, generation.state->path_covariance());
    append(covariance, generation.state->covariance());
  }

  void Expect(const GgufFile& file, const std::string& out) const {
    constexpr Tolerance kState{1e-6, 1e-3};
    ExpectExactly(candidates, file.tensor(out + "candidates").i64, out + "candidates");
    ExpectNumbers(scores, file.tensor(out + "score").f32, out + "score");
    ExpectNumbers(fitness, file.tensor(out + "fitness").f32, out + "fitness");
    ExpectNumbers(mean, file.tensor(out + "mean").f32, out + "mean", kState);
    ExpectNumbers(sigma, file.tensor(out + "sigma").f32, out + "sigma", kState);
    ExpectNumbers(path_sigma, file.tensor(out + "path_sigma").f32, out + "path_sigma", kState);
    ExpectNumbers(path_covariance, file.tensor(out + "path_cov").f32, out + "path_cov", kState);
    ExpectNumbers(covariance, file.tensor(out + "cov").f32, out + "cov", kState);
  }
};

BudgetSearchOptions OptionsOf(const GgufFile& file) {
  return {.mean_budget = file.number("pith.param.target"),
          .group = file.param("group"),
          .iterations = file.param("iterations"),
          .lambda = std::round(file.number("pith.param.lambda") * 1e6) / 1e6,
          .gamma = std::round(file.number("pith.param.gamma") * 1e6) / 1e6,
          .sigma = std::round(file.number("pith.param.sigma") * 1e6) / 1e6,
          .least = file.param("k_min"),
          .most = file.param("k_max")};
}

PITH_GOLDEN_TEST(Learn, evolkv, "in/optimum") {
  const BudgetSearchOptions options = OptionsOf(file);
  const int layers = file.param("layers");
  const std::vector<float>&optimum = file.tensor("in/optimum").f32, &weight = file.tensor("in/weight").f32;
  std::vector<Trace> traces;
  std::vector<int64_t> best;
  std::vector<float> best_fitness;
  BudgetSearchHooks hooks;
  hooks.steps = [&](int group, int iteration, const CmaEs& state) {
    const std::vector<float>& y = file.tensor(fmt::format("in/g{}/y", group)).f32;
    const size_t dims = state.mean().size(), population = static_cast<size_t>(state.population());
    const float* at = y.data() + static_cast<size_t>(iteration) * population * dims;
    std::vector<std::vector<double>> steps;
    for (size_t k = 0; k < population; ++k) steps.emplace_back(at + k * dims, at + (k + 1) * dims);
    return steps;
  };
  hooks.after = [&](const BudgetGeneration& generation) {
    traces.resize(static_cast<size_t>(generation.group) + 1);
    traces.back().Add(generation);
    if (generation.iteration + 1 < options.iterations) return;
    best.insert(best.end(), generation.best->begin(), generation.best->end());
    best_fitness.push_back(static_cast<float>(generation.best_fitness));
  };
  const auto score = [&](std::span<const int> budgets) -> Result<double> {
    double sum = 0;
    for (size_t l = 0; l < budgets.size(); ++l) {
      const double distance = std::log(budgets[l] / static_cast<double>(optimum[l]));
      sum += static_cast<double>(weight[l]) * distance * distance;
    }
    return 1 / (1 + sum / layers);
  };
  const auto found = SearchBudgets(layers, options, score, hooks);
  ASSERT_TRUE(found);
  for (size_t g = 0; g < traces.size(); ++g) traces[g].Expect(file, fmt::format("out/evolkv/g{}/", g));
  ExpectExactly(best, file.tensor("out/evolkv/best").i64, "best");
  ExpectNumbers(best_fitness, file.tensor("out/evolkv/best_fitness").f32, "best_fitness");

  std::vector<double> cache_scores, fitness;
  const std::vector<float>&means = file.tensor("in/kbar").f32, &scores = file.tensor("in/f").f32;
  for (size_t i = 0; i < means.size(); ++i) {
    cache_scores.push_back(CacheScore(static_cast<double>(means[i]), options.mean_budget, options.gamma));
    fitness.push_back(static_cast<double>(scores[i]) * (1 + options.lambda * cache_scores.back()));
  }
  ExpectNumbers(Floats(cache_scores), file.tensor("out/evolkv/cache_score").f32, "cache_score");
  ExpectNumbers(Floats(fitness), file.tensor("out/evolkv/fitness").f32, "fitness");
}

template <typename Complete>
void CheckCompletion(const GgufFile& file, const std::string& method, const Complete& complete) {
  const std::vector<int64_t>&tables = file.tensor("in/budgets").i64, &totals = file.tensor("in/totals").i64;
  const auto layers = static_cast<size_t>(file.param("layers"));
  std::vector<int64_t> all;
  for (size_t table = 0; table < tables.size(); table += layers) {
    const std::vector<int> budgets(tables.begin() + static_cast<ptrdiff_t>(table),
                                   tables.begin() + static_cast<ptrdiff_t>(table + layers));
    for (const int64_t total : totals) {
      const std::vector<int> completed = complete(budgets, total);
      all.insert(all.end(), completed.begin(), completed.end());
    }
  }
  ExpectExactly(all, file.tensor("out/" + method + "/completed").i64, method + "/completed");
}

TEST(GoldenLearn, EvolkvCompletesBudgetsExactly) {
  ForEachGolden("evolkv", "in/totals", [](const GgufFile& file) { CheckCompletion(file, "evolkv", CompleteBudgets); });
}

PITH_GOLDEN_TEST(Learn, evolkv_paper, "in/totals") { CheckCompletion(file, "evolkv_paper", CompletePaperBudgets); }

}  // namespace
}  // namespace pith::testing
