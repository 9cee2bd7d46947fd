// Sinks, recent entries, and the best of the middle by the attention of the last prompt token (SAGE-KV,
// arXiv:2503.08879): mean over the group, no pooling. The paper selects once after prefill; here the
// middle is ranked anew by the newest query whenever the engine must evict.
#include "policy/select.h"
#include "policy/stage.h"

namespace pith {
namespace {

class SageKv final : public Scorer {
 public:
  explicit SageKv(double recent) : recent_(recent) {}

  uint32_t needs() const override { return kNeedWindowProbs; }
  int window() const override { return 1; }

  void Score(const LayerInputs& inputs, const Aggregator&, LayerScores& scores) const override {
    for (size_t h = 0; h < scores.heads.size(); ++h) {
      const WindowProbs probs(inputs, inputs.heads[h], 1, /*all_columns=*/true);
      if (probs.rows() == 0) continue;
      for (int g = 0; g < probs.group(); ++g) {
        const float* row = probs.row(g, 0);
        for (size_t j = 0; j < scores.heads[h].size(); ++j) {
          scores.heads[h][j] += row[j] / static_cast<float>(probs.group());
        }
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

StageInfo<Scorer> SageKvStage() {
  return {"sinks, recent entries, and the middle by the last query's attention",
          {RealParam("recent", 0.5, 0, 1, "share of the budget beside the sinks for the newest entries")},
          [](const Params& p) -> std::unique_ptr<Scorer> { return std::make_unique<SageKv>(p.Real("recent")); },
          4};
}

}  // namespace pith
