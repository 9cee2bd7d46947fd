// Change of the attention output if the entry went (CAOTE, arXiv:2504.14051), for the last queries.
// Exact for one eviction; for many at once greedy. Every present entry is a candidate, the newest
// too. The group's mean is ours: there is no released code.
#include <algorithm>
#include <limits>

#include "base/parallel.h"
#include "policy/select.h"
#include "policy/stage.h"
#include "policy/terms/caote_change.h"

namespace pith {
namespace {

class CaoteScore final : public Scorer {
 public:
  CaoteScore(int window, bool fast, int recent) : window_(window), fast_(fast), recent_(recent) {}

  uint32_t needs() const override { return kNeedWindowProbs | kNeedValues; }
  int window() const override { return window_; }
  bool aggregates() const override { return true; }

  void Score(const LayerInputs& inputs, const Aggregator& aggregator, LayerScores& scores) const override {
    ParallelFor(scores.heads.size(), [&](size_t h) {
      const HeadInputs& head = inputs.heads[h];
      const WindowProbs probs(inputs, head, window_, /*all_columns=*/true);
      const auto n = static_cast<size_t>(head.num_entries);
      if (probs.rows() == 0 || n == 0) return;
      std::vector<float> changes(static_cast<size_t>(probs.group()) * static_cast<size_t>(probs.rows()) * n);
      float* out = changes.data();
      for (int g = 0; g < probs.group(); ++g) {
        for (int t = 0; t < probs.rows(); ++t, out += n) {
          OutputChange({probs.row(g, t), n}, head.values, inputs.value_dim, fast_, {out, n});
          // Infinite: nothing else was seen. Averages must stay finite.
          std::replace(out, out + n, kProtected, std::numeric_limits<float>::max() / 1e6F);
        }
      }
      aggregator.Aggregate(WindowProbs(changes.data(), probs.group(), probs.rows(), probs.columns()), Pooling{},
                           scores.heads[h]);
      ProtectNewest(scores.heads[h], recent_);
    });
  }

 private:
  int window_;
  bool fast_;
  int recent_;
};

}  // namespace

StageInfo<Scorer> CaoteScoreStage() {
  return {"change of the last queries' attention output if the entry went",
          {IntParam("window", 1, 1, 4096, "last queries that are observed"),
           IntParam("fast", 0, 0, 1, "1: the mean value stands for the output"),
           IntParam("recent", 0, 0, 65536, "newest entries that always stay")},
          [](const Params& p) -> std::unique_ptr<Scorer> {
            return std::make_unique<CaoteScore>(p.Int("window"), p.Int("fast") == 1, p.Int("recent"));
          }};
}

}  // namespace pith
