// Importance to recent queries against redundancy with newer keys (R-KV, arXiv:2505.24133;
// github.com/Zefan-Cai/R-KV rkv/compression/r1_kv.py, rkv/utils.py).
//
// As the code, not the paper: over the group the maximum of the logits before the softmax, the mean
// over queries before the pooling, and exactly one newer look-alike spared per key. lambda is the
// paper's 0.1 (the code has 0.07). A key with no look-alike spares slot 0, an accident of the code
// that parity needs (zero_slot0=0 turns it off). Entries stay in time order, where the code keeps
// them in score order. O(n^2 d) per head.
#include <algorithm>
#include <cmath>
#include <limits>

#include "policy/select.h"
#include "policy/stage.h"

namespace pith {
namespace {

void SoftmaxInPlace(std::span<float> x) {
  if (x.empty()) return;
  const float most = *std::max_element(x.begin(), x.end());
  double sum = 0;
  for (float& v : x) {
    v = std::exp(v - most);
    sum += static_cast<double>(v);
  }
  for (float& v : x) v = static_cast<float>(static_cast<double>(v) / sum);
}

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
        const std::vector<float> importance = Importance(inputs, inputs.heads[h], rows, n - own);
        const std::vector<float> redundancy = Redundancy(inputs.heads[h].keys, n, static_cast<size_t>(inputs.key_dim));
        for (size_t j = 0; j < n - own; ++j) {
          scores.heads[h][j] = lambda_ * importance[j] - (1 - lambda_) * redundancy[j];
        }
      }
      ProtectNewest(scores.heads[h], static_cast<int>(own));
    }
  }

 private:
  std::vector<float> Importance(const LayerInputs& layer, const HeadInputs& head, int rows, size_t columns) const {
    const auto dim = static_cast<size_t>(layer.key_dim);
    const float scale = 1 / std::sqrt(static_cast<float>(layer.key_dim));
    std::vector<float> mean(columns, 0.0F);
    std::vector<float> logits(columns);
    for (int t = layer.window - rows; t < layer.window; ++t) {
      std::fill(logits.begin(), logits.end(), -std::numeric_limits<float>::max());
      for (int g = 0; g < layer.group; ++g) {
        const float* query =
            head.window_queries +
            (static_cast<size_t>(g) * static_cast<size_t>(layer.window) + static_cast<size_t>(t)) * dim;
        for (size_t j = 0; j < columns; ++j) {
          const float* key = head.keys + j * dim;
          float dot = 0;
          for (size_t d = 0; d < dim; ++d) dot += query[d] * key[d];
          logits[j] = std::max(logits[j], dot * scale);
        }
      }
      SoftmaxInPlace(logits);
      for (size_t j = 0; j < columns; ++j) mean[j] += logits[j] / static_cast<float>(rows);
    }
    std::vector<float> pooled(columns);
    Pool(mean, {pool_, true}, pooled);
    return pooled;
  }

  // softmax over all entries of the mean cosine to the others, one newer look-alike spared each.
  std::vector<float> Redundancy(const float* keys, size_t n, size_t dim) const {
    // Normalised keys, transposed, so that the inner loop runs over entries.
    std::vector<float> columns(n * dim);
    for (size_t i = 0; i < n; ++i) {
      const float* key = keys + i * dim;
      float squares = 0;
      for (size_t d = 0; d < dim; ++d) squares += key[d] * key[d];
      const float scale = 1 / (std::sqrt(squares) + 1e-8F);
      for (size_t d = 0; d < dim; ++d) columns[d * n + i] = key[d] * scale;
    }
    std::vector<float> sum(n, 0.0F);
    std::vector<float> cosine(n);
    for (size_t i = 0; i < n; ++i) {
      std::fill(cosine.begin(), cosine.end(), 0.0F);
      for (size_t d = 0; d < dim; ++d) {
        const float x = columns[d * n + i];
        const float* row = columns.data() + d * n;
        for (size_t j = 0; j < n; ++j) cosine[j] += x * row[j];
      }
      cosine[i] = 0;
      size_t last = n;
      for (size_t j = n; j-- > 0 && last == n;) {
        if (cosine[j] > threshold_) last = j;
      }
      if (last == n && zero_slot0_) last = 0;
      if (last < n) cosine[last] = 0;
      for (size_t j = 0; j < n; ++j) sum[j] += cosine[j];
    }
    for (float& s : sum) s /= static_cast<float>(n);
    SoftmaxInPlace(sum);
    return sum;
  }

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
