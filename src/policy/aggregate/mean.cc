// Mean over queries and group, pooled over neighbours (SnapKV, arXiv:2404.14469). The paper pools
// each query head's mean and averages then; mean pooling commutes with that, max pooling does not,
// so the order is kept.
#include "policy/select.h"
#include "policy/stage.h"

namespace pith {
namespace {

class Mean final : public Aggregator {
 public:
  void Aggregate(const WindowProbs& probs, const Pooling& pooling, std::span<float> out) const override {
    MeanOfPooled(probs.group(), pooling, [&](int g, std::span<float> mean) {
      for (int t = 0; t < probs.rows(); ++t) {
        const float* row = probs.row(g, t);
        for (size_t j = 0; j < mean.size(); ++j) mean[j] += row[j];
      }
      for (float& m : mean) m /= static_cast<float>(probs.rows());
    }, out);
  }
};

}  // namespace

StageInfo<Aggregator> MeanStage() {
  return {"mean over queries and the GQA group", {}, [](const Params&) -> std::unique_ptr<Aggregator> {
            return std::make_unique<Mean>();
          }};
}

}  // namespace pith
