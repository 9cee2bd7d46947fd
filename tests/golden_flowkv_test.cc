// FlowKV (arXiv:2505.15347): turns that are compressed once, among their own entries, against the specification's
// vectors; and the baseline that compresses all that is there at every turn.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "policy/turns/turns.h"
#include "tests/support/golden.h"

namespace pith::testing {
namespace {

size_t Size(const GgufFile& file, const std::string& name) { return static_cast<size_t>(file.param(name)); }

// A conversation of one layer: what each head holds, and the scores by which segments were judged.
class Conversation {
 public:
  Conversation(const GgufFile& file, const std::string& host) : file_(file), recipe_(RecipeOf(host)) {
    options_ = *recipe_.turns;
    options_.drop = file.number("pith.param.rho");
    options_.min_keep = file.param("min_keep");
    entries_.resize(Size(file, "kv_heads"));
    score_.assign(entries_.size() * Size(file, "n"), 0.0F);
  }

  // The segment that ends with `end` tokens was read. isolated: only its own entries are judged, else all.
  void Read(size_t end, bool isolated) {
    for (std::vector<int32_t>& head : entries_) {
      const size_t from = head_end_;
      for (size_t i = from; i < end; ++i) head.push_back(static_cast<int32_t>(i));
    }
    const size_t first = isolated ? entries_[0].size() - (end - head_end_) : 0;
    head_end_ = end;
    const int m = static_cast<int>(entries_[0].size() - first);
    const int window = recipe_.policy->window();
    const int keep = TurnKeep(options_, m, window);
    if (!isolated) std::ranges::fill(score_, 0.0F);
    if (keep == m) return;
    Judge(first, keep);
  }

  std::vector<int64_t> Mask() const { return MaskOf(entries_, Size(file_, "n")); }
  const std::vector<float>& score() const { return score_; }

 private:
  void Judge(size_t first, int keep) {
    const size_t heads = entries_.size(), group = Size(file_, "heads") / heads;
    std::vector<HeadInputs> inputs(heads);
    std::vector<std::vector<float>> probs(heads);
    for (size_t h = 0; h < heads; ++h) probs[h] = Window(h, group, first, inputs[h]);
    LayerInputs layer;
    layer.num_layers = 1;
    layer.group = static_cast<int>(group);
    layer.window = recipe_.policy->window();
    layer.heads = inputs;
    LayerScores scores;
    recipe_.policy->Score(layer, scores);
    const KeptHeads kept =
        recipe_.policy->Select(layer, scores, Budget{.keep = keep, .keep_exact = static_cast<double>(keep)}).value();
    for (size_t h = 0; h < heads; ++h) {
      std::vector<int32_t> stay(entries_[h].begin(), entries_[h].begin() + static_cast<ptrdiff_t>(first));
      for (size_t i = 0; i < scores.heads[h].size(); ++i) {
        const float score = scores.heads[h][i];
        score_[h * Size(file_, "n") + static_cast<size_t>(entries_[h][first + i])] = std::isinf(score) ? 0.0F : score;
      }
      for (const int32_t i : kept[h]) stay.push_back(entries_[h][first + static_cast<size_t>(i)]);
      entries_[h] = std::move(stay);
    }
  }

  // Attention of the last queries over the whole head, of which the columns of what is judged are left.
  std::vector<float> Window(size_t h, size_t group, size_t first, HeadInputs& inputs) const {
    const size_t n = Size(file_, "n"), dim = Size(file_, "head_dim"), all = entries_[h].size();
    const auto window = static_cast<size_t>(recipe_.policy->window());
    std::vector<float> keys, cut;
    for (const int32_t i : entries_[h]) {
      const float* key = file_.tensor("in/k").f32.data() + (h * n + static_cast<size_t>(i)) * dim;
      keys.insert(keys.end(), key, key + dim);
    }
    std::vector<int32_t> at(window);
    for (size_t t = 0; t < window; ++t) at[t] = static_cast<int32_t>(head_end_ - window + t);
    if (window > 0) {
      const float* queries = file_.tensor("in/q").f32.data() + (h * group * n + head_end_ - window) * dim;
      const std::vector<float> rows = Attention(queries, n * dim, static_cast<int>(group), at, keys.data(),
                                                entries_[h], static_cast<int>(dim));
      for (size_t row = 0; row < group * window; ++row) {
        cut.insert(cut.end(), rows.begin() + static_cast<ptrdiff_t>(row * all + first),
                   rows.begin() + static_cast<ptrdiff_t>((row + 1) * all));
      }
    }
    inputs.num_entries = static_cast<int>(all - first);
    inputs.positions = std::span(entries_[h]).subspan(first);
    inputs.window_probs = cut.data();
    return cut;
  }

  const GgufFile& file_;
  Recipe recipe_;
  TurnOptions options_;
  KeptHeads entries_;
  size_t head_end_ = 0;
  std::vector<float> score_;
};

void Check(const GgufFile& file, const std::string& method, const std::string& host, bool isolated) {
  const size_t n = Size(file, "n"), kv_heads = Size(file, "kv_heads");
  Conversation conversation(file, host + " turns=flowkv");
  const std::vector<int64_t>& expected = file.tensor("out/" + method + "/kept").i64;
  const bool same_for_all = expected.size() == Size(file, "segments") * n;
  const size_t rows = same_for_all ? 1 : kv_heads;
  size_t end = 0;
  for (size_t s = 0; s < Size(file, "segments"); ++s) {
    end += static_cast<size_t>(file.tensor("in/lengths").i64[s]);
    conversation.Read(end, isolated);
    const std::vector<int64_t> mask = conversation.Mask();
    for (size_t h = 0; h < kv_heads; ++h) {
      const auto from = static_cast<ptrdiff_t>((s * rows + (same_for_all ? 0 : h)) * n);
      ExpectExactly({mask.begin() + static_cast<ptrdiff_t>(h * n), mask.begin() + static_cast<ptrdiff_t>((h + 1) * n)},
                    {expected.begin() + from, expected.begin() + from + static_cast<ptrdiff_t>(n)},
                    fmt::format("segment {}, head {}", s, h));
    }
  }
  if (same_for_all) return;
  ExpectNumbers(conversation.score(), file.tensor("out/" + method + "/score").f32, "score");
}

std::string SnapKv(const GgufFile& file) {
  return fmt::format("snapkv:window={},pool={}", file.param("window"), file.param("kernel"));
}

PITH_GOLDEN_TEST(Turns, flowkv, "in/lengths") { Check(file, "flowkv", SnapKv(file), true); }
PITH_GOLDEN_TEST(Turns, flowkv_baseline, "in/lengths") { Check(file, "flowkv_baseline", SnapKv(file), false); }
PITH_GOLDEN_TEST(Turns, flowkv_streaming, "in/lengths") {
  Check(file, "flowkv_streaming", fmt::format("streamingllm:sinks={}", file.param("n_sink")), true);
}

}  // namespace
}  // namespace pith::testing
