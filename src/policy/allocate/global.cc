// All heads of all layers compete for one total (Layer-DefensiveKV, arXiv:2510.13334; KVzip's level
// `pair`, arXiv:2505.23416). strict=1 is KVzip's released threshold: only scores above the last one
// that fits stay, which is one entry fewer, and none of several that tie with it. pages=sum: where what stays is stored
// in whole pages, these compete, by the sum of their scores: a page of one head is dear, so that what counts is all
// that is in it rather than how much of it is above one threshold. For scores that add up, as attention does.
#include <algorithm>

#include "policy/page_division.h"
#include "policy/select.h"
#include "policy/stage.h"

namespace pith {
namespace {

class Global final : public Allocator {
 public:
  Global(double alpha, bool strict, bool sums_pages) : alpha_(alpha), strict_(strict), sums_pages_(sums_pages) {}

  bool layer_local() const override { return false; }
  bool cascades() const override { return true; }

  void Allocate(std::span<const LayerScores> layers, const Budget& budget, Allocation& out) const override {
    if (sums_pages_ && budget.page_entries > 1) return DividePages(layers, budget, out);
    double floor = static_cast<double>(static_cast<int>(alpha_ * budget.keep));
    if (alpha_ > 0 && budget.keep > 0) floor = std::max(floor, 1.0);
    size_t num_heads = 0;
    for (const LayerScores& layer : layers) num_heads += layer.heads.size();
    AllocatePooled(layers, TotalEntries(budget, num_heads), floor, out);
    if (strict_) DropTies(layers, out);
  }

 private:
  // The worst score that stays somewhere stays nowhere.
  static void DropTies(std::span<const LayerScores> layers, Allocation& out) {
    float worst = kProtected;
    for (size_t l = 0; l < layers.size(); ++l) {
      for (size_t h = 0; h < layers[l].heads.size(); ++h) {
        const std::span<const uint8_t> pinned = PinnedOf(layers[l], h);
        for (int32_t i : SelectTop(layers[l].heads[h], TiesOf(layers[l], h), pinned, out[l][h].keep)) {
          const auto j = static_cast<size_t>(i);
          if (pinned.empty() || pinned[j] == 0) worst = std::min(worst, layers[l].heads[h][j]);
        }
      }
    }
    for (size_t l = 0; l < layers.size(); ++l) {
      for (size_t h = 0; h < layers[l].heads.size(); ++h) {
        const std::span<const uint8_t> pinned = PinnedOf(layers[l], h);
        const std::vector<float>& scores = layers[l].heads[h];
        int above = 0;
        for (size_t i = 0; i < scores.size(); ++i) above += scores[i] > worst || (!pinned.empty() && pinned[i] != 0);
        out[l][h].keep = std::min(out[l][h].keep, above);
      }
    }
  }

  double alpha_;
  bool strict_, sums_pages_;
};

}  // namespace

StageInfo<Allocator> GlobalStage() {
  return {"all heads of all layers compete beyond a safeguard",
          {RealParam("alpha", 0, 0, 1, "share of the uniform budget that every head is sure of"),
           IntParam("strict", 0, 0, 1, "1: only scores above the last one that fits"),
           ChoiceParam("pages", "count|sum",
                       "whole pages go by how many of their entries would stay, or by the sum of their scores")},
          [](const Params& p) -> std::unique_ptr<Allocator> {
            return std::make_unique<Global>(p.Real("alpha"), p.Int("strict") == 1, p.Choice("pages") == 1);
          },
          0,
          [](const Params& p) -> Status {
            if (p.Choice("pages") == 0 || (p.Real("alpha") == 0 && p.Int("strict") == 0)) return {};
            return InvalidArgument("alloc=global: pages=sum knows neither alpha= nor strict=1");
          }};
}

}  // namespace pith
