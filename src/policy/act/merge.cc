// Entries that do not stay are added to the kept entry with the most similar key, if it is similar
// enough (D2O, arXiv:2406.13035; policy/merge.h has the formulas).
#include "policy/merge.h"

#include "policy/stage.h"

namespace pith {
namespace {

class Merge final : public Action {
 public:
  explicit Merge(const MergeOptions& options) : options_(options) {}
  const MergeOptions* merge() const override { return &options_; }

 private:
  MergeOptions options_;
};

}  // namespace

StageInfo<Action> MergeStage() {
  return {"entries that do not stay are added to the kept entry with the most similar key, if it is similar enough",
          {RealParam("alpha", 0.5, 0, 1, "weight of the layer's threshold so far"),
           RealParam("beta", 0.5, 0, 1, "weight of the mean similarity of the entries that go"),
           ChoiceParam("weights", "code|paper", "u / (1 + count) as the authors' code, or the paper's convex e^u")},
          [](const Params& p) -> std::unique_ptr<Action> {
            return std::make_unique<Merge>(MergeOptions{.alpha = p.Real("alpha"),
                                                        .beta = p.Real("beta"),
                                                        .weigh_exp = p.Choice("weights") == 1});
          },
          /*num_sinks=*/4};
}

}  // namespace pith
