// DefensiveKV's last steps (arXiv:2510.13334; github.com/FFY0/DefensiveKV
// efficient_defensivekv_press.py): scores weighed by each head's share of the projected value norms,
// then entries that are certain by their mean attention, and the window, at the layer's maximum.
//
// Differences from the authors' code: a first stage of negative size is empty (theirs marks nearly
// everything), and ties at the maximum, frequent with small budgets, are broken: the window first,
// then higher mean attention (theirs are arbitrary).
#include <algorithm>

#include "base/parallel.h"
#include "policy/modify/certain_entries.h"
#include "policy/select.h"
#include "policy/stage.h"

namespace pith {
namespace {

class Certain final : public Modifier {
 public:
  explicit Certain(double mass) : mass_(mass) {}

  uint32_t needs() const override { return kNeedWindowProbs | kNeedValueNorms; }
  int window() const override { return window_; }
  void AdoptWindow(int window) override { window_ = window; }

  void Adjust(const LayerInputs& inputs, LayerScores& scores) const override {
    MakePositive(scores);
    WeighByValueShares(inputs, scores);
    scores.window = std::min(window_, inputs.window);
    StageNotes& notes = scores.NotesOf(this);
    const double before_window = MeanAttention(inputs, window_, notes.column);
    notes.numbers = {mass_ - before_window};
  }

  void Refine(const Budget& budget, LayerScores& scores) const override {
    float most = 0;
    for (const auto& head : scores.heads) {
      for (float score : head) {
        if (score != kProtected) most = std::max(most, score);
      }
    }
    scores.ties.resize(scores.heads.size());
    const StageNotes& notes = scores.NotesOf(this);
    ParallelFor(scores.heads.size(), [&](size_t h) {
      const std::vector<float>& mean = notes.column[h];
      std::vector<float>& score = scores.heads[h];
      for (size_t i : CertainEntries(mean, notes.numbers.front(), scores.window, budget)) score[i] = most;
      scores.ties[h].assign(score.size(), kProtected);
      std::copy(mean.begin(), mean.end(), scores.ties[h].begin());
      std::replace(score.begin(), score.end(), kProtected, most);
    });
  }

 private:
  double mass_;
  int window_ = 0;
};

}  // namespace

StageInfo<Modifier> CertainStage() {
  return {"scores weighed by value norms; entries that hold most of the mean attention are certain",
          {RealParam("mass", 0.9, 0, 1, "attention that certain entries hold together")},
          [](const Params& p) -> std::unique_ptr<Modifier> { return std::make_unique<Certain>(p.Real("mass")); }};
}

}  // namespace pith
