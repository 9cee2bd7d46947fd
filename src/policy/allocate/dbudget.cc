// As many entries as the last query needs (DBudgetKV, now ReFreeKV, arXiv:2502.16886;
// github.com/Patrick-Ni/ReFreeKV): the shortest prefix of the ranking sinks, newest, ..., oldest that
// loses at most a share T of the norm of the attention row. The budget is only a cap.
//
// form=code: sinks stay and are left out of the norms, one size for all heads of a layer from the
// mean of their norms. form=paper: sinks count, each query head has its prefix, a kv head keeps the
// largest of its group. Meant for score=streamingllm, whose ranking is the paper's; with another
// scorer it decides the size alone. Never fewer than sinks + floor entries (ours).
#include <algorithm>

#include "policy/allocate/lossless_prefix.h"
#include "policy/select.h"
#include "policy/stage.h"

namespace pith {
namespace {

class DBudget final : public Allocator {
 public:
  explicit DBudget(const Params& p)
      : threshold_(p.Real("threshold")),
        sinks_(p.Int("sinks")),
        rows_(p.Int("rows")),
        skip_(p.Int("skip")),
        floor_(p.Int("floor")),
        paper_(p.Choice("form") == 1) {}

  uint32_t needs() const override { return kNeedWindowProbs; }
  int window() const override { return rows_; }

  void Prepare(const LayerInputs& inputs, LayerScores& scores) const override {
    std::vector<double>& wanted = scores.NotesOf(this).numbers;
    wanted.clear();
    for (const HeadInputs& head : inputs.heads) wanted.push_back(head.num_entries);
    if (inputs.layer < skip_ || inputs.window == 0) return;
    const PrefixOptions options{threshold_, sinks_, rows_, floor_};
    if (paper_) {
      for (size_t h = 0; h < inputs.heads.size(); ++h)
        wanted[h] = LargestPrefix(inputs, inputs.heads[h], options);
    } else {
      const int suffix = SharedSuffix(inputs, options);
      for (size_t h = 0; h < inputs.heads.size(); ++h) {
        wanted[h] = std::min(inputs.heads[h].num_entries, sinks_ + std::max(suffix, floor_));
      }
    }
  }

  void Allocate(std::span<const LayerScores> layers, const Budget& budget, Allocation& out) const override {
    for (size_t l = 0; l < layers.size(); ++l) {
      const std::vector<double>& wanted = layers[l].NotesOf(this).numbers;
      for (size_t h = 0; h < out[l].size(); ++h) out[l][h] = {std::min(static_cast<int>(wanted[h]), budget.keep), 0};
    }
  }

 private:
  double threshold_;
  int sinks_;
  int rows_;
  int skip_;
  int floor_;
  bool paper_;
};

}  // namespace

StageInfo<Allocator> DBudgetStage() {
  return {"sinks and as many newest entries as hold the last query's attention; the budget is a cap",
          {RealParam("threshold", 0.01, 0, 1, "norm of the attention row that may be lost"),
           IntParam("sinks", 4, 0, 4096, "first tokens that always stay"),
           IntParam("rows", 1, 1, 4096, "last queries that are averaged"),
           IntParam("skip", 2, 0, 1024, "first layers that keep everything up to the budget"),
           IntParam("floor", 8, 0, 4096, "least entries beside the sinks"),
           ChoiceParam("form", "code|paper", "one size per layer, or one per kv head")},
          [](const Params& p) -> std::unique_ptr<Allocator> { return std::make_unique<DBudget>(p); }};
}

}  // namespace pith
