// All heads of all layers compete for one total (Layer-DefensiveKV, arXiv:2510.13334; KVzip's level
// `pair`, arXiv:2505.23416). strict=1 is KVzip's released threshold: only scores above the last one
// that fits stay, which is one entry fewer, and none of several that tie with it. pages=sum: where what stays is stored
// in whole pages, these compete, by the sum of their scores: a page of one head is dear, so that what counts is all
// that is in it rather than how much of it is above one threshold. For scores that add up, as attention does.
// bare=N: of the sinks that recipes want, N alone stay in a head that holds no page, in which each takes as much as
// several entries in few bits; in pages they take one place each.
#include <algorithm>

#include "policy/page_division.h"
#include "policy/select.h"
#include "policy/stage.h"

namespace pith {
namespace {

class Global final : public Allocator {
 public:
  Global(double alpha, bool strict, bool sums_pages, int num_bare)
      : alpha_(alpha), strict_(strict), sums_pages_(sums_pages), num_bare_(num_bare) {}

  bool layer_local() const override { return false; }
  bool cascades() const override { return true; }

  // Sinks that not every head must hold are pinned no more; the notes have so many numbers as there are first entries
  // up to the last of them.
  void Prepare(const LayerInputs& inputs, LayerScores& scores) const override {
    if (num_bare_ < 0 || scores.pinned.empty()) return;
    std::vector<std::vector<float>>& first = scores.NotesOf(this).column;
    for (size_t h = 0; h < inputs.heads.size(); ++h) {
      size_t count = 0;
      for (size_t i = 0; i < scores.pinned[h].size(); ++i) {
        if (scores.pinned[h][i] != kPinnedAsSink || inputs.heads[h].positions[i] < num_bare_) continue;
        scores.pinned[h][i] = 0;
        count = i + 1;
      }
      first.emplace_back(count);
    }
  }

  // They win against all others, but for what pages are worth.
  void Refine(const Budget& budget, LayerScores& scores) const override {
    if (sums_pages_ && budget.page_entries > 1) return;
    for (size_t h = 0; h < scores.heads.size(); ++h) Protect(CountFirst(scores, h), scores.heads[h]);
  }
  // A head that holds no page keeps what is pinned.
  void Rerank(HeadRank& rank) const override {
    Protect(CountFirst(*rank.layer, static_cast<size_t>(rank.head)), rank.scores);
  }

  void Allocate(std::span<const LayerScores> layers, const Budget& budget, Allocation& out) const override {
    if (sums_pages_ && budget.page_entries > 1) {
      const auto first = [this](const LayerScores& layer, size_t head) { return CountFirst(layer, head); };
      return DividePages(layers, budget, first, out);
    }
    double floor = static_cast<double>(static_cast<int>(alpha_ * budget.keep));
    if (alpha_ > 0 && budget.keep > 0) floor = std::max(floor, 1.0);
    size_t num_heads = 0;
    for (const LayerScores& layer : layers) num_heads += layer.heads.size();
    AllocatePooled(layers, TotalEntries(budget, num_heads), floor, out);
    if (strict_) DropTies(layers, out);
  }

 private:
  int CountFirst(const LayerScores& layer, size_t head) const {
    const std::vector<std::vector<float>>& first = layer.NotesOf(this).column;
    return first.empty() ? 0 : static_cast<int>(first[head].size());
  }
  static void Protect(int count, std::span<float> scores) {
    std::ranges::fill(scores.first(static_cast<size_t>(count)), kProtected);
  }

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
  int num_bare_;
};

}  // namespace

StageInfo<Allocator> GlobalStage() {
  return {"all heads of all layers compete beyond a safeguard",
          {RealParam("alpha", 0, 0, 1, "share of the uniform budget that every head is sure of"),
           IntParam("strict", 0, 0, 1, "1: only scores above the last one that fits"),
           ChoiceParam("pages", "count|sum",
                       "whole pages go by how many of their entries would stay, or by the sum of their scores"),
           IntParam("bare", -1, -1, 64, "sinks that stay in a head that holds no whole page; -1: all")},
          [](const Params& p) -> std::unique_ptr<Allocator> {
            return std::make_unique<Global>(p.Real("alpha"), p.Int("strict") == 1, p.Choice("pages") == 1,
                                            p.Int("bare"));
          },
          0,
          [](const Params& p) -> Status {
            if (p.Choice("pages") == 0 || (p.Real("alpha") == 0 && p.Int("strict") == 0)) return {};
            return InvalidArgument("alloc=global: pages=sum knows neither alpha= nor strict=1");
          }};
}

}  // namespace pith
