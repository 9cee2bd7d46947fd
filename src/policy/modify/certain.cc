// DefensiveKV's last steps (arXiv:2510.13334; github.com/FFY0/DefensiveKV
// efficient_defensivekv_press.py): scores weighed by each head's share of the projected value norms,
// then entries that are certain by their mean attention, and the window, at the layer's maximum.
//
// Differences from the authors' code: a first stage of negative size is empty (theirs marks nearly
// everything), and ties at the maximum, frequent with small budgets, are broken: the window first,
// then higher mean attention (theirs are arbitrary).
#include <algorithm>
#include <numeric>

#include "policy/positions.h"
#include "policy/select.h"
#include "policy/stage.h"

namespace pith {
namespace {

class Certain final : public Modifier {
 public:
  explicit Certain(double mass) : mass_(mass) {}

  uint32_t needs() const override { return kNeedWindowProbs | kNeedValueNorms; }
  int window() const override { return window_; }
  void AdoptWindow(int window) override { window_ = window; }

  void Adjust(const LayerInputs& inputs, LayerScores& scores) const override {
    MakePositive(scores);
    WeighByValues(inputs, scores);
    scores.window = std::min(window_, inputs.window);
    scores.attention.assign(scores.heads.size(), {});
    double before_window = 0;
    double rows = 0;
    for (size_t h = 0; h < scores.heads.size(); ++h) {
      const WindowProbs probs(inputs, inputs.heads[h], window_);
      const auto columns = static_cast<size_t>(probs.columns());
      const auto recent = std::min(columns, static_cast<size_t>(probs.rows()));
      std::vector<float>& mean = scores.attention[h];
      mean.assign(columns, 0.0F);
      for (int g = 0; g < probs.group(); ++g) {
        for (int t = 0; t < probs.rows(); ++t, rows += 1) {
          const float* row = probs.row(g, t);
          for (size_t j = 0; j < columns; ++j) mean[j] += row[j];
          before_window += std::accumulate(row + columns - recent, row + columns, 0.0);
        }
      }
      const double sum = std::accumulate(mean.begin(), mean.end(), 0.0);
      for (float& m : mean) m = sum > 0 ? static_cast<float>(static_cast<double>(m) / sum) : 0;
    }
    scores.certain_mass = mass_ - (rows > 0 ? before_window / rows : 0);
  }

  void Refine(const Budget& budget, LayerScores& scores) const override {
    float most = 0;
    for (const auto& head : scores.heads) {
      for (float score : head) {
        if (score != kProtected) most = std::max(most, score);
      }
    }
    scores.ties.resize(scores.heads.size());
    for (size_t h = 0; h < scores.heads.size(); ++h) {
      const std::vector<float>& mean = scores.attention[h];
      std::vector<float>& score = scores.heads[h];
      for (size_t i : CertainEntries(mean, scores, budget)) score[i] = most;
      scores.ties[h].assign(score.size(), kProtected);
      std::copy(mean.begin(), mean.end(), scores.ties[h].begin());
      std::replace(score.begin(), score.end(), kProtected, most);
    }
  }

 private:
  static void WeighByValues(const LayerInputs& inputs, LayerScores& scores) {
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

  // The largest mean weights, as long as their sum stays below the mass and their number allows.
  static std::vector<size_t> CertainEntries(const std::vector<float>& mean, const LayerScores& scores,
                                            const Budget& budget) {
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

  double mass_;
  int window_ = 0;
};

}  // namespace

StageInfo<Modifier> CertainStage() {
  return {"scores weighed by value norms; entries that hold most of the mean attention are certain",
          {RealParam("mass", 0.9, 0, 1, "attention that certain entries hold together")},
          [](const Params& p) -> std::unique_ptr<Modifier> { return std::make_unique<Certain>(p.Real("mass")); }};
}

}  // namespace pith
