// Keys unlike the others stay (KeyDiff, arXiv:2504.15364): minus the cosine to the mean direction of
// the entries present, computed anew at each eviction. Sinks and recent entries are unprotected, as
// in the paper, unless the recipe says so.
#include <cmath>

#include "base/parallel.h"
#include "policy/select.h"
#include "policy/stage.h"
#include "policy/terms/dot.h"

namespace pith {
namespace {

class KeyDiff final : public Scorer {
 public:
  explicit KeyDiff(int recent) : recent_(recent) {}

  uint32_t needs() const override { return kNeedKeys; }

  void Score(const LayerInputs& inputs, const Aggregator&, LayerScores& scores) const override {
    const auto dim = static_cast<size_t>(inputs.key_dim);
    ParallelFor(scores.heads.size(), [&](size_t h) {
      std::vector<float>& score = scores.heads[h];
      const float* keys = inputs.heads[h].keys;
      std::vector<float> anchor(dim);
      for (size_t i = 0; i < score.size(); ++i) {
        const float* key = keys + i * dim;
        score[i] = std::sqrt(Dot(key, key, dim));
        const float scale = 1 / (std::max(score[i], 1e-12F) * static_cast<float>(score.size()));
        for (size_t d = 0; d < dim; ++d) anchor[d] += key[d] * scale;
      }
      const float length = std::sqrt(Dot(anchor.data(), anchor.data(), dim));
      for (size_t i = 0; i < score.size(); ++i) {
        const float lengths = std::max(score[i], 1e-8F) * std::max(length, 1e-8F);
        score[i] = -Dot(keys + i * dim, anchor.data(), dim) / lengths;
      }
      ProtectNewest(score, recent_);
    });
  }

 private:
  int recent_;
};

}  // namespace

StageInfo<Scorer> KeyDiffStage() {
  return {"minus the cosine of the key to the mean key direction",
          {IntParam("recent", 0, 0, 65536, "newest entries that always stay")},
          [](const Params& p) -> std::unique_ptr<Scorer> { return std::make_unique<KeyDiff>(p.Int("recent")); }};
}

}  // namespace pith
