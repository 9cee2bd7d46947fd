#include "policy/certain_entries.h"

#include <algorithm>
#include <numeric>

#include "policy/positions.h"
#include "policy/select.h"

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
  means.assign(inputs.heads.size(), {});
  double before_window = 0;
  double rows = 0;
  for (size_t h = 0; h < inputs.heads.size(); ++h) {
    const WindowProbs probs(inputs, inputs.heads[h], window);
    const auto columns = static_cast<size_t>(probs.columns());
    const auto recent = std::min(columns, static_cast<size_t>(probs.rows()));
    std::vector<float>& mean = means[h];
    mean.assign(columns, 0.0F);
    for (int g = 0; g < probs.group(); ++g) {
      for (int t = 0; t < probs.rows(); ++t, rows += 1) {
        const float* row = probs.row(g, t);
        for (size_t j = 0; j < columns; ++j) mean[j] += row[j];
        before_window += SumOf({row + columns - recent, recent});
      }
    }
    const double sum = SumOf(mean);
    for (float& m : mean) m = sum > 0 ? static_cast<float>(static_cast<double>(m) / sum) : 0;
  }
  return rows > 0 ? before_window / rows : 0;
}

std::vector<size_t> CertainEntries(const std::vector<float>& mean, const LayerScores& scores, const Budget& budget) {
  const auto n = static_cast<double>(mean.size());
  const double keep = KeepFraction(budget, static_cast<int>(mean.size()) + scores.window);
  const int most = static_cast<int>(n * keep - scores.window);
  std::vector<size_t> order(mean.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return mean[a] > mean[b]; });
  size_t count = 0;
  double mass = 0;
  while (count < order.size() && static_cast<int>(count) < most) {
    mass += static_cast<double>(mean[order[count]]);
    if (mass >= scores.certain_mass) break;
    ++count;
  }
  order.resize(count);
  return order;
}

}  // namespace pith
