// Largest pooled attention of any query of any head of the group.
#include <algorithm>

#include "policy/select.h"
#include "policy/stage.h"

namespace pith {
namespace {

class Max final : public Aggregator {
 public:
  void Aggregate(const WindowProbs& probs, const Pooling& pooling, std::span<float> out) const override {
    std::fill(out.begin(), out.end(), 0.0F);
    std::vector<float> pooled(out.size());
    for (int g = 0; g < probs.group(); ++g) {
      for (int t = 0; t < probs.rows(); ++t) {
        Pool({probs.row(g, t), out.size()}, pooling, pooled);
        for (size_t j = 0; j < out.size(); ++j) out[j] = std::max(out[j], pooled[j]);
      }
    }
  }
};

}  // namespace

StageInfo<Aggregator> MaxStage() {
  return {"largest over queries and the GQA group", {}, [](const Params&) -> std::unique_ptr<Aggregator> {
            return std::make_unique<Max>();
          }};
}

}  // namespace pith
