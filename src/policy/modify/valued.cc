// Scores times what the value adds to the layer's output, ||V W_O||_1 (KVzip+, github.com/NVIDIA/kvpress
// kvpress/presses/kvzip_press.py with kvzip_plus_normalization; with other scorers VATP's idea, arXiv:2406.12335).
//
// kvpress weighs each query head's attention by the Euclidean norm before it takes the largest over the group, and
// divides by the norm of the query token's hidden state, which a norm layer has made nearly the same for all tokens.
// Here the group's mean of the norms weighs the largest attention, and hidden states take no part.
#include "policy/select.h"
#include "policy/stage.h"

namespace pith {
namespace {

class Valued final : public Modifier {
 public:
  uint32_t needs() const override { return kNeedValueNorms; }

  void Adjust(const LayerInputs& inputs, LayerScores& scores) const override {
    MakePositive(scores);
    for (size_t h = 0; h < scores.heads.size(); ++h) {
      const float* norms = inputs.heads[h].value_norms;
      if (norms == nullptr) continue;
      for (size_t i = 0; i < scores.heads[h].size(); ++i) {
        if (scores.heads[h][i] != kProtected) scores.heads[h][i] *= norms[i];
      }
    }
  }
};

}  // namespace

StageInfo<Modifier> ValuedStage() {
  return {"scores times the norm of what the value adds to the layer's output",
          {},
          [](const Params&) -> std::unique_ptr<Modifier> { return std::make_unique<Valued>(); }};
}

}  // namespace pith
