// Layer budgets fall linearly (PyramidKV, arXiv:2406.02069; shape as in github.com/NVIDIA/kvpress,
// where the mean budget m counts the window's entries too). Where the shape is impossible, uniform.
#include <algorithm>
#include <cmath>

#include "policy/select.h"
#include "policy/stage.h"

namespace pith {
namespace {

class Pyramid final : public Allocator {
 public:
  explicit Pyramid(int beta) : beta_(beta) {}

  bool layer_local() const override { return false; }
  void AdoptWindow(int window) override { window_ = window; }

  void Allocate(std::span<const LayerScores> layers, const Budget& budget, Allocation& out) const override {
    for (size_t l = 0; l < layers.size(); ++l) {
      size_t n = 0;
      for (const auto& head : layers[l].heads) n = std::max(n, head.size());
      const int keep = LayerBudget(l, layers.size(), static_cast<int>(n), budget);
      for (HeadBudget& head : out[l]) head = {keep, 0};
    }
  }

 private:
  int LayerBudget(size_t layer, size_t num_layers, int n, const Budget& budget) const {
    const double m = budget.keep_exact > 0 ? budget.keep_exact : budget.keep;
    double least = m / beta_;
    double most = 2 * m - least;
    if (most >= n - window_) {
      most = n - window_;
      least = 2 * m - most;
    }
    const bool possible = num_layers > 1 && n >= most && most >= least && least >= window_;
    // std::nearbyint rounds halves to even, as Python's round() does.
    if (!possible) return static_cast<int>(std::nearbyint(m));
    const double step = (most - least) / static_cast<double>(num_layers - 1);
    return static_cast<int>(std::nearbyint(most - static_cast<double>(layer) * step));
  }

  int beta_;
  int window_ = 0;
};

}  // namespace

StageInfo<Allocator> PyramidStage() {
  return {"falls linearly from the first layer to the last",
          {IntParam("beta", 20, 1, 1000, "twice the mean budget over the smallest, about")},
          [](const Params& p) -> std::unique_ptr<Allocator> { return std::make_unique<Pyramid>(p.Int("beta")); }};
}

}  // namespace pith
