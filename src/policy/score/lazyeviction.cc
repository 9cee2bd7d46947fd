// Recurrence intervals (LazyEviction, arXiv:2506.15969; github.com/WeianMao/triattention
// LazyEviction/model/kv_utils.py): for each entry when it was last active, that is attended with at
// least alpha by any query head of the group, and its longest silence so far. Those silent for long
// against their own longest silence go first.
//
// Time is the query's position, which differs from the paper's count of decode steps by a constant
// and so leaves every interval as it is. Several queries at once are a prompt: all entries then count
// as active at its end with no interval yet. form=code has the released code's extra 1 in the
// exponent. Ties go to the lower index. The engine evicts when it must, not when t mod W = 0.
#include <algorithm>
#include <cmath>

#include "base/parallel.h"
#include "policy/score/observe.h"
#include "policy/select.h"
#include "policy/stage.h"

namespace pith {
namespace {

double Sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

class LazyEviction final : public Scorer {
 public:
  LazyEviction(int window, double alpha, bool paper)
      : recent_(window), alpha_(static_cast<float>(alpha)), paper_(paper) {}

  uint32_t needs() const override { return kNeedEveryQuery | kNeedLargest; }
  std::vector<ColumnSpec> columns() const override { return {{"last_active", 0}, {"longest_silence", 0}}; }

  void Observe(const Observation& seen, std::span<float* const> columns) const override {
    float* __restrict last = columns[0];
    float* __restrict longest = columns[1];
    if (seen.num_queries == 0) return;
    const auto now = static_cast<float>(seen.query_positions.back());
    const auto n = static_cast<size_t>(seen.num_entries);
    if (seen.num_queries > 1) {
      std::fill(last, last + n, now);
      std::fill(longest, longest + n, 0.0F);
      return;
    }
    if (n > 0 && seen.positions[n - 1] == seen.query_positions.back()) {
      last[n - 1] = now - 1;
      longest[n - 1] = 0;
    }
    const ReceivedAttention received(seen, Received::kLargest);
    const float* __restrict weights = received.data();
    const float alpha = alpha_;
    for (size_t j = 0; j < n; ++j) {  // without branches, which nobody could foresee
      const float before = last[j],
                  since = weights[j] >= alpha ? now : before;  // which is before where it stays silent
      longest[j] = std::max(longest[j], since - before);
      last[j] = since;
    }
  }

  void Score(const LayerInputs& inputs, const Aggregator&, LayerScores& scores) const override {
    scores.ties.resize(scores.heads.size());
    ParallelFor(scores.heads.size(), [&](size_t h) {
      const HeadInputs& head = inputs.heads[h];
      const size_t n = scores.heads[h].size();
      scores.ties[h].resize(n);
      for (size_t i = 0; i < n; ++i) {
        const double silence = static_cast<double>(head.positions[n - 1]) - static_cast<double>(head.columns[0][i]);
        scores.heads[h][i] = static_cast<float>(Recurrence(silence, static_cast<double>(head.columns[1][i])));
        scores.ties[h][i] = -static_cast<float>(i);
      }
      ProtectNewest(scores.heads[h], recent_);
    });
  }

 private:
  double Recurrence(double silence, double longest) const {
    const double short_gap = longest > 0 ? 2 * Sigmoid(-(longest - 1)) : 0;
    if (!paper_) return 2 * Sigmoid(-(1 + silence / (longest + 1e-5))) + short_gap;
    if (longest > 0) return 2 * Sigmoid(-silence / longest) + short_gap;
    return silence > 0 ? 0 : 1;
  }

  int recent_;
  float alpha_;
  bool paper_;
};

}  // namespace

StageInfo<Scorer> LazyEvictionStage() {
  return {"time since last attended against the longest such time",
          {IntParam("window", 52, 1, 4096, "newest entries that always stay, and the eviction period"),
           RealParam("alpha", 5e-4, 0, 1, "attention from which an entry counts as active"),
           ChoiceParam("form", "code|paper", "formula of the released code or of the paper")},
          [](const Params& p) -> std::unique_ptr<Scorer> {
            return std::make_unique<LazyEviction>(p.Int("window"), p.Real("alpha"), p.Choice("form") == 1);
          }};
}

}  // namespace pith
