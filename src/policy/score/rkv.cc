// Importance to recent queries against redundancy with newer keys (R-KV, arXiv:2505.24133;
// github.com/Zefan-Cai/R-KV rkv/compression/r1_kv.py, rkv/utils.py).
//
// As the code, not the paper: over the group the maximum of the logits before the softmax, the mean
// over queries before the pooling, and exactly one newer look-alike spared per key. lambda is the
// paper's 0.1 (the code has 0.07). A key with no look-alike spares slot 0, an accident of the code
// that parity needs (zero_slot0=0 turns it off). Entries stay in time order, where the code keeps
// them in score order. O(n^2 d) per head where no two keys are alike, else less.
#include <algorithm>
#include <numeric>

#include "policy/score/rkv_terms.h"
#include "policy/select.h"
#include "policy/stage.h"

namespace pith {
namespace {

class Rkv final : public Scorer {
 public:
  explicit Rkv(const Params& p)
      : window_(p.Int("window")),
        pool_(p.Int("pool")),
        lambda_(static_cast<float>(p.Real("lambda"))),
        threshold_(static_cast<float>(p.Real("threshold"))),
        zero_slot0_(p.Int("zero_slot0") == 1) {}

  uint32_t needs() const override { return kNeedKeys | kNeedWindowQueries; }
  int window() const override { return window_; }

  void Score(const LayerInputs& inputs, const Aggregator&, LayerScores& scores) const override {
    const int rows = std::min(window_, inputs.window);
    scores.window = rows;
    for (size_t h = 0; h < scores.heads.size(); ++h) {
      const auto n = scores.heads[h].size();
      const size_t own = std::min(n, static_cast<size_t>(std::max(rows, 1)));
      if (n > own && rows > 0) {
        std::vector<size_t> all(n);
        std::iota(all.begin(), all.end(), size_t{0});
        const auto dim = static_cast<size_t>(inputs.key_dim);
        const KeyColumns keys = UnitColumns(inputs.heads[h].keys, dim, all, 1e-8F);
        const std::vector<float> importance = RkvImportance(inputs, inputs.heads[h], keys, rows, n - own, pool_);
        const std::vector<float> redundancy = RkvRedundancy(keys, dim, threshold_, zero_slot0_);
        for (size_t j = 0; j < n - own; ++j) {
          scores.heads[h][j] = lambda_ * importance[j] - (1 - lambda_) * redundancy[j];
        }
      }
      ProtectNewest(scores.heads[h], static_cast<int>(own));
    }
  }

 private:
  int window_;
  int pool_;
  float lambda_;
  float threshold_;
  bool zero_slot0_;
};

}  // namespace

StageInfo<Scorer> RkvStage() {
  return {"attention of recent queries minus redundancy with newer keys",
          {IntParam("window", 8, 1, 4096, "last queries that are observed; their entries stay"),
           IntParam("pool", 7, 1, 63, "neighbours over which importance is spread"),
           RealParam("lambda", 0.1, 0, 1, "weight of importance against redundancy"),
           RealParam("threshold", 0.5, -1, 1, "cosine from which keys count as alike"),
           IntParam("zero_slot0", 1, 0, 1, "1: as the code, a key without look-alikes spares slot 0")},
          [](const Params& p) -> std::unique_ptr<Scorer> { return std::make_unique<Rkv>(p); }};
}

}  // namespace pith
