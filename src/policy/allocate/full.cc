// Everything stays: the bracket above every other recipe.
#include "policy/select.h"
#include "policy/stage.h"

namespace pith {
namespace {

class Full final : public Allocator {
 public:
  bool ragged() const override { return false; }
  bool keeps_everything() const override { return true; }

  void Allocate(std::span<const LayerScores> layers, const Budget&, Allocation& out) const override {
    for (size_t l = 0; l < layers.size(); ++l) {
      for (size_t h = 0; h < layers[l].heads.size(); ++h) {
        const int n = static_cast<int>(layers[l].heads[h].size());
        out[l][h] = {n, n};
      }
    }
  }
};

}  // namespace

StageInfo<Allocator> FullStage() {
  return {"no budget: everything stays", {}, [](const Params&) -> std::unique_ptr<Allocator> {
            return std::make_unique<Full>();
          }};
}

}  // namespace pith
