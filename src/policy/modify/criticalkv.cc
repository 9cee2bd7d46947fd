// Two stages within each head's budget (CriticalKV, arXiv:2502.03805): the best share by the scorer
// stays, the others are ranked by (score + epsilon) * ||V W_O||_1. Entries that the scorer protects
// or that the allocator made each head sure of count as first-stage ones; the authors' code ranks
// those first as well.
#include <algorithm>
#include <limits>
#include <numeric>

#include "policy/select.h"
#include "policy/stage.h"

namespace pith {
namespace {

class CriticalKv final : public Modifier {
 public:
  CriticalKv(double first, float epsilon) : first_(first), epsilon_(epsilon) {}

  uint32_t needs() const override { return kNeedValueNorms; }

  void Adjust(const LayerInputs& inputs, LayerScores& scores) const override {
    MakePositive(scores);
    std::vector<std::vector<float>>& norms = scores.NotesOf(this).column;
    norms.clear();
    for (const HeadInputs& head : inputs.heads) {
      if (head.value_norms == nullptr) return norms.clear();
      norms.emplace_back(head.value_norms, head.value_norms + head.num_entries);
    }
  }

  void Rerank(HeadRank& rank) const override {
    const std::vector<std::vector<float>>& of_heads = rank.layer->NotesOf(this).column;
    if (of_heads.empty()) return;
    const std::vector<float>& norms = of_heads[static_cast<size_t>(rank.head)];
    const int first = std::max(static_cast<int>(first_ * rank.budget.keep), rank.budget.floor);
    const std::vector<int32_t> sure = SelectTop(rank.scores, *rank.ties, rank.pinned(), first);
    for (size_t i = 0; i < rank.scores.size(); ++i) {
      if (rank.scores[i] == kProtected) continue;
      rank.scores[i] = (rank.scores[i] + epsilon_) * norms[i];
    }
    // Below the protected ones, above all others.
    for (int32_t i : sure) {
      float& score = rank.scores[static_cast<size_t>(i)];
      if (score != kProtected) score = std::numeric_limits<float>::max();
    }
  }

 private:
  double first_;
  float epsilon_;
};

}  // namespace

StageInfo<Modifier> CriticalKvStage() {
  return {"half of each head's budget by the score, the rest by score times projected value norm",
          {RealParam("first", 0.5, 0, 1, "share of the budget that the score alone decides"),
           RealParam("epsilon", 1e-4, 0, 1, "added to scores before they are weighed")},
          [](const Params& p) -> std::unique_ptr<Modifier> {
            return std::make_unique<CriticalKv>(p.Real("first"), static_cast<float>(p.Real("epsilon")));
          }};
}

}  // namespace pith
