// Eviction while decoding, step by step, against the authors' code: a simulator of one layer computes
// attention in float32 and asks the policy as the engine does.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>

#include "policy/policy.h"
#include "policy/score/observe.h"
#include "tests/support/golden.h"

namespace pith::testing {
namespace {

struct Plan {
  std::string recipe;
  int budget = 0;             // entries that compete
  bool prompt_stays = false;  // pinned, beside the budget
  bool cut_prompt = false;    // at its end, where it is longer than the budget
  int every = 1;              // evict at steps t = p - n0 + 1 that this divides
};

// One layer, decoding over fixed queries, keys and values.
class Simulator {
 public:
  Simulator(const GgufFile& file, const Plan& plan)
      : file_(file),
        plan_(plan),
        policy_(RecipeOf(plan.recipe).policy),
        n0_(file.param("n0")),
        total_(n0_ + file.param("steps")),
        group_(file.param("heads") / file.param("kv_heads")),
        dim_(file.param("head_dim")),
        heads_(static_cast<size_t>(file.param("kv_heads"))) {
    for (Head& head : heads_) head.columns.resize(policy_->columns().size());
  }

  struct Head {
    std::vector<int32_t> positions;
    std::vector<std::vector<float>> columns;
    std::vector<float> keys, values;
    std::vector<float> probs;  // [group, 1, n] of the newest query
    std::vector<uint8_t> pinned;
    std::vector<float*> pointers;
  };

  // after(p, evicted positions per head) after each step, and after a prompt cut with p = n0 - 1.
  template <typename After>
  void Run(After after) {
    for (int p = 0; p < n0_; ++p) Append(p);
    ObservePrompt();
    if (plan_.cut_prompt && n0_ > plan_.budget) after(n0_ - 1, Evict());
    for (int p = n0_; p < total_; ++p) {
      Append(p);
      Attend(p);
      const int most = plan_.budget + (plan_.prompt_stays ? n0_ : 0);
      const bool over = static_cast<int>(heads_.front().positions.size()) > most;
      after(p, over && (p - n0_ + 1) % plan_.every == 0 ? Evict() : Nothing());
    }
  }

  // Up to the first decode step, for one-shot scores.
  LayerScores ScoreFirst() {
    for (int p = 0; p <= n0_; ++p) Append(p);
    Attend(n0_);
    return Score();
  }

  LayerScores Score() {
    LayerScores scores;
    policy_->Score(Inputs(), scores);
    return scores;
  }

  std::vector<std::vector<int32_t>> Evict() {
    Budget budget;
    budget.keep = plan_.budget + (plan_.prompt_stays ? n0_ : 0);
    LayerScores scores = Score();
    const KeptHeads kept = policy_->Select(Inputs(), scores, budget).value();
    std::vector<std::vector<int32_t>> evicted(heads_.size());
    for (size_t h = 0; h < heads_.size(); ++h) {
      std::vector<int32_t> gone;
      std::set_difference(heads_[h].positions.begin(), heads_[h].positions.end(), Positions(h, kept[h]).begin(),
                          Positions(h, kept[h]).end(), std::back_inserter(gone));
      evicted[h] = std::move(gone);
      Compact(heads_[h], kept[h]);
    }
    return evicted;
  }

  const Head& head(size_t h) const { return heads_[h]; }
  size_t num_heads() const { return heads_.size(); }
  size_t total() const { return static_cast<size_t>(total_); }
  int n0() const { return n0_; }

  // [kv heads, N], 1 = present
  std::vector<int64_t> Mask() const {
    std::vector<int64_t> mask(heads_.size() * total(), 0);
    for (size_t h = 0; h < heads_.size(); ++h) {
      for (int32_t p : heads_[h].positions) mask[h * total() + static_cast<size_t>(p)] = 1;
    }
    return mask;
  }

  // [kv heads, N]: value(head, index), -1 for entries that are gone, or of the prompt if it stays.
  template <typename Value>
  std::vector<float> ByPosition(Value value) const {
    std::vector<float> out(heads_.size() * total(), -1.0F);
    for (size_t h = 0; h < heads_.size(); ++h) {
      for (size_t i = 0; i < heads_[h].positions.size(); ++i) {
        if (plan_.prompt_stays && heads_[h].positions[i] < n0_) continue;
        out[h * total() + static_cast<size_t>(heads_[h].positions[i])] = value(h, i);
      }
    }
    return out;
  }

 private:
  std::vector<int32_t>& Positions(size_t h, const std::vector<int32_t>& indices) {
    scratch_.clear();
    for (int32_t i : indices) scratch_.push_back(heads_[h].positions[static_cast<size_t>(i)]);
    return scratch_;
  }

  std::vector<std::vector<int32_t>> Nothing() const { return std::vector<std::vector<int32_t>>(heads_.size()); }

  void Append(int p) {
    const auto dim = static_cast<size_t>(dim_);
    const std::vector<ColumnSpec> specs = policy_->columns();
    for (size_t h = 0; h < heads_.size(); ++h) {
      Head& head = heads_[h];
      const size_t at = (h * total() + static_cast<size_t>(p)) * dim;
      const float* key = file_.tensor("in/k").f32.data() + at;
      const float* value = file_.tensor("in/v").f32.data() + at;
      head.positions.push_back(p);
      head.keys.insert(head.keys.end(), key, key + dim);
      head.values.insert(head.values.end(), value, value + dim);
      head.pinned.push_back(plan_.prompt_stays && p < n0_ ? 1 : 0);
      for (size_t c = 0; c < specs.size(); ++c) head.columns[c].push_back(specs[c].initial);
    }
  }

  const float* Query(size_t h, int p) const {
    return file_.tensor("in/q").f32.data() +
           (h * static_cast<size_t>(group_) * total() + static_cast<size_t>(p)) * static_cast<size_t>(dim_);
  }

  void Attend(int p) {
    const std::vector<int32_t> query = {p};
    for (size_t h = 0; h < heads_.size(); ++h) {
      heads_[h].probs = Attention(Query(h, p), total() * static_cast<size_t>(dim_), group_, query,
                                  heads_[h].keys.data(), heads_[h].positions, dim_);
      Observe(h, query, heads_[h].probs);
    }
  }

  void ObservePrompt() {
    std::vector<int32_t> queries(static_cast<size_t>(n0_));
    std::iota(queries.begin(), queries.end(), 0);
    const auto n = static_cast<size_t>(n0_);
    for (size_t h = 0; h < heads_.size(); ++h) {
      Head& head = heads_[h];
      const std::vector<float> all = Attention(Query(h, 0), total() * static_cast<size_t>(dim_), group_, queries,
                                               head.keys.data(), head.positions, dim_);
      Observe(h, queries, all);
      head.probs.clear();
      for (size_t g = 0; g < static_cast<size_t>(group_); ++g) {
        const auto row = all.begin() + static_cast<ptrdiff_t>((g * n + n - 1) * n);
        head.probs.insert(head.probs.end(), row, row + static_cast<ptrdiff_t>(n));
      }
    }
  }

  void Observe(size_t h, const std::vector<int32_t>& queries, const std::vector<float>& probs) {
    if ((policy_->needs() & kNeedEveryQuery) == 0) return;
    Head& head = heads_[h];
    Observation seen;
    seen.kv_head = static_cast<int>(h);
    seen.group = group_;
    seen.num_queries = static_cast<int>(queries.size());
    seen.num_entries = static_cast<int>(head.positions.size());
    seen.probabilities = probs.data();
    seen.query_positions = queries;
    seen.positions = head.positions;
    policy_->Observe(seen, Pointers(head));
  }

  static std::span<float* const> Pointers(Head& head) {
    head.pointers.clear();
    for (auto& column : head.columns) head.pointers.push_back(column.data());
    return head.pointers;
  }

  LayerInputs Inputs() {
    inputs_.assign(heads_.size(), {});
    for (size_t h = 0; h < heads_.size(); ++h) {
      Head& head = heads_[h];
      inputs_[h].num_entries = static_cast<int>(head.positions.size());
      inputs_[h].positions = head.positions;
      if (plan_.prompt_stays) inputs_[h].pinned = head.pinned;
      inputs_[h].keys = head.keys.data();
      inputs_[h].values = head.values.data();
      inputs_[h].window_probs = head.probs.data();
      inputs_[h].columns = Pointers(head);
    }
    LayerInputs layer;
    layer.num_layers = 1;
    layer.group = group_;
    layer.key_dim = dim_;
    layer.value_dim = dim_;
    layer.window = 1;
    layer.next_position = heads_.front().positions.back() + 1;
    layer.heads = inputs_;
    return layer;
  }

  void Compact(Head& head, const std::vector<int32_t>& kept) {
    const auto dim = static_cast<size_t>(dim_);
    size_t to = 0;
    const size_t n = head.positions.size();
    for (int32_t index : kept) {
      const auto from = static_cast<size_t>(index);
      head.positions[to] = head.positions[from];
      head.pinned[to] = head.pinned[from];
      for (auto& column : head.columns) column[to] = column[from];
      for (size_t g = 0; g < static_cast<size_t>(group_); ++g) {
        head.probs[g * n + to] = head.probs[g * n + from];
      }
      std::copy_n(head.keys.begin() + static_cast<ptrdiff_t>(from * dim), dim,
                  head.keys.begin() + static_cast<ptrdiff_t>(to * dim));
      std::copy_n(head.values.begin() + static_cast<ptrdiff_t>(from * dim), dim,
                  head.values.begin() + static_cast<ptrdiff_t>(to * dim));
      ++to;
    }
    std::vector<float> probs;
    for (size_t g = 0; g < static_cast<size_t>(group_); ++g) {
      probs.insert(probs.end(), head.probs.begin() + static_cast<ptrdiff_t>(g * n),
                   head.probs.begin() + static_cast<ptrdiff_t>(g * n + to));
    }
    head.probs = std::move(probs);
    head.positions.resize(to);
    head.pinned.resize(to);
    head.keys.resize(to * dim);
    head.values.resize(to * dim);
    for (auto& column : head.columns) column.resize(to);
  }

  const GgufFile& file_;
  Plan plan_;
  std::shared_ptr<const Policy> policy_;
  int n0_;
  int total_;
  int group_;
  int dim_;
  std::vector<Head> heads_;
  std::vector<HeadInputs> inputs_;
  std::vector<int32_t> scratch_;
};

// Runs the plan and compares every decision with out/{method}.
Simulator RunAndCompare(const GgufFile& file, const std::string& method, const Plan& plan) {
  const std::string out = "out/" + method + "/";
  Simulator sim(file, plan);
  std::vector<int64_t> evicted;
  sim.Run([&](int p, const std::vector<std::vector<int32_t>>& gone) {
    const std::string after = out + "kept_after/" + std::to_string(p);
    bool any = false;
    for (const auto& head : gone) any |= !head.empty();
    if (p < sim.n0() || file.has(after)) {
      EXPECT_EQ(any, file.has(after)) << after;
      if (file.has(after)) ExpectExactly(sim.Mask(), file.tensor(after).i64, after);
    }
    if (p < sim.n0()) return;
    if (plan.every > 1) {  // several at once: no row per step, kept_after for each eviction
      EXPECT_EQ(any, file.has(after)) << after;
      return;
    }
    for (const auto& head : gone) {
      EXPECT_LE(head.size(), 1U);
      evicted.push_back(head.empty() ? -1 : head.front());
    }
  });
  if (file.has(out + "evicted")) ExpectExactly(evicted, file.tensor(out + "evicted").i64, out + "evicted");
  ExpectExactly(sim.Mask(), file.tensor(out + "kept").i64, out + "kept");
  return sim;
}

template <typename Value>
void CompareEntries(const GgufFile& file, const Simulator& sim, Value value, const std::string& name) {
  const std::vector<float> ours = sim.ByPosition(value);
  const GgufTensor& theirs = file.tensor(name);
  if (!theirs.f32.empty()) return ExpectNumbers(ours, theirs.f32, name);
  ExpectExactly({ours.begin(), ours.end()}, theirs.i64, name);
}

void CompareColumn(const GgufFile& file, const Simulator& sim, size_t column, const std::string& name) {
  CompareEntries(file, sim, [&](size_t h, size_t i) { return sim.head(h).columns[column][i]; }, name);
}

void CheckH2o(const GgufFile& file, const std::string& method, const Plan& plan) {
  const Simulator sim = RunAndCompare(file, method, plan);
  CompareColumn(file, sim, 0, "out/" + method + "/score");
}

PITH_GOLDEN_TEST(Decode, h2o, "in/q") { CheckH2o(file, "h2o", {"h2o:recent=0.3", file.param("budget_gen"), true}); }
PITH_GOLDEN_TEST(Decode, h2o_all, "in/q") { CheckH2o(file, "h2o_all", {"h2o:recent=0.3", file.param("budget_all")}); }
PITH_GOLDEN_TEST(Decode, h2o_fm, "in/q") {
  // The recipe has a share, of which it takes int(share * budget).
  const int budget = file.param("budget"), recent = file.param("recent");
  const double share = std::min(1.0, (recent + 0.5) / budget);
  ASSERT_EQ(static_cast<int>(share * budget), recent);
  CheckH2o(file, "h2o_fm", {fmt::format("h2o:recent={:.9f}", share), budget, false, true});
}

void CheckRoco(const GgufFile& file, const std::string& method, const Plan& plan) {
  Simulator sim = RunAndCompare(file, method, plan);
  const std::string out = "out/" + method + "/";
  const LayerScores scores = sim.Score();
  ExpectNumbers(sim.ByPosition([&](size_t h, size_t i) { return scores.heads[h][i]; }), file.tensor(out + "mean").f32,
                out + "mean");
  ExpectNumbers(sim.ByPosition([&](size_t h, size_t i) { return scores.notes.front().column[h][i]; }),
                file.tensor(out + "std").f32, out + "std", {1e-6, 1e-3});
  CompareEntries(file, sim, [&](size_t h, size_t i) {
    const std::vector<int32_t>& positions = sim.head(h).positions;
    LayerInputs now;
    now.next_position = positions.back() + 1;
    return static_cast<float>(QueriesThatSaw(now, positions[i]));
  }, out + "count");
}

PITH_GOLDEN_TEST(Decode, roco, "in/q") { CheckRoco(file, "roco", {"roco", file.param("budget_gen"), true}); }
PITH_GOLDEN_TEST(Decode, roco_all, "in/q") { CheckRoco(file, "roco_all", {"roco", file.param("budget_all")}); }

TEST(GoldenDecode, tova) {
  ForEachGolden("tova", "in/q", [](const GgufFile& file) {
    const Simulator sim = RunAndCompare(file, "tova", {"tova:scope=head", file.param("budget_gen"), true});
    // The newest query's weights, mean over the group.
    ExpectNumbers(sim.ByPosition([&](size_t h, size_t i) {
      const Simulator::Head& head = sim.head(h);
      const size_t n = head.positions.size();
      float sum = 0;
      for (size_t at = i; at < head.probs.size(); at += n) sum += head.probs[at];
      return sum / static_cast<float>(head.probs.size() / n);
    }),
                  file.tensor("out/tova/score").f32, "out/tova/score");
  });
}

PITH_GOLDEN_TEST(Decode, tova_layer, "in/q") {
  RunAndCompare(file, "tova_layer", {"tova", file.param("budget"), false, true});
}

PITH_GOLDEN_TEST(Decode, lazyeviction, "in/q") {
  char alpha[32];
  std::snprintf(alpha, sizeof(alpha), "%.9g", file.number("pith.param.lazy_alpha"));
  const int window = file.param("lazy_window");
  const std::string recipe = "lazyeviction:alpha=" + std::string(alpha) + ",window=" + std::to_string(window);
  const Simulator sim = RunAndCompare(file, "lazyeviction", {recipe, file.param("lazy_budget"), false, false, window});
  // We count in positions: t = p - n0 + 1.
  const auto shift = static_cast<float>(sim.n0() - 1);
  const std::vector<float> last = sim.ByPosition([&](size_t h, size_t i) { return sim.head(h).columns[0][i] - shift; });
  ExpectExactly({last.begin(), last.end()}, file.tensor("out/lazyeviction/last").i64, "last");
  CompareColumn(file, sim, 1, "out/lazyeviction/mri");
}

PITH_GOLDEN_TEST(Decode, caote, "in/q") {
  Simulator sim(file, {"caote", file.param("n0")});
  const LayerScores scores = sim.ScoreFirst();
  ExpectNumbers(Flatten(scores.heads), file.tensor("out/caote/score").f32, "out/caote/score");
  std::vector<float> attention;
  for (size_t h = 0; h < sim.num_heads(); ++h) {
    attention.insert(attention.end(), sim.head(h).probs.begin(), sim.head(h).probs.end());
  }
  ExpectNumbers(attention, file.tensor("out/attn_first").f32, "out/attn_first");
  std::vector<int64_t> evicted;
  for (const auto& head : sim.Evict()) {
    ASSERT_EQ(head.size(), 1U);
    evicted.push_back(head.front());
  }
  ExpectExactly(evicted, file.tensor("out/caote/evicted").i64, "out/caote/evicted");
}

}  // namespace
}  // namespace pith::testing
