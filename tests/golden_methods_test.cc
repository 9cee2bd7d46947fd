// R-KV, GraphKV and DBudgetKV, and what of the folder nobody checks.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <numeric>

#include "policy/policy.h"
#include "policy/registry.h"
#include "tests/support/golden.h"

namespace pith::testing {
namespace {

std::vector<int32_t> Iota(size_t n) {
  std::vector<int32_t> values(n);
  std::iota(values.begin(), values.end(), 0);
  return values;
}

// A parameter that was stored as float32, as text that reads back to it.
std::string Text(double number) { return fmt::format("{:.9g}", number); }

PITH_GOLDEN_TEST(Methods, rkv, "in/q_window") {
  const std::string recipe = fmt::format("rkv:window={},pool={},lambda={}", file.param("window"), file.param("kernel"),
                                         Text(file.number("pith.param.mix_lambda")));
  const std::shared_ptr<const Policy> policy = RecipeOf(recipe).policy;
  const auto n = static_cast<size_t>(file.param("n"));
  const auto dim = static_cast<size_t>(file.param("head_dim"));
  const auto window = static_cast<size_t>(file.param("window"));
  const size_t group = static_cast<size_t>(file.param("heads") / file.param("kv_heads"));
  const std::vector<int32_t> positions = Iota(n);
  std::vector<HeadInputs> heads(static_cast<size_t>(file.param("kv_heads")));
  for (size_t h = 0; h < heads.size(); ++h) {
    heads[h].num_entries = static_cast<int>(n);
    heads[h].positions = positions;
    heads[h].keys = file.tensor("in/k").f32.data() + h * n * dim;
    heads[h].window_queries = file.tensor("in/q_window").f32.data() + h * group * window * dim;
  }
  LayerInputs inputs;
  inputs.num_layers = 1;
  inputs.group = static_cast<int>(group);
  inputs.key_dim = static_cast<int>(dim);
  inputs.window = static_cast<int>(window);
  inputs.heads = heads;
  LayerScores scores;
  policy->Score(inputs, scores);
  std::vector<float> before_window;
  for (const auto& head : scores.heads) {
    before_window.insert(before_window.end(), head.begin(), head.end() - static_cast<ptrdiff_t>(window));
  }
  ExpectNumbers(before_window, file.tensor("out/rkv/score").f32, "out/rkv/score");
  Budget budget;
  budget.keep = file.param("budget");
  const std::vector<int64_t> ours = MaskOf(policy->Select(inputs, scores, budget).value(), n);
  const std::vector<int64_t>& theirs = file.tensor("out/rkv/kept").i64;
  for (size_t h = 0; h < heads.size(); ++h) {
    const auto first = static_cast<ptrdiff_t>(h * n);
    const auto last = first + static_cast<ptrdiff_t>(n);
    ExpectKept({ours.begin() + first, ours.begin() + last}, {theirs.begin() + first, theirs.begin() + last},
               scores.heads[h], "out/rkv/kept");
  }
}

// The modifier alone, over the file's host scores.
void CheckGraphKv(const GgufFile& file, const std::string& method) {
  Params params(FindStage(StageKind::kModify, "graphkv")->params);
  const auto set = [&](const char* name, const std::string& text) {
    ASSERT_TRUE(params.Set("graphkv", name, text).has_value()) << name << "=" << text;
  };
  set("sources", std::to_string(file.param("sources")));
  set("neighbours", std::to_string(file.param("neighbours")));
  set("rounds", std::to_string(file.param("rounds")));
  set("gamma", Text(file.number("pith.param.gamma")));
  if (method == "graphkv_literal") set("form", "literal");
  if (method == "graphkv_reselect") set("reselect", "1");
  const std::unique_ptr<Modifier> modifier = MakeModifier("graphkv", params);

  const auto n = static_cast<size_t>(file.param("n"));
  const auto dim = static_cast<size_t>(file.param("head_dim"));
  const auto sinks = static_cast<size_t>(file.param("n_sink"));
  const auto window = static_cast<size_t>(file.param("window"));
  const int budget = file.param("budget") + static_cast<int>(sinks + window);
  LayerScores layer;
  std::vector<HeadInputs> heads(static_cast<size_t>(file.param("kv_heads")));
  for (size_t h = 0; h < heads.size(); ++h) {
    const auto first = file.tensor("in/score").f32.begin() + static_cast<ptrdiff_t>(h * n);
    layer.heads.emplace_back(first, first + static_cast<ptrdiff_t>(n));
    layer.pinned.emplace_back(n, 0);
    std::fill_n(layer.pinned.back().begin(), sinks, uint8_t{1});
    std::fill_n(layer.pinned.back().rbegin(), window, uint8_t{1});
    heads[h].num_entries = static_cast<int>(n);
    heads[h].keys = file.tensor("in/k").f32.data() + h * n * dim;
  }
  const auto kept = [&](const LayerScores& scores) {
    KeptHeads all;
    for (size_t h = 0; h < heads.size(); ++h) {
      std::vector<std::pair<float, int32_t>> order;
      std::vector<int32_t> stay;
      for (size_t i = 0; i < n; ++i) {
        if (scores.pinned[h][i] != 0)
          stay.push_back(static_cast<int32_t>(i));
        else
          order.emplace_back(-scores.heads[h][i], static_cast<int32_t>(i));
      }
      std::sort(order.begin(), order.end());
      for (size_t i = 0; i < static_cast<size_t>(file.param("budget")); ++i) stay.push_back(order[i].second);
      std::sort(stay.begin(), stay.end());
      all.push_back(std::move(stay));
    }
    return MaskOf(all, n);
  };
  ExpectExactly(kept(layer), file.tensor("out/host/kept").i64, "out/host/kept");
  const LayerScores before = layer;
  for (size_t h = 0; h < heads.size(); ++h) {
    std::vector<float> ties;
    HeadRank rank{static_cast<int>(h), {budget, 0}, &before, &heads[h], static_cast<int>(dim), layer.heads[h], &ties};
    modifier->Rerank(rank);
  }
  const std::string out = "out/" + method + "/";
  ExpectNumbers(Flatten(layer.heads), file.tensor(out + "score").f32, out + "score");
  ExpectExactly(kept(layer), file.tensor(out + "kept").i64, out + "kept");
}

PITH_GOLDEN_TEST(Methods, graphkv, "in/score") { CheckGraphKv(file, "graphkv"); }
PITH_GOLDEN_TEST(Methods, graphkv_literal, "in/score") { CheckGraphKv(file, "graphkv_literal"); }
PITH_GOLDEN_TEST(Methods, graphkv_reselect, "in/score") { CheckGraphKv(file, "graphkv_reselect"); }

void CheckDBudget(const GgufFile& file, const std::string& method, const std::string& form) {
  const std::string recipe = fmt::format("dbudgetkv:form={},threshold={},sinks={},rows={},skip={},floor=0", form,
                                         Text(file.number("pith.param.threshold")), file.param("n_sink"),
                                         file.param("rows"), file.param("skip"));
  const std::shared_ptr<const Policy> policy = RecipeOf(recipe).policy;
  const auto n = static_cast<size_t>(file.param("n"));
  const auto dim = static_cast<size_t>(file.param("head_dim"));
  const auto rows = static_cast<size_t>(file.param("rows"));
  const size_t group = static_cast<size_t>(file.param("heads") / file.param("kv_heads"));
  const std::vector<int32_t> positions = Iota(n);
  const std::vector<int32_t> queries(positions.end() - static_cast<ptrdiff_t>(rows), positions.end());
  for (int l = 0; l < file.param("layers"); ++l) {
    const std::string in = fmt::format("in/l{}/", l);
    const std::string out = fmt::format("out/{}/l{}/", method, l);
    std::vector<HeadInputs> heads(static_cast<size_t>(file.param("kv_heads")));
    std::vector<std::vector<float>> probs(heads.size());
    for (size_t h = 0; h < heads.size(); ++h) {
      const float* keys = file.tensor(in + "k").f32.data() + h * n * dim;
      probs[h] = Attention(file.tensor(in + "q_last").f32.data() + h * group * rows * dim, rows * dim,
                           static_cast<int>(group), queries, keys, positions, static_cast<int>(dim));
      heads[h].num_entries = static_cast<int>(n);
      heads[h].positions = positions;
      heads[h].window_probs = probs[h].data();
    }
    if (rows == 1) {
      std::vector<float> attention;
      for (const auto& head : probs) attention.insert(attention.end(), head.begin(), head.end());
      ExpectNumbers(attention, file.tensor(in + "attn").f32, in + "attn");
    }
    LayerInputs inputs;
    inputs.layer = l;
    inputs.num_layers = file.param("layers");
    inputs.group = static_cast<int>(group);
    inputs.window = static_cast<int>(rows);
    inputs.heads = heads;
    LayerScores scores;
    policy->Score(inputs, scores);
    Budget budget;
    budget.keep = static_cast<int>(n);
    const KeptHeads kept = policy->Select(inputs, scores, budget).value();
    ExpectExactly(MaskOf(kept, n), file.tensor(out + "kept").i64, out + "kept");
    if (method == "dbudgetkv_paper" || l < file.param("skip")) continue;
    const auto first = static_cast<int64_t>(n) - (static_cast<int64_t>(kept.front().size()) - file.param("n_sink"));
    ExpectExactly({first}, file.tensor(out + "first").i64, out + "first");
  }
}

PITH_GOLDEN_TEST(Methods, dbudgetkv, "in/l0/q_last") { CheckDBudget(file, "dbudgetkv", "code"); }
PITH_GOLDEN_TEST(Methods, dbudgetkv_paper, "in/l0/q_last") { CheckDBudget(file, "dbudgetkv_paper", "paper"); }

TEST(GoldenFolder, EveryFileCanBeRead) {
  ASSERT_FALSE(GoldenPaths().empty()) << GoldenFolder() << " holds no .gguf";
  for (const std::string& path : GoldenPaths()) {
    const Result<GgufFile> file = GgufFile::Load(path);
    ASSERT_TRUE(file.has_value()) << file.error().message;
    EXPECT_FALSE(file->texts("pith.methods").empty()) << path;
  }
}

TEST(GoldenFolder, SaysWhatNobodyChecks) {
  std::map<std::string, std::vector<std::string>> unknown;
  for (const GgufFile& file : GoldenFiles()) {
    for (const std::string& method : file.texts("pith.methods")) {
      if (CheckedMethods().count(method) == 0) unknown[method].push_back(file.path());
    }
  }
  if (unknown.empty()) return;
  std::string list;
  for (const auto& [method, files] : unknown) {
    fmt::print("skipped: {} ({} files)\n", method, files.size());
    list += (list.empty() ? "" : ", ") + method;
  }
  GTEST_SKIP() << unknown.size() << " methods without a test: " << list;
}

}  // namespace
}  // namespace pith::testing
