// Mean attention over the queries that can see the entry: H2O without its favour for old tokens, the
// "observed attention" of github.com/NVIDIA/kvpress. Nothing is protected, as there.
#include "policy/score/observe.h"
#include "policy/select.h"
#include "policy/stage.h"

namespace pith {
namespace {

class Observed final : public Scorer {
 public:
  explicit Observed(double recent) : recent_(recent) {}

  uint32_t needs() const override { return kNeedEveryQuery; }
  std::vector<ColumnSpec> columns() const override { return {{"attention_sum", 0}}; }

  void Observe(const Observation& seen, std::span<float* const> columns) const override {
    AddReceived(seen, Received::kSum, columns[0]);
  }

  void Score(const LayerInputs& inputs, const Aggregator&, LayerScores& scores) const override {
    for (size_t h = 0; h < scores.heads.size(); ++h) {
      const float* sums = inputs.heads[h].columns[0];
      for (size_t i = 0; i < scores.heads[h].size(); ++i) {
        const int32_t count = QueriesThatSaw(inputs, inputs.heads[h].positions[i]);
        scores.heads[h][i] = count > 0 ? sums[i] / static_cast<float>(count) : 0;
      }
    }
  }

  void Rerank(HeadRank& rank) const override {
    ProtectNewest(rank.scores, static_cast<int>(recent_ * CompetingBudget(rank)));
  }

 private:
  double recent_;
};

}  // namespace

StageInfo<Scorer> ObservedStage() {
  return {"mean attention over the queries that can see the entry",
          {RealParam("recent", 0, 0, 1, "share of the budget for the newest entries")},
          [](const Params& p) -> std::unique_ptr<Scorer> { return std::make_unique<Observed>(p.Real("recent")); }};
}

}  // namespace pith
