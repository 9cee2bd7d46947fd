// Heads of a layer compete (Ada-KV, arXiv:2407.11550): each keeps its best share alpha of the uniform
// budget, at least one entry where alpha is not 0; the rest of the layer's total goes to the best
// entries of any head. alpha=0 is a plain top-B over the layer. The total is the uniform budget, which is
// rounded down, times the heads; or (total=exact, DefensiveKV) the exact share of all entries, rounded down once.
#include <algorithm>

#include "policy/select.h"
#include "policy/stage.h"

namespace pith {
namespace {

class Ada final : public Allocator {
 public:
  Ada(double alpha, bool exact) : alpha_(alpha), exact_(exact) {}

  void Allocate(std::span<const LayerScores> layers, const Budget& budget, Allocation& out) const override {
    double floor = static_cast<double>(static_cast<int>(alpha_ * budget.keep));
    if (alpha_ > 0 && budget.keep > 0) floor = std::max(floor, 1.0);
    for (size_t l = 0; l < layers.size(); ++l) {
      Allocation layer(1, out[l]);
      const int64_t total = exact_ ? TotalEntries(budget, out[l].size())
                                   : std::max<int64_t>(budget.keep, 0) * static_cast<int64_t>(out[l].size());
      AllocatePooled(layers.subspan(l, 1), total, floor, layer);
      out[l] = layer.front();
    }
  }

 private:
  double alpha_;
  bool exact_;
};

}  // namespace

StageInfo<Allocator> AdaStage() {
  return {"heads of a layer compete beyond a safeguard",
          {RealParam("alpha", 0.2, 0, 1, "share of the uniform budget that every head is sure of"),
           ChoiceParam("total", "whole|exact", "of a layer: the uniform budget times the heads, or the exact share")},
          [](const Params& p) -> std::unique_ptr<Allocator> {
            return std::make_unique<Ada>(p.Real("alpha"), p.Choice("total") == 1);
          }};
}

}  // namespace pith
