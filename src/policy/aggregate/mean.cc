// Mean over queries and group, pooled over neighbours (SnapKV, arXiv:2404.14469). The paper pools
// each query head's mean and averages then; mean pooling commutes with that, max pooling does not,
// so the order is kept.
#include <algorithm>

#include "policy/select.h"
#include "policy/stage.h"

namespace pith {
namespace {

class Mean final : public Aggregator {
 public:
  void Aggregate(const WindowProbs& probs, const Pooling& pooling, std::span<float> out) const override {
    std::fill(out.begin(), out.end(), 0.0F);
    std::vector<float> mean(out.size());
    std::vector<float> pooled(out.size());
    for (int g = 0; g < probs.group(); ++g) {
      std::fill(mean.begin(), mean.end(), 0.0F);
      for (int t = 0; t < probs.rows(); ++t) {
        const float* row = probs.row(g, t);
        for (size_t j = 0; j < mean.size(); ++j) mean[j] += row[j];
      }
      for (float& m : mean) m /= static_cast<float>(probs.rows());
      Pool(mean, pooling, pooled);
      for (size_t j = 0; j < out.size(); ++j) {
        out[j] += pooled[j] / static_cast<float>(probs.group());
      }
    }
  }
};

}  // namespace

StageInfo<Aggregator> MeanStage() {
  return {"mean over queries and the GQA group", {}, [](const Params&) -> std::unique_ptr<Aggregator> {
            return std::make_unique<Mean>();
          }};
}

}  // namespace pith
