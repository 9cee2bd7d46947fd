// act=prune on the default model: keys lose the channels that matter least to the last queries.
#include <algorithm>
#include <array>
#include <cmath>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include "policy/act/think.h"
#include "tests/support/default_engine.h"

namespace pith {
namespace {

using testing::CompressedAfter;
using testing::ExpectRestored;
using testing::Follow;
using testing::LedgerTokens;
using testing::MakeDefaultEngine;
using testing::MeanKl;
using testing::Tokenize;

constexpr int kDim = 64;
const std::array<std::pair<int, int>, 3> kHeads = {{{0, 0}, {13, 1}, {29, 2}}};

// Bytes of an entry over f16's, of 64 channels of which keys have so many.
double EntryShare(PageFormat format, int channels) {
  return PageLayout::Make(format, channels, kDim, 0).entry_bytes() /
         PageLayout::Make(PageFormat(), kDim, kDim, 0).entry_bytes();
}

TEST(ModelPrune, BytesAreThoseOfTheChannels) {
  const std::vector<int32_t> context = LedgerTokens(32 * 15 + 5);  // 14 pages are older than the newest 32 entries
  const double old = 32 * 14.0 / static_cast<double>(context.size());
  struct Case {
    const char* recipe;
    PageFormat format;
    int channels;
  };
  for (const auto& [recipe, format, channels] :
       {Case{"think", KvFormat::kF16, 39}, {"think:channels=0.5", KvFormat::kF16, 32},
        {"think format=q8", KvFormat::kQ8, 39}, {"think format=q4", KvFormat::kQ4, 39},
        {"think format=q4/q2", PageFormat(KvFormat::kQ4, KvFormat::kQ2), 39}}) {
    SCOPED_TRACE(recipe);
    const EngineOptions options = CompressedAfter({recipe});
    auto engine = MakeDefaultEngine(options);
    const SequenceId base = *engine->NewSequence();
    ASSERT_TRUE(engine->Prefill(base, context));
    const SequenceId fork = *engine->Fork(base);
    const CompressTarget target{fork, 1.0};
    const auto kept = engine->CompressForks(base, options.later_recipes[0], {&target, 1});
    ASSERT_TRUE(kept) << kept.error().message;
    EXPECT_EQ(kept->front(), 1);
    const double rest = 5.0 / static_cast<double>(context.size());  // still f16
    EXPECT_NEAR(engine->KeptBytes(fork),
                old * EntryShare(format, channels) + (1 - old - rest) * EntryShare(format, kDim) + rest, 1e-9);
    EXPECT_EQ(engine->KeptBytes(base), 1);
  }
}

// Rows [n, D] of one kv head.
std::vector<float> KeysOf(const Engine& engine, SequenceId sequence, int layer, int head) {
  return engine.Keys(sequence, layer, head, 0, INT32_MAX);
}

TEST(ModelPrune, OldKeysLoseChannelsAndNothingElseChanges) {
  const std::vector<int32_t> context = LedgerTokens(300);
  const EngineOptions options = CompressedAfter({"think"});
  auto engine = MakeDefaultEngine(options);
  const SequenceId base = *engine->NewSequence();
  ASSERT_TRUE(engine->Prefill(base, context));
  const SequenceId fork = *engine->Fork(base);
  const CompressTarget target{fork, 1.0};
  ASSERT_TRUE(engine->CompressForks(base, options.later_recipes[0], {&target, 1}));
  size_t different = 0;
  std::vector<int> first;
  for (const auto& [layer, head] : kHeads) {
    SCOPED_TRACE(fmt::format("layer {} head {}", layer, head));
    const std::vector<float> whole = KeysOf(*engine, base, layer, head), pruned = KeysOf(*engine, fork, layer, head);
    ASSERT_EQ(whole.size(), context.size() * kDim);
    ASSERT_EQ(pruned.size(), whole.size());
    const size_t old = (context.size() - 32) / 32 * 32;
    std::vector<int> zero;
    for (int c = 0; c < kDim; ++c) {
      bool all = true;
      for (size_t i = 0; i < old; ++i) all = all && pruned[i * kDim + static_cast<size_t>(c)] == 0;
      if (all) zero.push_back(c);
    }
    EXPECT_EQ(zero.size(), 25U);
    for (size_t i = 0; i < context.size(); ++i) {
      for (int c = 0; c < kDim; ++c) {
        const size_t at = i * kDim + static_cast<size_t>(c);
        const bool gone = i < old && std::ranges::binary_search(zero, c);
        ASSERT_EQ(pruned[at], gone ? 0 : whole[at]) << i << " " << c;
      }
    }
    different += zero != first ? 1 : 0;
    first = zero;
  }
  EXPECT_GT(different, 1U) << "heads choose for themselves";
  EXPECT_EQ(engine->EntryRows(fork, 13, true), engine->EntryRows(base, 13, true)) << "values";
}

TEST(ModelPrune, NoChannelsIsTheCacheAsItWas) {
  const std::vector<int32_t> context = LedgerTokens(200), tail = Tokenize("In chapter 7 the garden");
  const EngineOptions options = CompressedAfter({"think:channels=0", "snapkv act=prune:channels=0", "snapkv"});
  auto engine = MakeDefaultEngine(options);
  const SequenceId base = *engine->NewSequence();
  ASSERT_TRUE(engine->Prefill(base, context));
  std::vector<std::vector<float>> logits;
  for (const Recipe& recipe : options.later_recipes) {
    const SequenceId fork = *engine->Fork(base);
    const CompressTarget target{fork, 0.5};
    ASSERT_TRUE(engine->CompressForks(base, recipe, {&target, 1}));
    logits.push_back(Follow(*engine, fork, tail));
    engine->Free(fork);
  }
  EXPECT_EQ(logits[1], logits[2]);
  EXPECT_EQ(logits[0], Follow(*engine, base, tail));
}

// A share is one of bytes: what channels leave free holds more entries.
TEST(ModelPrune, ASharePaysForMoreEntries) {
  const std::vector<int32_t> context = LedgerTokens(900);
  const EngineOptions options =
      CompressedAfter({"snapkv:window=16", "snapkv:window=16 act=prune",
                       "snapkv:window=16 alloc=ada act=prune format=q8", "snapkv:window=16 act=prune format=q4"});
  auto engine = MakeDefaultEngine(options);
  const SequenceId base = *engine->NewSequence();
  ASSERT_TRUE(engine->Prefill(base, context));
  std::vector<size_t> entries;
  for (const Recipe& recipe : options.later_recipes) {
    SCOPED_TRACE(recipe.text);
    const SequenceId fork = *engine->Fork(base);
    const double keep = entries.size() < 3 ? 0.4 : 0.2;
    const CompressTarget target{fork, keep};
    const auto kept = engine->CompressForks(base, recipe, {&target, 1});
    ASSERT_TRUE(kept) << kept.error().message;
    entries.push_back(engine->EntryPositions(fork, 13, 1).size());
    EXPECT_LE(engine->KeptBytes(fork), keep + 1e-3);
    EXPECT_GT(engine->KeptBytes(fork), keep - 0.03);
    engine->Free(fork);
  }
  EXPECT_GT(static_cast<double>(entries[1]), 1.15 * static_cast<double>(entries[0]));
}

// Forks, files and memory; entries that come later; other recipes afterwards.
TEST(ModelPrune, SequencesGoOnLikeOthers) {
  const std::vector<int32_t> context = LedgerTokens(400), tail = LedgerTokens(90);
  const std::string path = ::testing::TempDir() + fmt::format("pith_pruned_{}", getpid());
  for (const char* const text : {"keydiff act=prune", "keydiff alloc=ada act=prune:channels=0.5,recent=40 format=q4"}) {
    SCOPED_TRACE(text);
    const EngineOptions options = CompressedAfter({text, "snapkv:window=16", "kvzip", "keydiff"});
    auto engine = MakeDefaultEngine(options);
    const SequenceId sequence = *engine->NewSequence();
    ASSERT_TRUE(engine->Prefill(sequence, context));
    ASSERT_TRUE(engine->Compress(sequence, options.later_recipes[0], 0.3));
    const double bytes = engine->KeptBytes(sequence);
    EXPECT_EQ(engine->RewindTarget(sequence, 300), 0) << "what was pruned cannot be taken back";
    const SequenceId fork = *engine->Fork(sequence);
    const std::vector<float> expected = Follow(*engine, fork, tail);
    // What came later has lost channels, too, but for the newest.
    const std::vector<float> keys = KeysOf(*engine, fork, 13, 1);
    const auto zeros = [&](size_t entry) {
      return std::count(keys.begin() + static_cast<ptrdiff_t>(entry * kDim),
                        keys.begin() + static_cast<ptrdiff_t>((entry + 1) * kDim), 0.0F);
    };
    const size_t n = keys.size() / kDim;
    EXPECT_GE(zeros(0), 25);
    EXPECT_GE(zeros(n - 75), 25);
    EXPECT_LT(zeros(n - 31), 25);
    EXPECT_EQ(KeysOf(*engine, sequence, 13, 1).size(), (n - tail.size()) * kDim);
    engine->Free(fork);
    ExpectRestored(*engine, options, sequence, path, tail, expected, [](SequenceId) {});
    for (size_t i = 0; i < options.later_recipes.size(); ++i) {
      SCOPED_TRACE(options.later_recipes[i].text);
      const SequenceId other = *engine->Fork(sequence);
      const CompressTarget target{other, i == 0 ? 0.15 : 0.5};
      const auto kept = engine->CompressForks(sequence, options.later_recipes[i], {&target, 1});
      ASSERT_TRUE(kept) << kept.error().message;
      EXPECT_LT(engine->KeptBytes(other), bytes);
      EXPECT_LT(MeanKl(expected, Follow(*engine, other, tail)), 2.5);
      engine->Free(other);
    }
    EXPECT_EQ(Follow(*engine, sequence, tail), expected) << "forks have left it alone";
  }
}

// In a hard budget that holds the prompt, and one token after the other.
TEST(ModelPrune, FreesBytesOfABudget) {
  const std::vector<int32_t> tokens = LedgerTokens(700);
  EngineOptions options;
  options.num_ctx = 800;
  options.num_threads = testing::kThreads;
  options.budget_bytes = size_t{24} << 20;  // 23,040 bytes a token in f16
  options.compress = CompressMode::kAfter;
  options.max_sequences = 1;
  options.recipe = *ParseRecipe("think");
  auto engine = MakeDefaultEngine(options);
  const SequenceId sequence = *engine->NewSequence();
  ASSERT_TRUE(engine->Prefill(sequence, {tokens.data(), 600}));
  const size_t before = engine->stats().page_bytes;
  ASSERT_TRUE(engine->Compress(sequence, options.recipe, 1));
  EXPECT_LT(static_cast<double>(engine->stats().page_bytes), 0.85 * static_cast<double>(before));
  for (size_t i = 600; i < tokens.size(); ++i) ASSERT_TRUE(engine->Decode(sequence, tokens[i]));
  // 25 of 128 numbers of an entry, but for the newest.
  EXPECT_NEAR(engine->KeptBytes(sequence), 1 - 25.0 / 128 * (640.0 / 700), 1e-9);
  EXPECT_LE(engine->stats().peak_bytes, options.budget_bytes);
}

TEST(ModelPrune, SaysWhereItDoesNotWork) {
  EngineOptions options;
  options.num_threads = testing::kThreads;
  options.recipe = *ParseRecipe("snapkv act=prune");
  const auto by_blocks = Engine::Create(testing::DefaultModel(), options);
  ASSERT_FALSE(by_blocks);
  EXPECT_NE(by_blocks.error().message.find("needs the whole prompt before it drops anything"), std::string::npos)
      << by_blocks.error().message;
  EXPECT_FALSE(ParseRecipe("snapkv act=prune turns=flowkv"));
  options = CompressedAfter({"keydiff act=demote", "think", "think:channels=0.5"});
  auto engine = MakeDefaultEngine(options);
  const SequenceId sequence = *engine->NewSequence();
  ASSERT_TRUE(engine->Prefill(sequence, LedgerTokens(200)));
  const SequenceId lowered = *engine->Fork(sequence);
  ASSERT_TRUE(engine->Compress(lowered, options.later_recipes[0], 0.5));
  EXPECT_FALSE(engine->Compress(lowered, options.later_recipes[1], 0.5));
  ASSERT_TRUE(engine->Compress(sequence, options.later_recipes[1], 1));
  for (const int i : {0, 2}) {
    const auto refused = engine->Compress(sequence, options.later_recipes[static_cast<size_t>(i)], 0.5);
    ASSERT_FALSE(refused);
    EXPECT_NE(refused.error().message.find("does not go with what an earlier one has stored"), std::string::npos)
        << refused.error().message;
  }
  EXPECT_TRUE(engine->Compress(sequence, options.later_recipes[1], 1)) << "the same once more changes nothing";
}

}  // namespace
}  // namespace pith
