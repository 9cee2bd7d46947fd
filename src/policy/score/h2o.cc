// Heavy hitters (H2O, arXiv:2306.14048; github.com/FMInference/H2O h2o_hf/utils_real_drop): attention
// summed over all queries, the group's mean first, and a recent part that always stays.
#include "policy/score/observe.h"
#include "policy/select.h"
#include "policy/stage.h"

namespace pith {
namespace {

class H2o final : public Scorer {
 public:
  explicit H2o(double recent) : recent_(recent) {}

  uint32_t needs() const override { return kNeedEveryQuery; }
  std::vector<ColumnSpec> columns() const override { return {{"attention_sum", 0}}; }

  void Observe(const Observation& seen, std::span<float* const> columns) const override {
    AddReceived(seen, Received::kSum, columns[0]);
  }

  void Score(const LayerInputs& inputs, const Aggregator&, LayerScores& scores) const override {
    for (size_t h = 0; h < scores.heads.size(); ++h) ScoreByColumn(inputs.heads[h], 0, scores.heads[h]);
  }

  void Rerank(HeadRank& rank) const override {
    ProtectNewest(rank.scores, static_cast<int>(recent_ * CompetingBudget(rank)));
  }

 private:
  double recent_;
};

}  // namespace

StageInfo<Scorer> H2oStage() {
  return {"attention received from all queries so far; a recent part stays",
          {RealParam("recent", 0.5, 0, 1, "share of the budget for the newest entries")},
          [](const Params& p) -> std::unique_ptr<Scorer> { return std::make_unique<H2o>(p.Real("recent")); }};
}

}  // namespace pith
