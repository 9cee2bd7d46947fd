// Any scorer's scores as attention weights, turned into the change of the output that each eviction
// would bring (CAOTE, arXiv:2504.14051). Protected entries are no candidates and take no part.
#include <algorithm>

#include "base/parallel.h"
#include "policy/select.h"
#include "policy/stage.h"
#include "policy/terms/caote_change.h"

namespace pith {
namespace {

class Caote final : public Modifier {
 public:
  explicit Caote(bool fast) : fast_(fast) {}

  uint32_t needs() const override { return kNeedValues; }

  void Adjust(const LayerInputs& inputs, LayerScores& scores) const override {
    MakePositive(scores);
    ParallelFor(scores.heads.size(), [&](size_t h) {
      std::vector<float> weights = scores.heads[h];
      std::replace(weights.begin(), weights.end(), kProtected, 0.0F);
      std::vector<float> change(weights.size());
      OutputChange(weights, inputs.heads[h].values, inputs.value_dim, fast_, change);
      for (size_t i = 0; i < change.size(); ++i) {
        if (scores.heads[h][i] != kProtected) scores.heads[h][i] = change[i];
      }
    });
  }

 private:
  bool fast_;
};

}  // namespace

StageInfo<Modifier> CaoteStage() {
  return {"scores as weights: how much the output changes if the entry goes",
          {IntParam("fast", 0, 0, 1, "1: the mean value stands for the output")},
          [](const Params& p) -> std::unique_ptr<Modifier> { return std::make_unique<Caote>(p.Int("fast") == 1); }};
}

}  // namespace pith
