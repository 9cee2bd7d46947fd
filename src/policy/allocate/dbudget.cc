// As many entries as the last query needs (DBudgetKV, now ReFreeKV, arXiv:2502.16886;
// github.com/Patrick-Ni/ReFreeKV): the shortest prefix of the ranking sinks, newest, ..., oldest that
// loses at most a share T of the norm of the attention row. The budget is only a cap.
//
// form=code: sinks stay and are left out of the norms, one size for all heads of a layer from the
// mean of their norms. form=paper: sinks count, each query head has its prefix, a kv head keeps the
// largest of its group. Meant for score=streamingllm, whose ranking is the paper's; with another
// scorer it decides the size alone. Never fewer than sinks + floor entries (ours).
#include <algorithm>
#include <cmath>

#include "policy/select.h"
#include "policy/stage.h"

namespace pith {
namespace {

class DBudget final : public Allocator {
 public:
  explicit DBudget(const Params& p)
      : threshold_(p.Real("threshold")),
        sinks_(p.Int("sinks")),
        rows_(p.Int("rows")),
        skip_(p.Int("skip")),
        floor_(p.Int("floor")),
        paper_(p.Choice("form") == 1) {}

  uint32_t needs() const override { return kNeedWindowProbs; }
  int window() const override { return rows_; }

  void Prepare(const LayerInputs& inputs, LayerScores& scores) const override {
    scores.wanted.clear();
    for (const HeadInputs& head : inputs.heads) scores.wanted.push_back(head.num_entries);
    if (inputs.layer < skip_ || inputs.window == 0) return;
    if (paper_) {
      for (size_t h = 0; h < inputs.heads.size(); ++h) scores.wanted[h] = LargestPrefix(inputs, inputs.heads[h]);
    } else {
      const int suffix = SharedSuffix(inputs);
      for (size_t h = 0; h < inputs.heads.size(); ++h) {
        scores.wanted[h] = std::min(inputs.heads[h].num_entries, sinks_ + std::max(suffix, floor_));
      }
    }
  }

  void Allocate(std::span<const LayerScores> layers, const Budget& budget, Allocation& out) const override {
    for (size_t l = 0; l < layers.size(); ++l) {
      for (size_t h = 0; h < out[l].size(); ++h) out[l][h] = {std::min(layers[l].wanted[h], budget.keep), 0};
    }
  }

 private:
  // Mean over the last rows that can see the entry, squared; entry i. [n] per query head.
  std::vector<double> Squares(const LayerInputs& inputs, const HeadInputs& head, int g) const {
    const WindowProbs probs(inputs, head, rows_, /*all_columns=*/true);
    std::vector<double> squares(static_cast<size_t>(head.num_entries), 0.0);
    for (size_t j = 0; j < squares.size(); ++j) {
      double sum = 0;
      for (int t = 0; t < probs.rows(); ++t) sum += static_cast<double>(probs.row(g, t)[j]);
      const double seen = std::min(static_cast<double>(probs.rows()), static_cast<double>(squares.size() - j));
      squares[j] = (sum / seen) * (sum / seen);
    }
    return squares;
  }

  // Newest entries that all heads of the layer keep beside the sinks.
  int SharedSuffix(const LayerInputs& inputs) const {
    std::vector<double> norms;  // [s]: sum over query heads of the norm of the newest s entries
    for (const HeadInputs& head : inputs.heads) {
      const size_t length = static_cast<size_t>(std::max(0, head.num_entries - sinks_));
      if (norms.size() < length + 1) norms.resize(length + 1, norms.empty() ? 0 : norms.back());
      for (int g = 0; g < inputs.group; ++g) {
        const std::vector<double> squares = Squares(inputs, head, g);
        double sum = 0;
        for (size_t s = 0; s < norms.size(); ++s) {
          if (s > 0 && s <= length) sum += squares[squares.size() - s];
          norms[s] += std::sqrt(sum);
        }
      }
    }
    if (norms.size() < 2 || !(norms.back() > 0)) return 1;
    size_t s = 1;
    while (s + 1 < norms.size() && (norms.back() - norms[s]) / norms.back() > threshold_) ++s;
    return static_cast<int>(s);
  }

  int LargestPrefix(const LayerInputs& inputs, const HeadInputs& head) const {
    const auto n = static_cast<size_t>(head.num_entries);
    const size_t sinks = std::min(n, static_cast<size_t>(sinks_));
    size_t most = std::min(n, sinks + static_cast<size_t>(floor_));
    if (floor_ == 0) most = std::min<size_t>(n, 1);
    for (int g = 0; g < inputs.group; ++g) {
      const std::vector<double> squares = Squares(inputs, head, g);
      double full = 0;
      for (size_t i = n; i-- > 0;) full += squares[i];
      double sum = 0;
      size_t count = 0;
      while (count < n) {
        sum += squares[count < sinks ? count : n - 1 - (count - sinks)];
        ++count;
        if (full > 0 && 1 - std::sqrt(sum / full) < threshold_) break;
      }
      most = std::max(most, count);
    }
    return static_cast<int>(most);
  }

  double threshold_;
  int sinks_;
  int rows_;
  int skip_;
  int floor_;
  bool paper_;
};

}  // namespace

StageInfo<Allocator> DBudgetStage() {
  return {"sinks and as many newest entries as hold the last query's attention; the budget is a cap",
          {RealParam("threshold", 0.01, 0, 1, "norm of the attention row that may be lost"),
           IntParam("sinks", 4, 0, 4096, "first tokens that always stay"),
           IntParam("rows", 1, 1, 4096, "last queries that are averaged"),
           IntParam("skip", 2, 0, 1024, "first layers that keep everything up to the budget"),
           IntParam("floor", 8, 0, 4096, "least entries beside the sinks"),
           ChoiceParam("form", "code|paper", "one size per layer, or one per kv head")},
          [](const Params& p) -> std::unique_ptr<Allocator> { return std::make_unique<DBudget>(p); }};
}

}  // namespace pith
