// Worst case instead of mean (DefensiveKV, arXiv:2510.13334, steps 1 to 3): pooled rows rescaled to
// their own mass, the largest over queries and group, and never less than the head's mean of that,
// for entries that the window never hit.
#include <algorithm>

#include "policy/select.h"
#include "policy/stage.h"

namespace pith {
namespace {

class Defensive final : public Aggregator {
 public:
  void Aggregate(const WindowProbs& probs, const Pooling& pooling, std::span<float> out) const override {
    if (out.empty()) return;
    LargestOf(probs.group(), [&](int g, std::span<float> most) {
      std::vector<float> pooled(most.size());
      for (int t = 0; t < probs.rows(); ++t) {
        const std::span<const float> row(probs.row(g, t), most.size());
        Pool(row, pooling, pooled);
        const double mass = SumOf(row);
        const double pooled_mass = SumOf(pooled);
        if (!(pooled_mass > 0)) continue;
        const auto scale = static_cast<float>(mass / pooled_mass);
        for (size_t j = 0; j < most.size(); ++j) most[j] = std::max(most[j], pooled[j] * scale);
      }
    }, out);
    const double sum = SumOf(out);
    const auto mean = static_cast<float>(sum / static_cast<double>(out.size()));
    for (float& score : out) score = std::max(score, mean);
  }
};

}  // namespace

StageInfo<Aggregator> DefensiveStage() {
  return {"worst case over queries and the GQA group, at least the head's mean of it",
          {},
          [](const Params&) -> std::unique_ptr<Aggregator> { return std::make_unique<Defensive>(); }};
}

}  // namespace pith
