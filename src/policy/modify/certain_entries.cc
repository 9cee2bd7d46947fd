#include "policy/modify/certain_entries.h"

#include <algorithm>
#include <cstdint>
#include <functional>
#include <utility>

#include "base/parallel.h"
#include "policy/select.h"
#include "policy/terms/positions.h"

namespace pith {

void WeighByValueShares(const LayerInputs& inputs, LayerScores& scores) {
  std::vector<std::vector<float>> norms;
  for (const HeadInputs& head : inputs.heads) {
    if (head.value_norms == nullptr) return;
    norms.emplace_back(head.value_norms, head.value_norms + head.num_entries);
  }
  const std::vector<std::vector<float>> means = MeanOverHeads(inputs, norms);
  const auto num_heads = static_cast<float>(norms.size());
  for (size_t h = 0; h < norms.size(); ++h) {
    for (size_t i = 0; i < norms[h].size(); ++i) {
      const float sum = means[h][i] * num_heads;
      if (scores.heads[h][i] != kProtected) scores.heads[h][i] *= sum > 0 ? norms[h][i] / sum : 0;
    }
  }
}

double MeanAttention(const LayerInputs& inputs, int window, std::vector<std::vector<float>>& means) {
  struct Sums {  // over the window's rows of a query head
    std::vector<float> columns;
    double before_window = 0, rows = 0;
  };
  const auto group = static_cast<size_t>(inputs.group);
  std::vector<Sums> of_query_heads(inputs.heads.size() * group);
  ParallelFor(of_query_heads.size(), [&](size_t i) {
    const WindowProbs probs(inputs, inputs.heads[i / group], window);
    const auto columns = static_cast<size_t>(probs.columns());
    const auto recent = std::min(columns, static_cast<size_t>(probs.rows()));
    Sums& sums = of_query_heads[i];
    sums.columns.assign(columns, 0.0F);
    sums.rows = probs.rows();
    for (int t = 0; t < probs.rows(); ++t) {
      const float* row = probs.row(static_cast<int>(i % group), t);
      for (size_t j = 0; j < columns; ++j) sums.columns[j] += row[j];
      sums.before_window += SumOf({row + columns - recent, recent});
    }
  });
  means.assign(inputs.heads.size(), {});
  double before_window = 0, rows = 0;
  for (size_t i = 0; i < of_query_heads.size(); ++i) {
    Sums& sums = of_query_heads[i];
    before_window += sums.before_window;
    rows += sums.rows;
    std::vector<float>& mean = means[i / group];
    if (mean.empty()) mean = std::move(sums.columns);
    else std::ranges::transform(mean, sums.columns, mean.begin(), std::plus<>());
  }
  for (std::vector<float>& mean : means) {
    const double sum = SumOf(mean);
    for (float& m : mean) m = sum > 0 ? static_cast<float>(static_cast<double>(m) / sum) : 0;
  }
  return rows > 0 ? before_window / rows : 0;
}

std::vector<size_t> CertainEntries(const std::vector<float>& mean, double certain_mass, int window,
                                   const Budget& budget) {
  const auto n = static_cast<double>(mean.size());
  const double keep = KeepFraction(budget, static_cast<int>(mean.size()) + window);
  const int most = static_cast<int>(n * keep - window);
  std::vector<uint64_t> order(mean.size());  // best first, then lower index
  for (size_t i = 0; i < order.size(); ++i) order[i] = uint64_t{Falling(mean[i])} << 32 | i;
  const auto candidates = order.begin() + std::clamp(most, 0, static_cast<int>(order.size()));
  if (candidates != order.end()) std::nth_element(order.begin(), candidates, order.end());
  std::sort(order.begin(), candidates);
  double mass = 0;
  std::vector<size_t> certain;
  for (auto at = order.begin(); at != candidates; ++at) {
    const auto i = static_cast<size_t>(*at & 0xFFFFFFFFU);
    mass += static_cast<double>(mean[i]);
    if (mass >= certain_mass) break;
    certain.push_back(i);
  }
  return certain;
}

}  // namespace pith
