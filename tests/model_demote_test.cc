// act=demote on the default model: entries that matter less are stored in fewer bits, none is dropped.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include "tests/support/default_engine.h"

namespace pith {
namespace {

using testing::CompressedAfter;
using testing::ExpectEveryEntry;
using testing::ExpectRestored;
using testing::ExpectRunsInABudget;
using testing::Follow;
using testing::FollowFork;
using testing::LedgerTokens;
using testing::MakeDefaultEngine;
using testing::MeanKl;
using testing::Running;
using testing::Tokenize;

// The share of f16's bytes that the paper's formula says, of 64 channels in groups of 32 with 16 bits beside each.
double Formula(double share, double high_bits, double low_bits) {
  return (share * high_bits + (1 - share) * low_bits) / 16;
}

TEST(ModelDemote, BytesAreThoseOfTheFormula) {
  const std::vector<int32_t> context = LedgerTokens(32 * 30);
  const EngineOptions options = CompressedAfter(
      {"mikv", "mikv:share=0.5", "mikv:hi=q8", "mikv:hi=q4", "snapkv:window=16 act=demote:lo=q4,share=0.25",
       "keydiff alloc=ada act=demote:share=0.2", "keydiff alloc=global act=demote:hi=q4,share=0.2"});
  const std::vector<double> bytes = {Formula(0.2, 16, 2.5),   Formula(0.5, 16, 2.5),  Formula(0.2, 8.5, 2.5),
                                     Formula(0.2, 4.5, 2.5),  Formula(0.25, 16, 4.5), Formula(0.2, 16, 2.5),
                                     Formula(0.2, 4.5, 2.5)};
  auto engine = MakeDefaultEngine(options);
  const SequenceId base = *engine->NewSequence();
  ASSERT_TRUE(engine->Prefill(base, context));
  for (size_t i = 0; i < bytes.size(); ++i) {
    SCOPED_TRACE(options.later_recipes[i].text);
    const SequenceId fork = *engine->Fork(base);
    const CompressTarget target{fork, 1.0};
    const auto kept = engine->CompressForks(base, options.later_recipes[i], {&target, 1});
    ASSERT_TRUE(kept) << kept.error().message;
    EXPECT_EQ(kept->front(), 1);
    EXPECT_NEAR(engine->KeptBytes(fork), bytes[i], 0.006);
    ExpectEveryEntry(*engine, fork);
    engine->Free(fork);
  }
}

// Judges what the weights say, as sanitized tests cannot, which run on random ones.
TEST(SlowDemote, TheBytesDecideHowManyStay) {
  const std::vector<int32_t> context = LedgerTokens(700),
                             tail = Tokenize("In chapter 7 the garden met a river and paid 57 coins.");
  const EngineOptions options =
      CompressedAfter({"h2o act=demote", "h2o", "snapkv:window=16 alloc=ada act=demote", "kvzip act=demote"});
  auto engine = MakeDefaultEngine(options);
  const SequenceId base = *engine->NewSequence();
  ASSERT_TRUE(engine->Prefill(base, context));
  const std::vector<float> full = FollowFork(*engine, base, tail);
  std::vector<double> kl;
  for (const double keep : {0.6, 0.33, 0.2}) {
    for (const Recipe& recipe : options.later_recipes) {
      SCOPED_TRACE(fmt::format("{} at {}", recipe.text, keep));
      const SequenceId fork = *engine->Fork(base);
      const CompressTarget target{fork, keep};
      const auto kept = engine->CompressForks(base, recipe, {&target, 1});
      ASSERT_TRUE(kept) << kept.error().message;
      EXPECT_LE(engine->KeptBytes(fork), keep + 1e-4);
      EXPECT_GE(engine->KeptBytes(fork), keep - 0.015);
      kl.push_back(MeanKl(full, Follow(*engine, fork, tail)));
      engine->Free(fork);
    }
    std::printf("at %.2f: KL %.4f, %.4f where as many bytes are dropped\n", keep, kl[kl.size() - 4], kl[kl.size() - 3]);
    // Where most may stay, what is dropped is not missed.
    if (keep < 0.5) {
      EXPECT_LT(kl[kl.size() - 4], 0.5 * kl[kl.size() - 3]) << keep;
    }
  }
  const SequenceId fork = *engine->Fork(base);
  const CompressTarget target{fork, 0.1};
  const auto refused = engine->CompressForks(base, options.later_recipes[0], {&target, 1});
  ASSERT_FALSE(refused);
  EXPECT_NE(refused.error().message.find("keeps every entry, in q2 at least"), std::string::npos)
      << refused.error().message;
  EXPECT_EQ(Follow(*engine, fork, tail), full) << "nothing has changed";
}

// Forks, files and memory; and what comes after: dropping, another second reading, more of the same.
TEST(ModelDemote, SequencesGoOnLikeOthers) {
  const std::vector<int32_t> context = LedgerTokens(500),
                             tail = Tokenize("In chapter 7 the garden met a river and paid");
  const std::string path = ::testing::TempDir() + fmt::format("pith_demoted_{}", getpid());
  for (const char* const text : {"keydiff act=demote:share=0.3", "keydiff alloc=ada act=demote:hi=q4,share=0.3"}) {
    SCOPED_TRACE(text);
    const EngineOptions options = CompressedAfter({text, "snapkv:window=16", "kvzip", "kvzip act=demote:share=0.1",
                                                   "kvzip act=residue", "kvzip act=match", "lra"});
    auto engine = MakeDefaultEngine(options);
    const SequenceId sequence = *engine->NewSequence();
    ASSERT_TRUE(engine->Prefill(sequence, context));
    ASSERT_TRUE(engine->Compress(sequence, options.later_recipes[0], 1));
    const double bytes = engine->KeptBytes(sequence);
    EXPECT_EQ(engine->RewindTarget(sequence, 400), 0) << "what was lowered cannot be taken back";
    const SequenceId fork = *engine->Fork(sequence);
    const std::vector<float> expected = Follow(*engine, fork, tail);
    engine->Free(fork);
    ExpectRestored(*engine, options, sequence, path, tail, expected,
                   [&](SequenceId restored) { ExpectEveryEntry(*engine, restored); });
    for (size_t i = 1; i < options.later_recipes.size(); ++i) {
      SCOPED_TRACE(options.later_recipes[i].text);
      const SequenceId other = *engine->Fork(sequence);
      const CompressTarget target{other, 0.5};
      const auto kept = engine->CompressForks(sequence, options.later_recipes[i], {&target, 1});
      ASSERT_TRUE(kept) << kept.error().message;
      EXPECT_LT(engine->KeptBytes(other), bytes);
      const std::vector<int32_t> positions = engine->EntryPositions(other, 13, 1);
      EXPECT_EQ(std::ranges::adjacent_find(positions, std::greater_equal<>()), positions.end());
      const std::vector<float> after = Follow(*engine, other, tail);
      EXPECT_LT(MeanKl(expected, after), 2.5);
      engine->Free(other);
    }
    EXPECT_EQ(Follow(*engine, sequence, tail), expected) << "forks have left it alone";
  }
}

// While text is read and written, in a hard budget.
TEST(ModelDemote, RunsInABudget) {
  // 23,040 bytes a token in f16.
  ExpectRunsInABudget({"full", "h2o act=demote", "snapkv:window=16 act=demote", "h2o alloc=global act=demote",
                       "h2o act=demote:hi=q4", "lra act=demote"},
                      LedgerTokens(900), 40, size_t{10} << 20, 0.5, 0.4);
}

TEST(ModelDemote, TheShareHoldsWhereBytesAreThere) {
  const std::vector<int32_t> tokens = LedgerTokens(800);
  auto engine = MakeDefaultEngine(Running("mikv", 0, 1000));
  const SequenceId sequence = *engine->NewSequence();
  ASSERT_TRUE(engine->Prefill(sequence, {tokens.data(), 700}));
  for (size_t i = 700; i < tokens.size(); ++i) ASSERT_TRUE(engine->Decode(sequence, tokens[i]));
  // A page and the slack may be high beside the fifth.
  EXPECT_GT(engine->KeptBytes(sequence), Formula(0.2, 16, 2.5) - 0.04);
  EXPECT_LT(engine->KeptBytes(sequence), Formula(0.2 + 96.0 / 800, 16, 2.5));
}

TEST(ModelDemote, BudgetsBelowAllInTheLowFormatAreRefused) {
  const auto engine = Engine::Create(testing::DefaultModel(), Running("mikv", size_t{4} << 20, 2000));
  ASSERT_FALSE(engine);
  EXPECT_EQ(engine.error().code, ErrorCode::kOutOfBudget);
  EXPECT_NE(engine.error().message.find("keeps every one of 2000 tokens, in q2 at least"), std::string::npos)
      << engine.error().message;
}

TEST(ModelDemote, AllHighIsTheFullCache) {
  const std::vector<int32_t> context = LedgerTokens(200), tail = Tokenize("In chapter 7 the garden");
  const EngineOptions options = CompressedAfter({"h2o act=demote"});
  auto engine = MakeDefaultEngine(options);
  const SequenceId base = *engine->NewSequence();
  ASSERT_TRUE(engine->Prefill(base, context));
  const SequenceId fork = *engine->Fork(base);
  const CompressTarget target{fork, 1.0};
  ASSERT_TRUE(engine->CompressForks(base, options.later_recipes[0], {&target, 1}));
  EXPECT_EQ(Follow(*engine, fork, tail), Follow(*engine, base, tail));
}

}  // namespace
}  // namespace pith
