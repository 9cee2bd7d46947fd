// Whole heads (KVzip's level `head`, arXiv:2505.23416, step 9): a head is as good as its best entry, the
// best heads keep everything as long as the total holds it, the others keep pinned and protected entries
// alone. What is left of the total when the next head does not fit stays free. strict=1 is the released
// threshold, under which the last head that would just fill the total goes too.
#include <algorithm>
#include <numeric>

#include "policy/select.h"
#include "policy/stage.h"

namespace pith {
namespace {

class Heads final : public Allocator {
 public:
  explicit Heads(bool strict) : strict_(strict) {}

  bool layer_local() const override { return false; }

  void Allocate(std::span<const LayerScores> layers, const Budget& budget, Allocation& out) const override {
    struct Head {
      HeadBudget* budget;
      float best;  // over entries that may go
      int count;
      int sure;    // entries that stay anyway
    };
    std::vector<Head> heads;
    for (size_t l = 0; l < layers.size(); ++l) {
      for (size_t h = 0; h < layers[l].heads.size(); ++h) {
        const std::vector<float>& scores = layers[l].heads[h];
        const std::span<const uint8_t> pinned = PinnedOf(layers[l], h);
        Head head{&out[l][h], -kProtected, static_cast<int>(scores.size()), 0};
        for (size_t i = 0; i < scores.size(); ++i) {
          const bool sure = scores[i] == kProtected || (!pinned.empty() && pinned[i] != 0);
          head.sure += sure;
          if (!sure) head.best = std::max(head.best, scores[i]);
        }
        heads.push_back(head);
      }
    }
    int64_t left = TotalEntries(budget, heads.size());
    for (const Head& head : heads) {
      *head.budget = {head.sure, head.sure};
      left -= head.sure;
    }
    std::stable_sort(heads.begin(), heads.end(), [](const Head& a, const Head& b) { return a.best > b.best; });
    if (strict_) --left;
    for (const Head& head : heads) {
      left -= head.count - head.sure;
      if (left < 0) break;
      *head.budget = {head.count, head.count};
    }
  }

 private:
  bool strict_;
};

}  // namespace

StageInfo<Allocator> HeadsStage() {
  return {"whole heads, by their best entry; the others keep only what is pinned or protected",
          {IntParam("strict", 0, 0, 1, "1: a head that would just fill the total goes too")},
          [](const Params& p) -> std::unique_ptr<Allocator> { return std::make_unique<Heads>(p.Int("strict") == 1); }};
}

}  // namespace pith
