// Small key norm, high importance (arXiv:2406.11430).
#include <cmath>

#include "base/parallel.h"
#include "policy/select.h"
#include "policy/stage.h"
#include "policy/terms/dot.h"

namespace pith {
namespace {

class Knorm final : public Scorer {
 public:
  explicit Knorm(int recent) : recent_(recent) {}

  uint32_t needs() const override { return kNeedKeys; }

  void Score(const LayerInputs& inputs, const Aggregator&, LayerScores& scores) const override {
    const auto dim = static_cast<size_t>(inputs.key_dim);
    ParallelFor(scores.heads.size(), [&](size_t h) {
      for (size_t i = 0; i < scores.heads[h].size(); ++i) {
        const float* key = inputs.heads[h].keys + i * dim;
        scores.heads[h][i] = -std::sqrt(Dot(key, key, dim));
      }
      ProtectNewest(scores.heads[h], recent_);
    });
  }

 private:
  int recent_;
};

}  // namespace

StageInfo<Scorer> KnormStage() {
  return {"minus the key's length",
          {IntParam("recent", 0, 0, 65536, "newest entries that always stay")},
          [](const Params& p) -> std::unique_ptr<Scorer> { return std::make_unique<Knorm>(p.Int("recent")); }};
}

}  // namespace pith
