// act=delta on the default model: entries that do not stay become latents against those that do, none is dropped.
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/text.h"
#include "lab/delta_fit.h"
#include "tests/support/default_engine.h"

namespace pith {
namespace {

using testing::CompressedAfter;
using testing::DefaultModel;
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

// The share of f16's bytes, where `exact` of n entries stay, of heads of 64 channels: latents of `rank` numbers with
// k references, and the maps of a head.
double Formula(double n, double exact, int rank, int k) {
  const double entry = 128, maps = rank * entry + 1;
  return (exact * entry + (n - exact) * (rank + k) + maps) / (n * entry);
}

TEST(ModelDelta, BytesAreThoseOfTheFormula) {
  constexpr int kCount = 32 * 30;
  const std::vector<int32_t> context = LedgerTokens(kCount);
  struct Case {
    std::string recipe;
    double recent, share;
    int rank, k;
  };
  const std::vector<Case> cases = {{"deltakv", 128, 0.1, 21, 4},
                                   {"deltakv:recent=32,share=0.05,k=2", 32, 0.05, 21, 2},
                                   {"deltakv:recent=16,latent=0.25", 16, 0.1, 32, 4},
                                   {"snapkv:window=16 act=delta:recent=16", 16, 0.1, 21, 4},
                                   {"keydiff alloc=ada act=delta:recent=16", 16, 0.1, 21, 4}};
  std::vector<std::string> recipes;
  for (const Case& one : cases) recipes.push_back(one.recipe);
  const EngineOptions options = CompressedAfter(recipes);
  auto engine = MakeDefaultEngine(options);
  const SequenceId base = *engine->NewSequence();
  ASSERT_TRUE(engine->Prefill(base, context));
  for (size_t i = 0; i < cases.size(); ++i) {
    SCOPED_TRACE(cases[i].recipe);
    const SequenceId fork = *engine->Fork(base);
    const CompressTarget target{fork, 1.0};
    const auto kept = engine->CompressForks(base, options.later_recipes[i], {&target, 1});
    ASSERT_TRUE(kept) << kept.error().message;
    EXPECT_EQ(kept->front(), 1);
    const double whole = 8 + cases[i].recent, exact = whole + cases[i].share * (kCount - whole);
    // A page less may stay.
    EXPECT_LE(engine->KeptBytes(fork), Formula(kCount, exact, cases[i].rank, cases[i].k) + 1e-3);
    EXPECT_GE(engine->KeptBytes(fork), Formula(kCount, exact - 32, cases[i].rank, cases[i].k));
    ExpectEveryEntry(*engine, fork);
    engine->Free(fork);
  }
}

// Latents must say something: nearer to the full cache than references alone, and no entry is worse than the model's
// own noise where they say everything.
TEST(ModelDelta, LatentsSayWhatEntriesWere) {
  const std::vector<int32_t> context = LedgerTokens(400);
  const EngineOptions options = CompressedAfter(
      {"deltakv:recent=16", "deltakv:recent=16,latent=0.004,share=0.1", "deltakv:recent=16,latent=0.8"});
  auto engine = MakeDefaultEngine(options);
  const SequenceId base = *engine->NewSequence();
  ASSERT_TRUE(engine->Prefill(base, context));
  std::vector<double> errors;
  for (const Recipe& recipe : options.later_recipes) {
    const SequenceId fork = *engine->Fork(base);
    const CompressTarget target{fork, 1.0};
    ASSERT_TRUE(engine->CompressForks(base, recipe, {&target, 1}));
    double error = 0, size = 0;
    for (const int layer : {0, 13, 29}) {
      for (const bool values : {false, true}) {
        const std::vector<float> before = engine->EntryRows(base, layer, values),
                                 after = engine->EntryRows(fork, layer, values);
        ASSERT_EQ(before.size(), after.size());
        for (size_t i = 0; i < before.size(); ++i) {
          const double x = static_cast<double>(before[i]), y = static_cast<double>(after[i]);
          error += (x - y) * (x - y);
          size += x * x;
        }
      }
    }
    errors.push_back(error / size);
    engine->Free(fork);
  }
  EXPECT_LT(errors[0], 0.75 * errors[1]) << "control: hardly any latent";
  EXPECT_LT(errors[2], 0.1 * errors[1]);
}

// Forks, files and memory; and what comes after.
TEST(ModelDelta, SequencesGoOnLikeOthers) {
  const std::vector<int32_t> context = LedgerTokens(300), more = LedgerTokens(100),
                             tail = Tokenize("In chapter 7 the garden met a river and paid");
  const std::string path = ::testing::TempDir() + fmt::format("pith_latents_{}", getpid());
  for (const char* const text : {"deltakv:recent=32", "keydiff alloc=ada act=delta:recent=32,share=0.2"}) {
    SCOPED_TRACE(text);
    const EngineOptions options = CompressedAfter({text, "snapkv:window=16", "mikv", "full"});
    auto engine = MakeDefaultEngine(options);
    const SequenceId sequence = *engine->NewSequence();
    ASSERT_TRUE(engine->Prefill(sequence, context));
    const std::vector<float> full = FollowFork(*engine, sequence, tail);
    ASSERT_TRUE(engine->Compress(sequence, options.later_recipes[0], 1));
    EXPECT_LT(engine->KeptBytes(sequence), 0.6);
    EXPECT_EQ(engine->RewindTarget(sequence, 200), 0) << "what is a latent cannot be taken back";
    const auto fork = engine->Fork(sequence);
    ASSERT_TRUE(fork) << fork.error().message;
    const std::vector<float> expected = Follow(*engine, *fork, tail);
    EXPECT_LT(MeanKl(full, expected), 2.5);
    engine->Free(*fork);
    ExpectRestored(*engine, options, sequence, path, tail, expected,
                   [&](SequenceId restored) { ExpectEveryEntry(*engine, restored); });
    for (const size_t i : {1, 2}) {
      const auto refused = engine->Compress(sequence, options.later_recipes[i], 0.5);
      ASSERT_FALSE(refused);
      EXPECT_NE(refused.error().message.find("entries that latents of this sequence refer to"), std::string::npos)
          << refused.error().message;
    }
    EXPECT_TRUE(engine->Compress(sequence, options.later_recipes[3], 1));
    const auto forked = engine->Fork(sequence);
    ASSERT_TRUE(forked) << forked.error().message;
    const SequenceId again = *forked;
    EXPECT_EQ(Follow(*engine, again, tail), expected) << "nothing has changed";
    // More of the same: what was a latent stays so.
    ASSERT_TRUE(engine->Prefill(again, more));
    const double before = engine->KeptBytes(again);
    ASSERT_TRUE(engine->Compress(again, options.later_recipes[0], 1));
    EXPECT_LT(engine->KeptBytes(again), before);
    ExpectEveryEntry(*engine, again);
    for (const float x : Follow(*engine, again, tail)) ASSERT_TRUE(std::isfinite(x));
    engine->Free(again);
    // An empty sequence knows nothing of them.
    ASSERT_TRUE(engine->Rewind(sequence, 0));
    const auto fresh = engine->NewSequence();
    ASSERT_TRUE(fresh) << fresh.error().message;
    EXPECT_EQ(Follow(*engine, sequence, tail), Follow(*engine, *fresh, tail));
  }
}

// While text is read and written, in a hard budget.
TEST(ModelDelta, RunsInABudget) {
  // 23,040 bytes a token in f16.
  ExpectRunsInABudget({"full", "deltakv:recent=32", "snapkv:window=16 act=delta:recent=32"}, LedgerTokens(700), 100,
                      size_t{13} << 20, 0.55, 2.5);
}

TEST(ModelDelta, ReadsMapsOfAFile) {
  const std::string path = ::testing::TempDir() + fmt::format("pith_delta_{}.gguf", getpid());
  const auto fitted = FitDelta(DefaultModel(), LedgerTokens(300), {.latent = 0.125}, testing::kThreads, {});
  ASSERT_TRUE(fitted) << fitted.error().message;
  ASSERT_EQ(fitted->error_with.size(), 30U);
  for (size_t layer = 0; layer < 30; ++layer) {
    EXPECT_LT(fitted->error_with[layer], fitted->error_without[layer]) << layer;
  }
  ASSERT_TRUE(WriteFile(path, fitted->maps->Bytes()));
  const auto loaded = DeltaMaps::Load(path);
  ASSERT_TRUE(loaded) << loaded.error().message;
  EXPECT_EQ((*loaded)->Bytes(), fitted->maps->Bytes());
  const std::vector<int32_t> context = LedgerTokens(300), tail = Tokenize("In chapter 7 the garden");
  const EngineOptions options =
      CompressedAfter({"deltakv:recent=16,latent=0.125", fmt::format("score=stride act=delta:{},recent=16", path)});
  auto engine = MakeDefaultEngine(options);
  const SequenceId base = *engine->NewSequence();
  ASSERT_TRUE(engine->Prefill(base, context));
  std::vector<double> bytes;
  std::vector<std::vector<float>> rows;
  for (const Recipe& recipe : options.later_recipes) {
    const SequenceId fork = *engine->Fork(base);
    const CompressTarget target{fork, 1.0};
    const auto kept = engine->CompressForks(base, recipe, {&target, 1});
    ASSERT_TRUE(kept) << kept.error().message;
    bytes.push_back(engine->KeptBytes(fork));
    rows.push_back(engine->EntryRows(fork, 13, true));
    for (const float x : Follow(*engine, fork, tail)) ASSERT_TRUE(std::isfinite(x));
    engine->Free(fork);
  }
  EXPECT_NEAR(bytes[0], bytes[1], 1e-9) << "the same sizes";
  EXPECT_NE(rows[0], rows[1]) << "but other maps";
  std::remove(path.c_str());
}

TEST(ModelDelta, SaysWhereItDoesNotWork) {
  const EngineOptions options = CompressedAfter({"deltakv"});
  auto engine = MakeDefaultEngine(options);
  const SequenceId sequence = *engine->NewSequence();
  ASSERT_TRUE(engine->Prefill(sequence, LedgerTokens(300)));
  const auto expect_refused = [&](const auto& result, const std::string& part) {
    ASSERT_FALSE(result) << part;
    EXPECT_NE(result.error().message.find(part), std::string::npos) << result.error().message;
  };
  expect_refused(engine->Compress(sequence, options.later_recipes[0], 0.2), "keeps every entry, as latents at least");
  expect_refused(engine->Compress(sequence, *ParseRecipe("deltakv:k=2"), 1),
                 "name the recipe when the sequence is made");
  expect_refused(ParseRecipe("deltakv format=q4"), "act=delta says itself in which formats");
  expect_refused(ParseRecipe("deltakv turns=flowkv"), "can't work turn by turn");
  expect_refused(ParseRecipe("snapkv act=delta:/nowhere.gguf"), "/nowhere.gguf");
  EngineOptions q8 = options;
  q8.format = KvFormat::kQ8;
  q8.later_recipes.clear();
  q8.recipe = *ParseRecipe("deltakv");
  expect_refused(Engine::Create(DefaultModel(), q8), "says itself in which formats entries are stored");
  const auto small = Engine::Create(DefaultModel(), Running("deltakv", size_t{4} << 20, 2000));
  expect_refused(small, "keeps every one of 2000 tokens, in latents at least");
  EngineOptions drops = Running("snapkv:window=16", 0, 400);
  drops.later_recipes.push_back(*ParseRecipe("deltakv"));
  auto dropping = MakeDefaultEngine(drops);
  const SequenceId other = *dropping->NewSequence();
  ASSERT_TRUE(dropping->Prefill(other, LedgerTokens(300)));
  expect_refused(dropping->Compress(other, drops.later_recipes[0], 1), "drops later");
}

}  // namespace
}  // namespace pith
