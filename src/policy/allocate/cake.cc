// Layers by their preference (CAKE, arXiv:2503.12491; the press of github.com/FFY0/DefensiveKV):
// P = H^(1/tau1) V^(1/tau2), with H the entropy and V the temporal variance of the window's
// attention. The total beside the windows is shared in proportion, truncated, clipped to n - w, and
// what is left over spread evenly, first layers first. While a block is read the shares are those of the
// paper's cascade (policy/cascade.h).
#include <algorithm>
#include <cmath>

#include "policy/allocate/attention_motion.h"
#include "policy/allocate/layer_shares.h"
#include "policy/stage.h"

namespace pith {
namespace {

class Cake final : public Allocator {
 public:
  Cake(double tau1, double tau2) : tau1_(tau1), tau2_(tau2) {}

  uint32_t needs() const override { return kNeedWindowProbs; }
  int window() const override { return window_; }
  void AdoptWindow(int window) override { window_ = window; }
  bool layer_local() const override { return false; }
  bool cascades() const override { return true; }

  void Prepare(const LayerInputs& inputs, LayerScores& scores) const override {
    const AttentionMotion motion = MotionOf(inputs, window_);
    scores.NotesOf(this).numbers = {std::pow(std::max(motion.entropy, 0.0), 1 / tau1_) *
                                    std::pow(motion.variance, 1 / tau2_)};
    scores.window = std::min(window_, inputs.window);
  }

  void Allocate(std::span<const LayerScores> layers, const Budget& budget, Allocation& out) const override {
    double sum = 0;
    for (const LayerScores& layer : layers) sum += PreferenceOf(layer);
    const double mean = budget.keep_exact > 0 ? budget.keep_exact : budget.keep;
    const int window = layers.empty() ? 0 : layers.front().window;
    const auto total = static_cast<int>((mean - window) * static_cast<double>(layers.size()));
    std::vector<int> room;
    std::vector<int> share;
    for (const LayerScores& layer : layers) {
      size_t n = 0;
      for (const auto& head : layer.heads) n = std::max(n, head.size());
      room.push_back(std::max(0, static_cast<int>(n) - layer.window));
      share.push_back(sum > 0 && std::isfinite(sum) ? static_cast<int>(PreferenceOf(layer) / sum * total) : 0);
    }
    if (total > 0) FillRooms(total, room, budget.keep_exact == 0, share);
    for (size_t l = 0; l < layers.size(); ++l) {
      const int keep = total > 0 ? window + std::clamp(share[l], 0, room[l]) : budget.keep;
      for (HeadBudget& head : out[l]) head = {keep, 0};
    }
  }

 private:
  double PreferenceOf(const LayerScores& layer) const { return layer.NotesOf(this).numbers.front(); }

  double tau1_;
  double tau2_;
  int window_ = 0;
};

}  // namespace

StageInfo<Allocator> CakeStage() {
  return {"layers whose attention is spread out and moving get more",
          {RealParam("tau1", 1.6, 0.01, 100, "tempers the entropy"),
           RealParam("tau2", 0.6, 0.01, 100, "tempers the temporal variance")},
          [](const Params& p) -> std::unique_ptr<Allocator> {
            return std::make_unique<Cake>(p.Real("tau1"), p.Real("tau2"));
          }};
}

}  // namespace pith
