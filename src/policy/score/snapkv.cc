// Attention of the last w queries (SnapKV, arXiv:2404.14469): mean over the window, pooled over
// neighbours, mean over the group; the window itself stays. Window 32 as in the Ada-KV and
// DefensiveKV experiments (the peer's own default is 64), pooling 5.
#include "base/parallel.h"
#include "policy/select.h"
#include "policy/stage.h"

namespace pith {
namespace {

class SnapKv final : public Scorer {
 public:
  SnapKv(int window, Pooling pooling) : window_(window), pooling_(pooling) {}

  uint32_t needs() const override { return kNeedWindowProbs; }
  int window() const override { return window_; }
  bool aggregates() const override { return true; }

  void Score(const LayerInputs& inputs, const Aggregator& aggregator, LayerScores& scores) const override {
    ParallelFor(scores.heads.size(), [&](size_t h) {
      const WindowProbs probs(inputs, inputs.heads[h], window_);
      const auto columns = static_cast<size_t>(probs.columns());
      if (probs.rows() > 0 && columns > 0) {
        aggregator.Aggregate(probs, pooling_, std::span(scores.heads[h]).first(columns));
      }
      ProtectNewest(scores.heads[h], static_cast<int>(scores.heads[h].size() - columns));
    });
    scores.window = std::min(window_, inputs.window);
  }

 private:
  int window_;
  Pooling pooling_;
};

}  // namespace

StageInfo<Scorer> SnapKvStage() {
  return {"attention of the last queries, pooled over neighbours; their own entries stay",
          {IntParam("window", 32, 1, 4096, "last queries that are observed"),
           IntParam("pool", 5, 1, 63, "neighbours that share their attention"),
           ChoiceParam("pooling", "mean|max", "how they share it")},
          [](const Params& p) -> std::unique_ptr<Scorer> {
            return std::make_unique<SnapKv>(p.Int("window"), Pooling{p.Int("pool"), p.Choice("pooling") == 1});
          }};
}

}  // namespace pith
