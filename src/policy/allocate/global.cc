// All heads of all layers compete for one total (Layer-DefensiveKV, arXiv:2510.13334).
#include <algorithm>

#include "policy/select.h"
#include "policy/stage.h"

namespace pith {
namespace {

class Global final : public Allocator {
 public:
  explicit Global(double alpha) : alpha_(alpha) {}

  bool layer_local() const override { return false; }

  void Allocate(std::span<const LayerScores> layers, const Budget& budget, Allocation& out) const override {
    double floor = static_cast<double>(static_cast<int>(alpha_ * budget.keep));
    if (alpha_ > 0 && budget.keep > 0) floor = std::max(floor, 1.0);
    size_t num_heads = 0;
    for (const LayerScores& layer : layers) num_heads += layer.heads.size();
    AllocatePooled(layers, TotalEntries(budget, num_heads), floor, out);
  }

 private:
  double alpha_;
};

}  // namespace

StageInfo<Allocator> GlobalStage() {
  return {"all heads of all layers compete beyond a safeguard",
          {RealParam("alpha", 0, 0, 1, "share of the uniform budget that every head is sure of")},
          [](const Params& p) -> std::unique_ptr<Allocator> { return std::make_unique<Global>(p.Real("alpha")); }};
}

}  // namespace pith
