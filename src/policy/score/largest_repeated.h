// What scorers of a second reading share: the largest attention that its queries pay to an entry.
#ifndef PITH_POLICY_SCORE_LARGEST_REPEATED_H_
#define PITH_POLICY_SCORE_LARGEST_REPEATED_H_

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "policy/score/observe.h"
#include "policy/select.h"
#include "policy/stage.h"

namespace pith {

// The column of attention itself, from 0 to 1; others weigh it.
inline constexpr std::string_view kLargestAttention = "largest_attention";

class LargestRepeated final : public Scorer {
 public:
  LargestRepeated(const RepeatOptions& repeat, std::string column) : repeat_(repeat), column_(std::move(column)) {}

  uint32_t needs() const override { return kNeedRepeat; }
  const RepeatOptions* repeat() const override { return &repeat_; }
  std::vector<ColumnSpec> columns() const override { return {{column_, 0}}; }

  void Observe(const Observation& seen, std::span<float* const> columns) const override {
    KeepLargest(seen, columns[0]);
  }

  void Score(const LayerInputs& inputs, const Aggregator&, LayerScores& scores) const override {
    for (size_t h = 0; h < scores.heads.size(); ++h) {
      ScoreByColumn(inputs.heads[h], 0, scores.heads[h]);
      for (float& score : scores.heads[h]) score = score < kNotRepeated ? score : kProtected;
    }
  }

 private:
  const RepeatOptions repeat_;
  const std::string column_;
};

}  // namespace pith

#endif  // PITH_POLICY_SCORE_LARGEST_REPEATED_H_
