// Largest attention that any query has paid: what is once looked at hard stays. The maximum is over
// queries and the group, without time.
//
// A relative of KVzip (score=kvzip) over the prompt's own queries, which needs no second pass.
#include "policy/score/observe.h"
#include "policy/select.h"
#include "policy/stage.h"

namespace pith {
namespace {

class Peak final : public Scorer {
 public:
  explicit Peak(int recent) : recent_(recent) {}

  uint32_t needs() const override { return kNeedEveryQuery | kNeedLargest; }
  std::vector<ColumnSpec> columns() const override { return {{"largest_attention", 0}}; }

  void Observe(const Observation& seen, std::span<float* const> columns) const override {
    KeepLargest(seen, columns[0]);
  }

  void Score(const LayerInputs& inputs, const Aggregator&, LayerScores& scores) const override {
    for (size_t h = 0; h < scores.heads.size(); ++h) {
      ScoreByColumn(inputs.heads[h], 0, scores.heads[h]);
      ProtectNewest(scores.heads[h], recent_);
    }
  }

 private:
  int recent_;
};

}  // namespace

StageInfo<Scorer> PeakStage() {
  return {"largest attention that any query has paid",
          {IntParam("recent", 0, 0, 65536, "newest entries that always stay")},
          [](const Params& p) -> std::unique_ptr<Scorer> { return std::make_unique<Peak>(p.Int("recent")); }};
}

}  // namespace pith
