// Mean and standard deviation of attention (RoCo, arXiv:2402.06262; github.com/DRSY/EasyKV): entries
// of large deviation are protected; of the others the smallest mean goes. The statistics are running
// sums over the queries that can see an entry, its own among them.
//
// The paper evicts one entry per step, with one more than the budget b present: feasible are the
// b - int(0.3 b) of smallest deviation. For larger cuts the protected set keeps its size. We evict
// everywhere but the newest 10; the released decode mode never touches the prompt.
#include <algorithm>
#include <cmath>
#include <limits>

#include "base/parallel.h"
#include "policy/score/observe.h"
#include "policy/select.h"
#include "policy/stage.h"

namespace pith {
namespace {

class Roco final : public Scorer {
 public:
  Roco(double unstable, int newest) : unstable_(unstable), newest_(newest) {}

  uint32_t needs() const override { return kNeedEveryQuery | kNeedSquares; }
  std::vector<ColumnSpec> columns() const override {
    return {{"attention_sum", 0}, {"attention_squares", 0}};
  }

  void Observe(const Observation& seen, std::span<float* const> columns) const override {
    AddReceived(seen, Received::kSum, columns[0]);
    AddReceived(seen, Received::kSquares, columns[1]);
  }

  void Score(const LayerInputs& inputs, const Aggregator&, LayerScores& scores) const override {
    std::vector<std::vector<float>>& spread = scores.NotesOf(this).column;  // standard deviation of the attention
    spread.resize(scores.heads.size());
    ParallelFor(scores.heads.size(), [&](size_t h) {
      const std::span<float* const> columns = inputs.heads[h].columns;
      spread[h].resize(scores.heads[h].size());
      for (size_t i = 0; i < scores.heads[h].size(); ++i) {
        const double count = std::max(1, QueriesThatSaw(inputs, inputs.heads[h].positions[i]));
        const double mean = static_cast<double>(columns[0][i]) / count;
        // Rounding may leave a tiny variance, or a negative one, where attention is all but constant;
        // with one query there is none.
        const double variance = count > 1 ? static_cast<double>(columns[1][i]) / count - mean * mean : 0;
        scores.heads[h][i] = static_cast<float>(mean);
        spread[h][i] = static_cast<float>(std::sqrt(std::max(variance, 0.0)));
      }
    });
  }

  void Rerank(HeadRank& rank) const override {
    const int budget = CompetingBudget(rank);
    std::vector<float> spread = rank.layer->NotesOf(this).column[static_cast<size_t>(rank.head)];
    std::vector<size_t> order;  // of those that compete
    for (size_t i = 0; i < spread.size(); ++i) {
      if (rank.pinned().empty() || rank.pinned()[i] == 0) order.push_back(i);
    }
    const auto competing = static_cast<int>(order.size());
    if (competing <= budget) return;
    ProtectNewest(spread, newest_);
    const int feasible = std::max(competing - 1 - static_cast<int>(unstable_ * budget), competing - budget);
    std::nth_element(order.begin(), order.begin() + feasible, order.end(), [&](size_t a, size_t b) {
      return spread[a] != spread[b] ? spread[a] < spread[b] : a < b;
    });
    for (size_t k = 0; k < order.size(); ++k) {
      float& score = rank.scores[order[k]];
      // The newest go last, even where the feasible set is short of others (budgets below 30).
      if (static_cast<int>(k) >= feasible)
        score = kProtected;
      else if (spread[order[k]] == kProtected)
        score = std::numeric_limits<float>::max();
    }
  }

 private:
  double unstable_;
  int newest_;
};

}  // namespace

StageInfo<Scorer> RocoStage() {
  return {"mean attention; entries whose attention varies most and the newest stay",
          {RealParam("unstable", 0.3, 0, 1, "share of the budget that large deviation protects"),
           IntParam("newest", 10, 0, 65536, "newest entries that always stay")},
          [](const Params& p) -> std::unique_ptr<Scorer> {
            return std::make_unique<Roco>(p.Real("unstable"), p.Int("newest"));
          }};
}

}  // namespace pith
