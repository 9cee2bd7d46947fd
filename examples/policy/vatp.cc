// Attention times the length of what it fetches (VATP, arXiv:2406.12335, eq. 5): an entry that is often
// looked at but whose value is short changes little. Attention is that of the last `window` queries,
// where the paper sums over all of them.
#include <cmath>

#include "policy/select.h"
#include "policy/stage.h"

namespace pith {
namespace {

class Vatp final : public Scorer {
 public:
  explicit Vatp(int window) : window_(window) {}

  // What the engine must compute for us; everything else stays null.
  uint32_t needs() const override { return kNeedWindowProbs | kNeedValues; }
  int window() const override { return window_; }
  // So that agg=mean, agg=max, agg=defensive, ... decide how the window's rows become one number.
  bool aggregates() const override { return true; }

  // scores.heads[h] has an element for each entry of kv head h, oldest first. Larger stays.
  void Score(const LayerInputs& inputs, const Aggregator& aggregator, LayerScores& scores) const override {
    const auto dim = static_cast<size_t>(inputs.value_dim);
    for (size_t h = 0; h < scores.heads.size(); ++h) {
      std::vector<float>& score = scores.heads[h];
      const WindowProbs probs(inputs, inputs.heads[h], window_);
      // The window's own entries are the last ones and not scored: their attention is not comparable yet.
      const auto columns = static_cast<size_t>(probs.columns());
      if (probs.rows() > 0 && columns > 0) aggregator.Aggregate(probs, Pooling{}, std::span(score).first(columns));
      for (size_t i = 0; i < columns; ++i) {
        const float* value = inputs.heads[h].values + i * dim;
        float length = 0;
        for (size_t d = 0; d < dim; ++d) length += std::abs(value[d]);
        score[i] *= length;
      }
      ProtectNewest(score, static_cast<int>(score.size() - columns));
    }
    scores.window = std::min(window_, inputs.window);
  }

 private:
  int window_;
};

}  // namespace

// Parameters with defaults, ranges and help: the parser, its error messages and `pith recipes` follow from them.
StageInfo<Scorer> VatpStage() {
  return {"attention of the last queries times the length of the value",
          {IntParam("window", 32, 1, 4096, "last queries that are observed; their entries stay")},
          [](const Params& p) -> std::unique_ptr<Scorer> { return std::make_unique<Vatp>(p.Int("window")); }};
}

}  // namespace pith
