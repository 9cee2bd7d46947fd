// Largest pooled attention of any query of any head of the group.
#include <algorithm>

#include "policy/select.h"
#include "policy/stage.h"

namespace pith {
namespace {

class Max final : public Aggregator {
 public:
  void Aggregate(const WindowProbs& probs, const Pooling& pooling, std::span<float> out) const override {
    LargestOf(probs.group(), [&](int g, std::span<float> most) {
      std::vector<float> pooled(most.size());
      for (int t = 0; t < probs.rows(); ++t) {
        Pool({probs.row(g, t), most.size()}, pooling, pooled);
        for (size_t j = 0; j < most.size(); ++j) most[j] = std::max(most[j], pooled[j]);
      }
    }, out);
  }
};

}  // namespace

StageInfo<Aggregator> MaxStage() {
  return {"largest over queries and the GQA group", {}, [](const Params&) -> std::unique_ptr<Aggregator> {
            return std::make_unique<Max>();
          }};
}

}  // namespace pith
