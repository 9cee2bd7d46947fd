// Sinks and the newest entries (StreamingLLM, arXiv:2309.17453). Positions are kept, not re-indexed:
// the ports' form, for comparisons within the model's context.
#include "policy/select.h"
#include "policy/stage.h"

namespace pith {
namespace {

class StreamingLlm final : public Scorer {
 public:
  explicit StreamingLlm(int sinks) : sinks_(sinks) {}

  void Score(const LayerInputs& inputs, const Aggregator&, LayerScores& scores) const override {
    for (size_t h = 0; h < scores.heads.size(); ++h) {
      const std::span<const int32_t> positions = inputs.heads[h].positions;
      // Sinks outrank everything, the first of them most, so that a tiny budget still starts there.
      const float most = positions.empty() ? 0.0F : static_cast<float>(positions.back()) + 1;
      for (size_t i = 0; i < positions.size(); ++i) {
        const auto position = static_cast<float>(positions[i]);
        scores.heads[h][i] = positions[i] < sinks_ ? most + static_cast<float>(sinks_) - position : position;
      }
    }
  }

 private:
  int sinks_;
};

}  // namespace

StageInfo<Scorer> StreamingLlmStage() {
  return {"the first entries and the newest",
          {IntParam("sinks", 4, 0, 4096, "first tokens that always stay")},
          [](const Params& p) -> std::unique_ptr<Scorer> { return std::make_unique<StreamingLlm>(p.Int("sinks")); },
          4};
}

}  // namespace pith
