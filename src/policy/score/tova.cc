// Attention of the last query alone (TOVA, arXiv:2401.06104): mean over all query heads, one ranking
// for the layer. The newest entry stays, as in github.com/NVIDIA/kvpress; the authors' cache may
// drop it. scope=head ranks each kv head by its own group (github.com/DRSY/EasyKV).
#include "base/parallel.h"
#include "policy/select.h"
#include "policy/stage.h"
#include "policy/terms/positions.h"

namespace pith {
namespace {

class Tova final : public Scorer {
 public:
  Tova(bool per_head, int recent) : per_head_(per_head), recent_(recent) {}

  uint32_t needs() const override { return kNeedWindowProbs; }
  int window() const override { return 1; }

  void Score(const LayerInputs& inputs, const Aggregator&, LayerScores& scores) const override {
    ParallelFor(scores.heads.size(), [&](size_t h) {
      const WindowProbs probs(inputs, inputs.heads[h], 1, /*all_columns=*/true);
      if (probs.rows() == 0) return;
      std::vector<float>& score = scores.heads[h];
      for (int g = 0; g < probs.group(); ++g) {
        const float* row = probs.row(g, 0);
        for (size_t j = 0; j < score.size(); ++j) score[j] += row[j];
      }
      for (float& s : score) s /= static_cast<float>(probs.group());
    });
    if (!per_head_) scores.heads = MeanOverHeads(inputs, scores.heads);
    for (auto& score : scores.heads) ProtectNewest(score, recent_);
  }

 private:
  bool per_head_;
  int recent_;
};

}  // namespace

StageInfo<Scorer> TovaStage() {
  return {"attention of the last query, one ranking for all heads of a layer",
          {ChoiceParam("scope", "layer|head", "whose query heads are averaged"),
           IntParam("recent", 1, 0, 65536, "newest entries that always stay")},
          [](const Params& p) -> std::unique_ptr<Scorer> {
            return std::make_unique<Tova>(p.Choice("scope") == 1, p.Int("recent"));
          }};
}

}  // namespace pith
