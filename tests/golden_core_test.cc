// One-shot scores, budgets and kept entries against kvpress and the DefensiveKV fork.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "policy/policy.h"
#include "tests/support/golden.h"

namespace pith::testing {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// One core_*.gguf as a policy sees it.
class CoreCase {
 public:
  explicit CoreCase(const GgufFile& file)
      : file_(file),
        layers_(file.param("layers")),
        n_(file.param("n")),
        heads_(file.param("heads")),
        kv_heads_(file.param("kv_heads")),
        dim_(file.param("head_dim")),
        window_(file.param("window")),
        positions_(static_cast<size_t>(n_)) {
    std::iota(positions_.begin(), positions_.end(), 0);
    // Stored as float32; the reference computed with the double that was meant.
    ratio_ = std::round(file.number("pith.param.compression_ratio") * 1e6) / 1e6;
    budget_.keep = file.param("n_kept");
    budget_.keep_fraction = 1 - ratio_;
    budget_.keep_exact = n_ * (1 - ratio_);
  }

  size_t n() const { return static_cast<size_t>(n_); }
  size_t window() const { return static_cast<size_t>(window_); }
  int layers() const { return layers_; }
  const Budget& budget() const { return budget_; }
  std::string name(const std::string& method, int layer, const std::string& what) const {
    return "out/" + method + "/l" + std::to_string(layer) + "/" + what;
  }

  // Valid until the next call.
  LayerInputs Inputs(int layer, const Policy& policy, int pinned = 0) {
    const std::string at = "in/l" + std::to_string(layer) + "/";
    const size_t group = static_cast<size_t>(heads_ / kv_heads_);
    const size_t head_floats = n() * static_cast<size_t>(dim_);
    const float* keys = file_.tensor(at + "k").f32.data();
    const float* values = file_.tensor(at + "v").f32.data();
    const float* probs = file_.tensor(at + "attn_window").f32.data();
    head_inputs_.assign(static_cast<size_t>(kv_heads_), {});
    pinned_.assign(n(), 0);
    std::fill(pinned_.begin(), pinned_.begin() + pinned, uint8_t{1});
    ComputeNorms(at, policy);
    Observe(at, layer, policy);
    for (size_t h = 0; h < head_inputs_.size(); ++h) {
      HeadInputs& head = head_inputs_[h];
      head.num_entries = n_;
      head.positions = positions_;
      if (pinned > 0) head.pinned = pinned_;
      head.keys = keys + h * head_floats;
      head.values = values + h * head_floats;
      head.window_probs = probs + h * group * window() * n();
      if (!norms_.empty()) head.value_norms = norms_.data() + h * n();
      head.columns = column_pointers_[h];
    }
    LayerInputs inputs;
    inputs.layer = layer;
    inputs.num_layers = layers_;
    inputs.group = heads_ / kv_heads_;
    inputs.key_dim = dim_;
    inputs.value_dim = dim_;
    inputs.window = window_;
    inputs.next_position = n_;
    inputs.heads = head_inputs_;
    return inputs;
  }

 private:
  // N[h, j] = mean over the group of || V[h, j] W_O^q ||_1
  void ComputeNorms(const std::string& at, const Policy& policy) {
    norms_.clear();
    if ((policy.needs() & kNeedValueNorms) == 0) return;
    const std::vector<float>& wo = file_.tensor(at + "wo").f32;
    const std::vector<float>& values = file_.tensor(at + "v").f32;
    const auto dim = static_cast<size_t>(dim_);
    const size_t width = static_cast<size_t>(heads_) * dim;
    const size_t hidden = wo.size() / width;
    const size_t group = static_cast<size_t>(heads_ / kv_heads_);
    norms_.assign(static_cast<size_t>(kv_heads_) * n(), 0.0F);
    for (size_t q = 0; q < static_cast<size_t>(heads_); ++q) {
      for (size_t j = 0; j < n(); ++j) {
        const float* value = values.data() + ((q / group) * n() + j) * dim;
        float norm = 0;
        for (size_t r = 0; r < hidden; ++r) {
          const float* row = wo.data() + r * width + q * dim;
          float dot = 0;
          for (size_t d = 0; d < dim; ++d) dot += row[d] * value[d];
          norm += std::abs(dot);
        }
        norms_[(q / group) * n() + j] += norm / static_cast<float>(group);
      }
    }
  }

  void Observe(const std::string& at, int layer, const Policy& policy) {
    const std::vector<ColumnSpec> specs = policy.columns();
    columns_.assign(static_cast<size_t>(kv_heads_), {});
    column_pointers_.assign(static_cast<size_t>(kv_heads_), {});
    const size_t group = static_cast<size_t>(heads_ / kv_heads_);
    const size_t head_floats = n() * static_cast<size_t>(dim_);
    for (size_t h = 0; h < columns_.size(); ++h) {
      columns_[h].reserve(specs.size());
      for (const ColumnSpec& spec : specs) columns_[h].emplace_back(n(), spec.initial);
      for (auto& column : columns_[h]) column_pointers_[h].push_back(column.data());
      if ((policy.needs() & kNeedEveryQuery) == 0) continue;
      const std::vector<float> attention =
          Attention(file_.tensor(at + "q").f32.data() + h * group * head_floats, head_floats, static_cast<int>(group),
                    positions_, file_.tensor(at + "k").f32.data() + h * head_floats, positions_, dim_);
      Observation seen;
      seen.layer = layer;
      seen.kv_head = static_cast<int>(h);
      seen.group = static_cast<int>(group);
      seen.num_queries = n_;
      seen.num_entries = n_;
      seen.probabilities = attention.data();
      seen.query_positions = positions_;
      seen.positions = positions_;
      policy.Observe(seen, column_pointers_[h]);
    }
  }

  const GgufFile& file_;
  int layers_, n_, heads_, kv_heads_, dim_, window_;
  double ratio_ = 0;
  Budget budget_;
  std::vector<int32_t> positions_;
  std::vector<uint8_t> pinned_;
  std::vector<HeadInputs> head_inputs_;
  std::vector<float> norms_;
  std::vector<std::vector<std::vector<float>>> columns_;
  std::vector<std::vector<float*>> column_pointers_;
};

struct CoreResult {
  std::vector<LayerScores> fresh;   // as Score() gave them
  std::vector<LayerScores> ranked;  // as entries were chosen
  std::vector<KeptHeads> kept;
};

CoreResult Run(CoreCase& core, const std::string& recipe, int pinned = 0) {
  const std::shared_ptr<const Policy> policy = RecipeOf(recipe).policy;
  CoreResult out;
  for (int l = 0; l < core.layers(); ++l) {
    const LayerInputs inputs = core.Inputs(l, *policy, pinned);
    out.fresh.emplace_back();
    policy->Score(inputs, out.fresh.back());
    if (!policy->layer_local()) continue;
    out.kept.push_back(policy->Select(inputs, out.fresh.back(), core.budget()).value());
    out.ranked.push_back(policy->Rank(&inputs, {&out.fresh.back(), 1}, core.budget()).front());
  }
  if (policy->layer_local()) return out;
  out.kept = policy->SelectAll(out.fresh, core.budget()).value();
  out.ranked = policy->Rank(nullptr, out.fresh, core.budget());
  return out;
}

std::string Windowed(const GgufFile& file, const std::string& name) {
  return name + ":window=" + std::to_string(file.param("window")) + ",pool=" + std::to_string(file.param("kernel"));
}

// Entries that we protect, the window or the newest, have the reference's largest score instead.
void ExpectScoresBesideProtected(const std::vector<float>& ours, const std::vector<float>& theirs,
                                 const std::string& what) {
  ASSERT_EQ(ours.size(), theirs.size()) << what;
  std::vector<float> a, b;
  float largest = -kInfinity;
  for (size_t i = 0; i < ours.size(); ++i) {
    if (ours[i] == kInfinity) continue;
    a.push_back(ours[i]);
    b.push_back(theirs[i]);
    largest = std::max(largest, theirs[i]);
  }
  ExpectNumbers(a, b, what);
  for (size_t i = 0; i < ours.size(); ++i) {
    if (ours[i] != kInfinity) continue;
    EXPECT_GE(theirs[i], largest) << what << ", entry " << i;
  }
}

// Each head by itself where every head has the same budget, else the layer as one pool.
void ExpectLayerKept(const CoreCase& core, const KeptHeads& kept, const LayerScores& ranked,
                     const std::vector<int64_t>& theirs, bool pooled, const std::string& what) {
  const std::vector<int64_t> ours = MaskOf(kept, core.n());
  const std::vector<float> scores = Flatten(ranked.heads);
  if (pooled) return ExpectKept(ours, theirs, scores, what);
  for (size_t h = 0; h < kept.size(); ++h) {
    const auto first = static_cast<ptrdiff_t>(h * core.n());
    const auto last = first + static_cast<ptrdiff_t>(core.n());
    ExpectKept({ours.begin() + first, ours.begin() + last}, {theirs.begin() + first, theirs.begin() + last},
               {scores.begin() + first, scores.begin() + last}, what + ", head " + std::to_string(h));
  }
}

void ExpectAllKept(const GgufFile& file, const CoreCase& core, const CoreResult& result, const std::string& method,
                   bool pooled = false) {
  for (int l = 0; l < core.layers(); ++l) {
    const auto i = static_cast<size_t>(l);
    ExpectLayerKept(core, result.kept[i], result.ranked[i], file.tensor(core.name(method, l, "kept")).i64, pooled,
                    core.name(method, l, "kept"));
  }
}

void ExpectAllScores(const GgufFile& file, const CoreCase& core, const CoreResult& result, const std::string& method) {
  for (int l = 0; l < core.layers(); ++l) {
    const std::string name = core.name(method, l, "score");
    ExpectScoresBesideProtected(Flatten(result.ranked[static_cast<size_t>(l)].heads), file.tensor(name).f32, name);
  }
}

void CheckUniform(const GgufFile& file, const std::string& method, const std::string& recipe) {
  CoreCase core(file);
  const CoreResult result = Run(core, recipe);
  ExpectAllScores(file, core, result, method);
  ExpectAllKept(file, core, result, method);
}

PITH_GOLDEN_TEST(Core, knorm, "in/l0/attn_window") { CheckUniform(file, "knorm", "knorm"); }
PITH_GOLDEN_TEST(Core, keydiff, "in/l0/attn_window") { CheckUniform(file, "keydiff", "keydiff"); }
PITH_GOLDEN_TEST(Core, tova, "in/l0/attn_window") { CheckUniform(file, "tova", "tova"); }
PITH_GOLDEN_TEST(Core, observed, "in/l0/attn_window") { CheckUniform(file, "observed", "observed"); }
PITH_GOLDEN_TEST(Core, snapkv, "in/l0/attn_window") { CheckUniform(file, "snapkv", Windowed(file, "snapkv")); }

PITH_GOLDEN_TEST(Core, streamingllm, "in/l0/attn_window") {
  CoreCase core(file);
  const int sinks = file.param("n_sink");
  // Pinned by the engine or ranked by the stage itself: the same.
  for (int pinned : {0, sinks}) {
    const CoreResult result = Run(core, "streamingllm:sinks=" + std::to_string(sinks), pinned);
    ExpectAllKept(file, core, result, "streamingllm");
    for (int l = 0; l < core.layers(); ++l) {  // the reference's score is what it keeps
      const std::vector<int64_t> mask = MaskOf(result.kept[static_cast<size_t>(l)], core.n());
      ExpectNumbers({mask.begin(), mask.end()}, file.tensor(core.name("streamingllm", l, "score")).f32, "score");
    }
  }
}

PITH_GOLDEN_TEST(Core, pyramidkv, "in/l0/attn_window") {
  CoreCase core(file);
  ExpectAllKept(file, core, Run(core, Windowed(file, "pyramidkv")), "pyramidkv");
}

PITH_GOLDEN_TEST(Core, adakv, "in/l0/attn_window") {
  CoreCase core(file);
  ExpectAllKept(file, core, Run(core, Windowed(file, "adakv")), "adakv", /*pooled=*/true);
}

PITH_GOLDEN_TEST(Core, criticalkv, "in/l0/attn_window") {
  CoreCase core(file);
  const CoreResult result = Run(core, Windowed(file, "criticalkv"));
  ExpectAllKept(file, core, result, "criticalkv");
  for (int l = 0; l < core.layers(); ++l) {
    const std::string name = core.name("criticalkv", l, "score");
    const std::vector<float>& theirs = file.tensor(name).f32;
    const std::vector<float> ours = Flatten(result.ranked[static_cast<size_t>(l)].heads);
    std::vector<float> a, b;
    for (size_t i = 0; i < ours.size(); ++i) {
      if (i % core.n() >= core.n() - core.window()) continue;  // protected apart
      a.push_back(std::min(ours[i], 1e30F));
      b.push_back(theirs[i]);
    }
    ExpectNumbers(a, b, name);
  }
}

PITH_GOLDEN_TEST(Core, ada_criticalkv, "in/l0/attn_window") {
  CoreCase core(file);
  const CoreResult result = Run(core, Windowed(file, "ada_criticalkv"));
  ExpectAllKept(file, core, result, "ada_criticalkv");
}

PITH_GOLDEN_TEST(Core, defensivekv, "in/l0/attn_window") {
  CoreCase core(file);
  const CoreResult result = Run(core, "defensivekv:pool=5,window=" + std::to_string(file.param("window")));
  ExpectAllScores(file, core, result, "defensivekv");
  ExpectAllKept(file, core, result, "defensivekv", /*pooled=*/true);
}

PITH_GOLDEN_TEST(Core, layer_defensivekv, "in/l0/attn_window") {
  CoreCase core(file);
  const CoreResult result = Run(core, "layer_defensivekv:pool=5,window=" + std::to_string(file.param("window")));
  std::vector<int64_t> ours, theirs;  // one pool over all layers
  std::vector<float> scores;
  for (int l = 0; l < core.layers(); ++l) {
    const auto i = static_cast<size_t>(l);
    const std::vector<int64_t> mask = MaskOf(result.kept[i], core.n());
    const std::vector<int64_t>& kept = file.tensor(core.name("layer_defensivekv", l, "kept")).i64;
    const std::vector<float> flat = Flatten(result.ranked[i].heads);
    ours.insert(ours.end(), mask.begin(), mask.end());
    theirs.insert(theirs.end(), kept.begin(), kept.end());
    scores.insert(scores.end(), flat.begin(), flat.end());
  }
  ExpectKept(ours, theirs, scores, "layer_defensivekv");
}

PITH_GOLDEN_TEST(Core, cake, "in/l0/attn_window") {
  CoreCase core(file);
  const CoreResult result = Run(core, "cake:pool=5,window=" + std::to_string(file.param("window")));
  std::vector<float> preference;
  std::vector<int64_t> budgets;
  for (int l = 0; l < core.layers(); ++l) {
    const auto i = static_cast<size_t>(l);
    preference.push_back(static_cast<float>(result.fresh[i].notes.back().numbers.front()));
    budgets.push_back(static_cast<int64_t>(result.kept[i].front().size()) - static_cast<int64_t>(core.window()));
    std::vector<float> before_window;
    for (const auto& head : result.fresh[i].heads) {
      before_window.insert(before_window.end(), head.begin(), head.end() - static_cast<ptrdiff_t>(core.window()));
    }
    ExpectNumbers(before_window, file.tensor(core.name("cake", l, "score")).f32, core.name("cake", l, "score"));
  }
  ExpectNumbers(preference, file.tensor("out/cake/pref").f32, "out/cake/pref");
  // A layer that holds no more than n - w entries beside its window cannot show a larger budget.
  std::vector<int64_t> theirs = file.tensor("out/cake/budgets").i64;
  for (int64_t& b : theirs) b = std::min(b, static_cast<int64_t>(core.n() - core.window()));
  ExpectExactly(budgets, theirs, "out/cake/budgets");
  ExpectAllKept(file, core, result, "cake");
}

}  // namespace
}  // namespace pith::testing
