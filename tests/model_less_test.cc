// act=less on the default model: what recipes drop goes on contributing to attention.
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "engine/less_states.h"
#include "kernels/feature_maps.h"
#include "tests/support/default_engine.h"
#include "tests/support/random_maps.h"

namespace pith {
namespace {

using testing::CompressedAfter;
using testing::DefaultModel;
using testing::ExpectRestored;
using testing::Follow;
using testing::LedgerTokens;
using testing::MakeDefaultEngine;
using testing::Tokenize;

constexpr size_t kDim = 64;
constexpr int kRank = 8;

class ModelLess : public ::testing::Test {
 protected:
  void SetUp() override {
    maps_ = testing::RandomMaps(DefaultModel()->info(), kRank, 32, 3000, 1);
    file_ = testing::WriteMaps(*maps_, fmt::format("pith_less_{}.gguf", getpid()));
    none_ = testing::WriteMaps(*testing::RandomMaps(DefaultModel()->info(), kRank, 32, 0, 1),
                               fmt::format("pith_no_less_{}.gguf", getpid()));
  }
  void TearDown() override {
    std::remove(file_.c_str());
    std::remove(none_.c_str());
  }

  std::shared_ptr<const LessMaps> maps_;
  std::string file_, none_;
};

// Sizes of what attention gives one query head, and how far it is from what the formulas say.
struct Errors {
  double size = 0, with = 0, without = 0;
};

// rows [n, D] of one kv head of the whole text; kept: those that are left.
Errors ErrorsOf(const LessMaps& maps, int layer, int head, int group, const LayerQueries& queries, size_t t,
                std::span<const float> keys, std::span<const float> values, const std::vector<int32_t>& kept,
                std::span<const float> output) {
  const size_t n = keys.size() / kDim, h = static_cast<size_t>(head);
  const float* query = queries.rows.data() + (t * static_cast<size_t>(queries.num_heads) + h) * kDim;
  std::vector<double> sum(kDim, 0), psi(kRank), phi(kRank), gone(kDim, 0);
  kernels::FeaturesReference(maps.QueryMap(layer, head), query, phi.data());
  double mass = 0, own = 0, most = -1e300;
  std::vector<double> logits(n);
  for (size_t j = 0; j < n; ++j) {
    for (size_t d = 0; d < kDim; ++d)
      logits[j] += static_cast<double>(query[d]) * static_cast<double>(keys[j * kDim + d]);
    logits[j] *= static_cast<double>(queries.scale);
    most = std::max(most, logits[j]);
  }
  for (size_t j = 0; j < n; ++j) {
    if (std::ranges::binary_search(kept, static_cast<int32_t>(j))) {
      const double weight = std::exp(logits[j] - most);
      mass += weight;
      for (size_t c = 0; c < kDim; ++c) sum[c] += weight * static_cast<double>(values[j * kDim + c]);
      continue;
    }
    kernels::FeaturesReference(maps.KeyMap(layer, head / group), keys.data() + j * kDim, psi.data());
    double weight = 0;
    for (size_t r = 0; r < kRank; ++r) weight += phi[r] * psi[r] * std::exp(-most);
    own += weight;
    for (size_t c = 0; c < kDim; ++c) gone[c] += weight * static_cast<double>(values[j * kDim + c]);
  }
  Errors errors;
  for (size_t c = 0; c < kDim; ++c) {
    const auto ours = static_cast<double>(output[c]);
    errors.size = std::max(errors.size, std::abs(ours));
    errors.with = std::max(errors.with, std::abs(ours - (sum[c] + gone[c]) / (mass + own)));
    errors.without = std::max(errors.without, std::abs(ours - sum[c] / mass));
  }
  return errors;
}

TEST_F(ModelLess, AttentionAddsWhatIsGoneByTheFormulas) {
  const std::vector<int32_t> context = LedgerTokens(300);
  EngineOptions options =
      CompressedAfter({"snapkv:window=16 act=less:" + file_, "keydiff alloc=ada act=less:" + file_});
  constexpr int kQueries = 3;
  options.keep_queries = kQueries;
  auto engine = MakeDefaultEngine(options);
  const SequenceId base = *engine->NewSequence();
  ASSERT_TRUE(engine->Prefill(base, context));
  for (const Recipe& recipe : options.later_recipes) {
    SCOPED_TRACE(recipe.text);
    const SequenceId fork = *engine->Fork(base);
    const CompressTarget target{fork, 0.3};
    const auto compressed = engine->CompressForks(base, recipe, {&target, 1});
    ASSERT_TRUE(compressed) << compressed.error().message;
    EXPECT_LE(engine->KeptBytes(fork), 0.3);
    EXPECT_GT(engine->KeptBytes(fork), 0.29);
    int seen = 0;
    for (const auto& [layer, head] : {std::pair(0, 0), std::pair(13, 4), std::pair(29, 8)}) {
      const int group = 3, kv_head = head / group;
      const LayerQueries queries = engine->Queries(base, layer, kQueries);
      ASSERT_EQ(queries.num_heads, 9);
      ASSERT_EQ(queries.rows.size(), kQueries * 9 * kDim);
      const std::vector<float> keys = engine->EntryRows(base, layer, false),
                               values = engine->EntryRows(base, layer, true);
      const auto outputs = engine->AttentionOutputs(base, fork, layer, kQueries);
      ASSERT_TRUE(outputs) << outputs.error().message;
      const size_t rows = context.size() * kDim, first = static_cast<size_t>(kv_head) * rows;
      for (size_t t = 0; t < kQueries; ++t) {
        const Errors errors =
            ErrorsOf(*maps_, layer, head, group, queries, t, std::span(keys).subspan(first, rows),
                     std::span(values).subspan(first, rows), engine->EntryPositions(fork, layer, kv_head),
                     std::span(*outputs).subspan((t * 9 + static_cast<size_t>(head)) * kDim, kDim));
        EXPECT_LT(errors.with, 1e-3 * errors.size) << layer << ' ' << head;
        seen += errors.without > 1e-2 * errors.size;
      }
    }
    EXPECT_GT(seen, 4) << "control: what is gone must count";
    engine->Free(fork);
  }
}

// Features that are 0 leave what dropping leaves, to the bit; others do not.
TEST_F(ModelLess, NoFeaturesAreDropping) {
  const std::vector<int32_t> context = LedgerTokens(300), tail = Tokenize("In chapter 7 the garden");
  const double states = StateEntries(DefaultModel()->info(), *maps_) / static_cast<double>(context.size());
  EXPECT_NEAR(states * 300, 8.125, 1e-9);  // 8 x 65 numbers of 4 bytes, of entries of 256
  std::vector<std::vector<float>> logits;
  for (const std::string& text :
       {std::string("snapkv:window=16"), "snapkv:window=16 act=less:" + none_, "snapkv:window=16 act=less:" + file_}) {
    const EngineOptions options = CompressedAfter({text});
    auto engine = MakeDefaultEngine(options);
    const SequenceId sequence = *engine->NewSequence();
    ASSERT_TRUE(engine->Prefill(sequence, context));
    const double keep = logits.empty() ? 0.3 - states : 0.3;
    ASSERT_TRUE(engine->Compress(sequence, options.later_recipes[0], keep));
    logits.push_back(Follow(*engine, sequence, tail));
    for (const float x : logits.back()) ASSERT_TRUE(std::isfinite(x));
  }
  EXPECT_EQ(logits[0], logits[1]);
  EXPECT_NE(logits[0], logits[2]);
}

// While a prompt is read block by block, and while decoding: in layers, after all of them, and in a cascade.
TEST_F(ModelLess, SequencesGoOnLikeOthers) {
  const std::vector<int32_t> context = LedgerTokens(300), tail = LedgerTokens(20);
  const std::string path = ::testing::TempDir() + fmt::format("pith_with_states_{}", getpid());
  for (const char* const text : {"snapkv:window=16", "h2o", "keydiff alloc=global", "knorm alloc=ada format=q4"}) {
    SCOPED_TRACE(text);
    EngineOptions options;
    options.num_ctx = 512;
    options.num_threads = testing::kThreads;
    options.max_sequences = 3;
    options.block_tokens = 64;
    options.keep_entries = 100;
    options.recipe = *ParseRecipe(fmt::format("{} act=less:{}", text, file_));
    auto engine = MakeDefaultEngine(options);
    const SequenceId sequence = *engine->NewSequence();
    ASSERT_TRUE(engine->Prefill(sequence, context));
    EXPECT_LT(engine->stats(sequence).entries, 200 * 90);
    for (const int32_t token : tail) ASSERT_TRUE(engine->Decode(sequence, token));
    for (const float x : engine->logits(sequence)) ASSERT_TRUE(std::isfinite(x));
    const auto refused = engine->Rewind(sequence, 90);
    ASSERT_FALSE(refused);
    EXPECT_EQ(engine->RewindTarget(sequence, 310), 0) << "what is in a state is not to be had back";
    const SequenceId fork = *engine->Fork(sequence);
    const std::vector<float> expected = Follow(*engine, fork, tail);
    engine->Free(fork);
    ExpectRestored(*engine, options, sequence, path, tail, expected, [](SequenceId) {});
    EXPECT_EQ(Follow(*engine, sequence, tail), expected) << "forks have left it alone";
    // An empty sequence knows nothing of what was gone.
    ASSERT_TRUE(engine->Rewind(sequence, 0));
    const SequenceId fresh = *engine->NewSequence();
    EXPECT_EQ(Follow(*engine, sequence, tail), Follow(*engine, fresh, tail));
  }
}

TEST_F(ModelLess, ABudgetHoldsTheStates) {
  const std::vector<int32_t> tokens = LedgerTokens(600);
  std::vector<int> kept;
  for (const std::string& text : {std::string("snapkv:window=16"), "snapkv:window=16 act=less:" + file_}) {
    EngineOptions options;
    options.num_ctx = 1024;
    options.num_threads = testing::kThreads;
    options.budget_bytes = size_t{6} << 20;
    options.recipe = *ParseRecipe(text);
    auto engine = MakeDefaultEngine(options);
    const SequenceId sequence = *engine->NewSequence();
    ASSERT_TRUE(engine->Prefill(sequence, std::span(tokens).first(580)));
    for (size_t i = 580; i < tokens.size(); ++i) ASSERT_TRUE(engine->Decode(sequence, tokens[i]));
    EXPECT_LT(engine->stats(sequence).kept_fraction, 0.5);
    EXPECT_LE(engine->stats().peak_bytes, options.budget_bytes);
    kept.push_back(engine->stats(sequence).keep_entries);
  }
  // 90 states of 2,080 bytes are not there for pages.
  EXPECT_LE(kept[1], kept[0]);
  EXPECT_GE(kept[1], kept[0] - 64);
}

TEST_F(ModelLess, SaysWhereItDoesNotWork) {
  const std::string other = testing::WriteMaps(*testing::RandomMaps(DefaultModel()->info(), kRank, 32, 1, 2),
                                               fmt::format("pith_other_less_{}.gguf", getpid()));
  ModelInfo wider = DefaultModel()->info();
  for (LayerShape& shape : wider.layers) shape.num_heads = 18;
  const std::string wide =
      testing::WriteMaps(*testing::RandomMaps(wider, 2, 4, 1, 3), fmt::format("pith_wide_less_{}.gguf", getpid()));
  wider = DefaultModel()->info();
  wider.layers.pop_back();
  const std::string low =
      testing::WriteMaps(*testing::RandomMaps(wider, 2, 4, 1, 3), fmt::format("pith_low_less_{}.gguf", getpid()));
  const auto expect_refused = [](const EngineOptions& options, const std::string& part) {
    const auto engine = Engine::Create(DefaultModel(), options);
    ASSERT_FALSE(engine) << part;
    EXPECT_NE(engine.error().message.find(part), std::string::npos) << engine.error().message;
  };
  expect_refused(CompressedAfter({"snapkv act=less:" + wide}), "for 18 query and 3 kv heads of 64 channels");
  expect_refused(CompressedAfter({"snapkv act=less:" + low}),
                 "for 29 layers with a global cache, and the model has 30");
  expect_refused(CompressedAfter({"snapkv act=less:" + file_, "h2o act=less:" + other}), "name one file of maps");
  const EngineOptions options = CompressedAfter({"snapkv act=less:" + file_});
  auto engine = MakeDefaultEngine(options);
  const SequenceId sequence = *engine->NewSequence();
  ASSERT_TRUE(engine->Prefill(sequence, LedgerTokens(200)));
  const auto unknown = engine->Compress(sequence, *ParseRecipe("snapkv act=less:" + other), 0.5);
  ASSERT_FALSE(unknown);
  EXPECT_NE(unknown.error().message.find("needs states"), std::string::npos) << unknown.error().message;
  const auto tiny = engine->Compress(sequence, options.later_recipes[0], 0.04);
  ASSERT_FALSE(tiny);
  EXPECT_NE(tiny.error().message.find("take 4.1% of the f16 cache's bytes"), std::string::npos) << tiny.error().message;
  ASSERT_TRUE(engine->Compress(sequence, options.later_recipes[0], 0.5));
  // A sequence whose recipe has other maps, or none, cannot be restored from it.
  const auto saved = engine->SaveToMemory(sequence, {});
  ASSERT_TRUE(saved);
  auto plain = MakeDefaultEngine(CompressedAfter({"snapkv act=less:" + other}));
  const auto restored = plain->RestoreFromMemory(*saved, CompressedAfter({"snapkv act=less:" + other}));
  ASSERT_FALSE(restored);
  EXPECT_NE(restored.error().message.find("other maps of act=less"), std::string::npos) << restored.error().message;
  for (const std::string& path : {other, wide, low}) std::remove(path.c_str());
}

}  // namespace
}  // namespace pith
