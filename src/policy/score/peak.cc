// Largest attention that any query has paid: what is once looked at hard stays. The maximum is over
// queries and the group, without time.
//
// A relative of KVzip (score=kvzip) over the prompt's own queries, which needs no second pass.
#include <algorithm>

#include "policy/observe.h"
#include "policy/select.h"
#include "policy/stage.h"

namespace pith {
namespace {

class Peak final : public Scorer {
 public:
  explicit Peak(int recent) : recent_(recent) {}

  uint32_t needs() const override { return kNeedEveryQuery; }
  std::vector<ColumnSpec> columns() const override { return {{"largest_attention", 0}}; }

  void Observe(const Observation& seen, std::span<float* const> columns) const override {
    ForEachWeight<GroupBy::kMax>(seen,
                                 [&](size_t j, int, float weight) { columns[0][j] = std::max(columns[0][j], weight); });
  }

  void Score(const LayerInputs& inputs, const Aggregator&, LayerScores& scores) const override {
    for (size_t h = 0; h < scores.heads.size(); ++h) {
      const float* peaks = inputs.heads[h].columns[0];
      scores.heads[h].assign(peaks, peaks + inputs.heads[h].num_entries);
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
