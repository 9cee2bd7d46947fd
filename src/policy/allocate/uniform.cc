// The same number of entries for every head of every layer.
#include "policy/select.h"
#include "policy/stage.h"

namespace pith {
namespace {

class Uniform final : public Allocator {
 public:
  bool ragged() const override { return false; }

  void Allocate(std::span<const LayerScores>, const Budget& budget, Allocation& out) const override {
    for (auto& heads : out) {
      for (HeadBudget& head : heads) head = {budget.keep, 0};
    }
  }
};

}  // namespace

StageInfo<Allocator> UniformStage() {
  return {"the same for every layer and head", {}, [](const Params&) -> std::unique_ptr<Allocator> {
            return std::make_unique<Uniform>();
          }};
}

}  // namespace pith
