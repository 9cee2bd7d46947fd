// Near-copies of the best entries are lowered before the cut (GraphKV, arXiv:2509.00388; formulas
// from notes on the paper, there is no released code). The best candidates are sources; each source
// multiplies the scores of its nearest neighbours by 1 - gamma * cos of the keys.
//
// Ours: a source is lowered by higher-ranked sources only, so one of several copies survives
// (form=literal: by any). Sources are chosen once (reselect=1: anew in every round). Cosines are
// clamped to [0, 1] and factors to at least 1e-6, so exact copies keep their order.
#include <algorithm>

#include "policy/modify/neighbour_decay.h"
#include "policy/select.h"
#include "policy/stage.h"

namespace pith {
namespace {

class GraphKv final : public Modifier {
 public:
  explicit GraphKv(const Params& p)
      : share_(p.Real("share")),
        sources_(p.Int("sources")),
        neighbours_(p.Int("neighbours")),
        rounds_(p.Int("rounds")),
        gamma_(p.Real("gamma")),
        literal_(p.Choice("form") == 1),
        reselect_(p.Int("reselect") == 1) {}

  uint32_t needs() const override { return kNeedKeys; }
  bool reranks_inputs() const override { return true; }
  void Adjust(const LayerInputs&, LayerScores& scores) const override { MakePositive(scores); }

  void Rerank(HeadRank& rank) const override {
    if (rank.inputs == nullptr || rank.inputs->keys == nullptr) return;
    std::vector<size_t> candidates;
    for (size_t i = 0; i < rank.scores.size(); ++i) {
      const bool pinned = !rank.pinned().empty() && rank.pinned()[i] != 0;
      if (!pinned && rank.scores[i] != kProtected) candidates.push_back(i);
    }
    const int taken = static_cast<int>(rank.scores.size() - candidates.size());
    const int budget = rank.budget.keep - taken;
    if (budget <= 0 || candidates.size() <= static_cast<size_t>(budget)) return;
    const int automatic = std::max(1, static_cast<int>(share_ * budget));
    const int sources = std::min(sources_ > 0 ? sources_ : automatic, static_cast<int>(candidates.size()));
    const int neighbours = neighbours_ > 0 ? neighbours_ : std::max(1, budget / sources);

    std::vector<double> factors;
    for (int round = 0; round < rounds_; ++round) {
      if (round == 0 || reselect_) {
        factors = DecayFactors(rank, candidates,
                               {static_cast<size_t>(sources), static_cast<size_t>(neighbours), gamma_, literal_});
      }
      for (size_t c = 0; c < candidates.size(); ++c) {
        float& score = rank.scores[candidates[c]];
        score = static_cast<float>(static_cast<double>(score) * factors[c]);
      }
    }
  }

 private:
  double share_;
  int sources_;
  int neighbours_;
  int rounds_;
  double gamma_;
  bool literal_;
  bool reselect_;
};

}  // namespace

StageInfo<Modifier> GraphKvStage() {
  return {"lowers near-copies of the best entries",
          {RealParam("share", 0.3, 0, 1, "sources, as a share of the budget"),
           IntParam("sources", 0, 0, 65536, "sources; 0: by share"),
           IntParam("neighbours", 0, 0, 65536, "neighbours of each source; 0: budget / sources"),
           IntParam("rounds", 1, 0, 16, "how often scores are lowered"), RealParam("gamma", 1, 0, 1, "strength"),
           ChoiceParam("form", "ours|literal", "whether sources lower higher-ranked ones"),
           IntParam("reselect", 0, 0, 1, "1: choose sources anew in every round")},
          [](const Params& p) -> std::unique_ptr<Modifier> { return std::make_unique<GraphKv>(p); }};
}

}  // namespace pith
