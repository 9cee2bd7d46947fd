// Exponential moving average over the window's queries, the newest counting most.
#include "policy/select.h"
#include "policy/stage.h"

namespace pith {
namespace {

class Ema final : public Aggregator {
 public:
  explicit Ema(float decay) : decay_(decay) {}

  void Aggregate(const WindowProbs& probs, const Pooling& pooling, std::span<float> out) const override {
    MeanOfPooled(probs.group(), pooling, [&](int g, std::span<float> mean) {
      float weight = 1;
      float total = 0;
      for (int t = probs.rows() - 1; t >= 0; --t, weight *= decay_) {
        const float* row = probs.row(g, t);
        for (size_t j = 0; j < mean.size(); ++j) mean[j] += weight * row[j];
        total += weight;
      }
      for (float& m : mean) m /= total;
    }, out);
  }

 private:
  float decay_;
};

}  // namespace

StageInfo<Aggregator> EmaStage() {
  return {"mean over queries in which each older one counts `decay` times as much",
          {RealParam("decay", 0.9, 0.01, 1, "weight of a query against the next one")},
          [](const Params& p) -> std::unique_ptr<Aggregator> {
            return std::make_unique<Ema>(static_cast<float>(p.Real("decay")));
          }};
}

}  // namespace pith
