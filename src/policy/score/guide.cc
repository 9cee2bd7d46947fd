// Largest attention that a text pays to the entries, when it is read after them and dropped again (EpiCache,
// arXiv:2509.17396, steps 7 and 8; github.com/apple/ml-epicache attention/score.py): maximum over the text's queries
// and the GQA group. The softmax is over the cached entries alone, in float32 (the code: the model's type). The engine
// takes the text from Engine::SetGuide(), or the newest tokens where there is none.
#include "policy/score/observe.h"
#include "policy/stage.h"

namespace pith {
namespace {

class Guide final : public Scorer {
 public:
  explicit Guide(const RepeatOptions& repeat) : repeat_(repeat) {}

  uint32_t needs() const override { return kNeedRepeat; }
  const RepeatOptions* repeat() const override { return &repeat_; }
  std::vector<ColumnSpec> columns() const override { return {{"largest_guided", 0}}; }

  void Observe(const Observation& seen, std::span<float* const> columns) const override {
    KeepLargest(seen, columns[0]);
  }

  void Score(const LayerInputs& inputs, const Aggregator&, LayerScores& scores) const override {
    for (size_t h = 0; h < scores.heads.size(); ++h) ScoreByColumn(inputs.heads[h], 0, scores.heads[h]);
  }

 private:
  RepeatOptions repeat_;
};

}  // namespace

StageInfo<Scorer> GuideStage() {
  return {"largest attention of a text that stands for what will be asked",
          {IntParam("tokens", 256, 16, 4096, "of the newest ones, where no such text is given")},
          [](const Params& p) -> std::unique_ptr<Scorer> {
            return std::make_unique<Guide>(RepeatOptions{.chunk = p.Int("tokens"), .overlap = 0, .guided = true});
          }};
}

}  // namespace pith
