// Mean plus gamma times the variance over the queries (CAKE's indicator, arXiv:2503.12491): entries
// whose attention moves are worth keeping. Pooled per query head, then averaged over the group.
#include "policy/select.h"
#include "policy/stage.h"

namespace pith {
namespace {

class Shift final : public Aggregator {
 public:
  explicit Shift(float gamma) : gamma_(gamma) {}

  void Aggregate(const WindowProbs& probs, const Pooling& pooling, std::span<float> out) const override {
    const int rows = probs.rows();
    MeanOfPooled(probs.group(), pooling, [&](int g, std::span<float> value) {
      std::vector<double> mean, squares;
      ColumnVariances(probs, g, mean, squares);
      for (size_t j = 0; j < value.size(); ++j) {
        const double variance = rows > 1 ? squares[j] / (rows - 1) : 0;
        value[j] = static_cast<float>(mean[j] + static_cast<double>(gamma_) * variance);
      }
    }, out);
  }

 private:
  float gamma_;
};

}  // namespace

StageInfo<Aggregator> ShiftStage() {
  return {"mean plus gamma times the variance over queries",
          {RealParam("gamma", 200, 0, 1e6, "weight of the variance")},
          [](const Params& p) -> std::unique_ptr<Aggregator> {
            return std::make_unique<Shift>(static_cast<float>(p.Real("gamma")));
          }};
}

}  // namespace pith
