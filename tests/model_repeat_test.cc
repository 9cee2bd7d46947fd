// Recipes that read a prompt again (KVzip), on the default model.
#include <algorithm>
#include <cmath>
#include <iterator>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include "engine/resolved.h"
#include "tests/support/default_engine.h"

namespace pith {
namespace {

using testing::CompressedAfter;
using testing::Follow;
using testing::FollowFork;
using testing::Ledger;
using testing::LedgerTokens;
using testing::MakeDefaultEngine;
using testing::MeanKl;
using testing::Tokenize;

TEST(ModelRepeat, ASecondReadingLeavesTheCacheAsItWas) {
  const std::vector<int32_t> context = Tokenize(Ledger(20)), tail = Tokenize("In chapter 7 the garden met a");
  const EngineOptions options = CompressedAfter({"kvzip:chunk=100"});
  auto engine = MakeDefaultEngine(options);
  const SequenceId base = *engine->NewSequence();
  ASSERT_TRUE(engine->Prefill(base, context));
  const std::vector<float> last(engine->logits(base).begin(), engine->logits(base).end());
  const SequenceId untouched = *engine->Fork(base);
  const std::vector<float> before = Follow(*engine, untouched, tail);
  engine->Free(untouched);
  ASSERT_TRUE(engine->Prefill(*engine->NewSequence(), tail));  // another sequence's block in between changes nothing
  const KvStats stats = engine->stats();
  const SequenceId fork = *engine->Fork(base);
  const CompressTarget target{fork, 0.2};
  const auto kept = engine->CompressForks(base, options.later_recipes.front(), {&target, 1});
  ASSERT_TRUE(kept) << kept.error().message;
  EXPECT_NEAR(kept->front(), 0.2, 0.001);
  const std::vector<float> compressed = Follow(*engine, fork, tail);
  EXPECT_GT(engine->stats().peak_bytes, stats.peak_bytes) << "what the reading takes for a while is counted";
  engine->Free(fork);

  const KvStats after = engine->stats();
  EXPECT_EQ(after.entries, stats.entries);
  EXPECT_EQ(after.page_bytes, stats.page_bytes);
  const size_t logits = static_cast<size_t>(engine->model().info().num_vocab) * sizeof(float);
  EXPECT_EQ(after.used_bytes, stats.used_bytes + 90 * context.size() * sizeof(float) + logits)
      << "the scores alone stay for other recipes, and the last logits that the reading would have ended";
  EXPECT_EQ(engine->num_tokens(base), static_cast<int>(context.size()));
  EXPECT_EQ(engine->EntryPositions(base, 4, 1).size(), context.size());
  EXPECT_EQ(Follow(*engine, base, tail), before);
  EXPECT_GT(MeanKl(before, compressed), 1e-4) << "control: dropping entries shows";
  EXPECT_LT(MeanKl(before, compressed), 0.5);
  EXPECT_EQ(last.size(), static_cast<size_t>(testing::DefaultModel()->info().num_vocab));
}

TEST(ModelRepeat, LogitsOfTheLastTokenOutliveTheSecondReading) {
  const EngineOptions options = CompressedAfter({"kvzip_uniform"});
  auto engine = MakeDefaultEngine(options);
  const SequenceId base = *engine->NewSequence();
  ASSERT_TRUE(engine->Prefill(base, Tokenize(Ledger(8))));
  const std::vector<float> last(engine->logits(base).begin(), engine->logits(base).end());
  ASSERT_TRUE(engine->Compress(base, options.later_recipes.front(), 0.5));
  EXPECT_TRUE(std::equal(last.begin(), last.end(), engine->logits(base).begin()));
}

// Between steps of another sequence, to the same entries; what it takes for a while is promised to it, and goes with
// it.
TEST(ModelRepeat, AReadingInPiecesFindsWhatOneAtOnceFinds) {
  const std::vector<int32_t> context = Tokenize(Ledger(20));
  EngineOptions options = CompressedAfter({"kvzip:chunk=150"});
  options.max_sequences = 3;
  auto engine = MakeDefaultEngine(options);
  const Recipe& recipe = options.later_recipes.front();
  const SequenceId at_once = *engine->NewSequence(), in_pieces = *engine->NewSequence(), other = *engine->NewSequence();
  ASSERT_TRUE(engine->Prefill(at_once, context));
  ASSERT_TRUE(engine->Prefill(in_pieces, context));
  ASSERT_TRUE(engine->Prefill(other, std::span(context).first(40)));
  const size_t before = engine->stats().used_bytes;
  const auto held = [&](SequenceId id) {
    std::vector<std::vector<int32_t>> all;
    for (int layer = 0; layer < 30; ++layer) {
      for (int head = 0; head < 3; ++head) all.push_back(engine->EntryPositions(id, layer, head));
    }
    return all;
  };
  int pieces = 0;
  size_t most = 0;
  for (bool is_done = false; !is_done; ++pieces) {
    const Result<bool> read = engine->ReadAgain(in_pieces, recipe, 64);
    ASSERT_TRUE(read) << read.error().message;
    is_done = *read;
    most = std::max(most, engine->stats().used_bytes);
    ASSERT_TRUE(engine->Decode(other, context[static_cast<size_t>(40 + pieces)]));
  }
  EXPECT_GE(pieces, static_cast<int>(context.size()) / 64);
  EXPECT_GT(most, before) << "control: a pass takes pages";
  EXPECT_TRUE(*engine->ReadAgain(in_pieces, recipe, 64)) << "nothing is left to be read";
  const double total = engine->times().total;
  ASSERT_TRUE(engine->Compress(in_pieces, recipe, 0.3));
  EXPECT_NEAR(engine->times().total, total, 0.02) << "no block ran";
  ASSERT_TRUE(engine->Compress(at_once, recipe, 0.3));
  EXPECT_GT(engine->times().policy, 0);
  std::vector<int32_t> common;
  size_t all = 0;
  const auto a = held(at_once), b = held(in_pieces);
  for (size_t i = 0; i < a.size(); ++i) {
    std::ranges::set_intersection(a[i], b[i], std::back_inserter(common));
    all += a[i].size();
  }
  EXPECT_GT(static_cast<double>(common.size()), 0.97 * static_cast<double>(all)) << "but for rounding in other blocks";
}

// [layers, heads] positions.
std::vector<std::vector<int32_t>> HeldBy(const Engine& engine, SequenceId id) {
  std::vector<std::vector<int32_t>> all;
  for (int layer = 0; layer < 30; ++layer) {
    for (int head = 0; head < 3; ++head) all.push_back(engine.EntryPositions(id, layer, head));
  }
  return all;
}

// A sequence that has read a text, with a fork to be compressed at once and one by pieces, between which another goes
// on.
struct Forks {
  SequenceId base, other, at_once, in_pieces;
};
Forks ReadAndFork(Engine& engine, std::span<const int32_t> context) {
  const SequenceId base = *engine.NewSequence(), other = *engine.NewSequence();
  EXPECT_TRUE(engine.Prefill(base, context));
  EXPECT_TRUE(engine.Prefill(other, context.first(10)));
  return {base, other, *engine.Fork(base), *engine.Fork(base)};
}

// To the same bits as at once, between steps of another sequence; a piece fits no more than a head of each thread.
TEST(ModelRepeat, ACompressionInPiecesLeavesWhatOneAtOnceLeaves) {
  constexpr double kKeep = 0.2;  // of which no format holds all entries
  const std::vector<int32_t> context = Tokenize(Ledger(8)), tail = Tokenize("In chapter 7 the garden met a");
  for (const char* const text :
       {"kvzip act=residue", "snapkv:window=8 act=residue", "kvzip act=match", "kvzip format=q4", "keydiff"}) {
    EngineOptions options = CompressedAfter({text});
    options.max_sequences = 4;
    options.num_threads = testing::kThreads;
    auto engine = MakeDefaultEngine(options);
    const Recipe& recipe = options.later_recipes.front();
    const auto [base, other, at_once, in_pieces] = ReadAndFork(*engine, context);
    while (!*engine->ReadAgain(in_pieces, recipe, 1 << 20)) {
    }
    const bool fits = recipe.policy->residue() != nullptr;
    int pieces = 0;
    size_t most_changed = 0;
    auto held = HeldBy(*engine, in_pieces);
    for (bool is_done = false; !is_done; ++pieces) {
      const Result<bool> done = engine->CompressOn(in_pieces, recipe, kKeep);
      ASSERT_TRUE(done) << text << ": " << done.error().message;
      is_done = *done;
      auto now = HeldBy(*engine, in_pieces);
      size_t changed = 0;
      for (size_t i = 0; i < now.size(); ++i) changed += now[i] != held[i] ? 1 : 0;
      most_changed = std::max(most_changed, changed);
      held = std::move(now);
      ASSERT_TRUE(engine->Decode(other, context[static_cast<size_t>(10 + pieces)]));
    }
    ASSERT_TRUE(engine->Compress(at_once, recipe, kKeep)) << text;
    EXPECT_TRUE(held == HeldBy(*engine, at_once)) << text;
    EXPECT_TRUE(held != HeldBy(*engine, base)) << "control: entries went";
    EXPECT_EQ(Follow(*engine, in_pieces, tail), Follow(*engine, at_once, tail)) << text;
    if (fits) {
      EXPECT_GE(pieces, 30 * (testing::kThreads == 1 ? 3 : 2)) << text;
      EXPECT_LE(most_changed, static_cast<size_t>(testing::kThreads)) << text << ": a head of each thread";
    } else {
      EXPECT_LE(pieces, 8) << text << ": some layers at once";
      EXPECT_GT(most_changed, 2U) << "control";
    }
  }
}

// What is done with pages once it is chosen what stays goes by layers, too.
TEST(ModelRepeat, PagesAreChangedInPieces) {
  const std::vector<int32_t> context = LedgerTokens(900), tail = Tokenize("In chapter 7 the garden met a");
  for (const char* const text :
       {"keydiff format=q4", "keydiff act=prune:channels=0.5", "snapkv:window=8 act=prune format=q8"}) {
    SCOPED_TRACE(text);
    EngineOptions options = CompressedAfter({text});
    options.max_sequences = 4;
    auto engine = MakeDefaultEngine(options);
    const Recipe& recipe = options.later_recipes.front();
    const auto [base, other, at_once, in_pieces] = ReadAndFork(*engine, context);
    ASSERT_TRUE(engine->Compress(at_once, recipe, 0.6));
    const std::vector<std::vector<int32_t>> chosen = HeldBy(*engine, at_once);
    int pieces_of_pages = 0, pieces = 0;
    for (bool is_done = false; !is_done; ++pieces) {
      const bool is_chosen = HeldBy(*engine, in_pieces) == chosen;
      const Result<bool> done = engine->CompressOn(in_pieces, recipe, 0.6);
      ASSERT_TRUE(done) << done.error().message;
      is_done = *done;
      pieces_of_pages += is_chosen ? 1 : 0;
      ASSERT_TRUE(engine->Decode(other, context[static_cast<size_t>(10 + pieces)]));
    }
    EXPECT_GE(pieces_of_pages, 2) << "control: of 81,000 entries some hold no more than a piece";
    EXPECT_EQ(HeldBy(*engine, in_pieces), chosen);
    EXPECT_EQ(engine->KeptBytes(in_pieces), engine->KeptBytes(at_once));
    EXPECT_EQ(Follow(*engine, in_pieces, tail), Follow(*engine, at_once, tail));
  }
}

TEST(ModelRepeat, WhatIsKnownBetweenTwoPiecesIsPartOfTheBytes) {
  const std::vector<int32_t> context = LedgerTokens(400);
  const EngineOptions options = CompressedAfter({"kvzip act=residue"});
  const Recipe& recipe = options.later_recipes.front();
  auto engine = MakeDefaultEngine(options);
  const SequenceId base = *engine->NewSequence();
  ASSERT_TRUE(engine->Prefill(base, context));
  while (!*engine->ReadAgain(base, recipe, 1 << 20)) {
  }
  const size_t read = engine->stats().table_bytes;
  ASSERT_FALSE(*engine->CompressOn(base, recipe, 0.3));
  const size_t begun = engine->stats().table_bytes;
  EXPECT_GE(begun, read + 90 * 400 * sizeof(float)) << "scores of all heads";
  while (!*engine->CompressOn(base, recipe, 0.3)) {
  }
  EXPECT_LT(engine->stats().table_bytes, read) << "nor are the reading's own columns there any more";
}

TEST(ModelRepeat, ACompressionThatBreaksOffBeginsAnew) {
  const std::vector<int32_t> context = Tokenize(Ledger(12)), tail = Tokenize("In chapter 7 the garden met a");
  const EngineOptions options = CompressedAfter({"kvzip act=residue"});
  const Recipe& recipe = options.later_recipes.front();
  auto engine = MakeDefaultEngine(options);
  const SequenceId base = *engine->NewSequence();
  ASSERT_TRUE(engine->Prefill(base, context));
  for (int i = 0; i < 20; ++i) ASSERT_FALSE(*engine->CompressOn(base, recipe, 0.3));
  const int64_t some = engine->stats(base).entries, all = engine->stats(base).entries_seen;
  EXPECT_LT(some, all);
  EXPECT_GT(some, all / 2) << "the last layers are whole";
  ASSERT_TRUE(engine->Prefill(base, tail));
  ASSERT_FALSE(*engine->CompressOn(base, recipe, 0.5)) << "from the first layer on";
  while (!*engine->CompressOn(base, recipe, 0.5)) {
  }
  EXPECT_NEAR(static_cast<double>(engine->stats(base).entries),
              0.5 * static_cast<double>(some + 90 * static_cast<int64_t>(tail.size())), 90.0);
  for (int i = 0; i < 5; ++i) ASSERT_FALSE(*engine->CompressOn(base, recipe, 0.9));
  engine->Free(base);
  EXPECT_EQ(engine->stats().page_bytes, 0U);
}

TEST(ModelRepeat, AReadingThatBreaksOffLeavesNothing) {
  const std::vector<int32_t> context = Tokenize(Ledger(20)), tail = Tokenize("In chapter 7 the garden met a");
  const EngineOptions options = CompressedAfter({"kvzip:chunk=150"});
  const Recipe& recipe = options.later_recipes.front();
  auto engine = MakeDefaultEngine(options);
  const SequenceId base = *engine->NewSequence();
  ASSERT_TRUE(engine->Prefill(base, context));
  const size_t pages = engine->stats().page_bytes, used = engine->stats().used_bytes;
  ASSERT_FALSE(*engine->ReadAgain(base, recipe, 40));
  EXPECT_GT(engine->stats().page_bytes, pages);
  // More text: what was found is not of it.
  ASSERT_TRUE(engine->Prefill(base, tail));
  ASSERT_TRUE(engine->Rewind(base, static_cast<int>(context.size())));
  EXPECT_LE(engine->stats().used_bytes, used);
  ASSERT_FALSE(*engine->ReadAgain(base, recipe, 40));
  engine->Cancel();
  const Result<bool> stopped = engine->ReadAgain(base, recipe, 40);
  ASSERT_FALSE(stopped);
  EXPECT_EQ(stopped.error().code, ErrorCode::kCancelled);
  engine->ClearCancel();
  EXPECT_LE(engine->stats().used_bytes, used);
  ASSERT_FALSE(*engine->ReadAgain(base, recipe, 40));
  engine->Free(base);
  EXPECT_EQ(engine->stats().page_bytes, 0U);
  ASSERT_TRUE(engine->NewSequence()) << "its place is free, too";
}

// Attention over a chunk alone shows what attention over everything shows of it, where the chunk is everything; and
// about that where it is not: with weights that mean something, which the model of sanitized tests lacks.
TEST(SlowRepeat, PassesNeedNotSeeOtherChunks) {
  const std::vector<int32_t> context = Tokenize(Ledger(24));
  const EngineOptions options =
      CompressedAfter({"kvzip", "kvzip:sight=whole", "kvzip:chunk=128", "kvzip:chunk=128,sight=whole"});
  auto engine = MakeDefaultEngine(options);
  const SequenceId base = *engine->NewSequence();
  ASSERT_TRUE(engine->Prefill(base, context));
  std::vector<std::vector<int32_t>> kept;
  for (const Recipe& recipe : options.later_recipes) {
    const SequenceId fork = *engine->Fork(base);
    const CompressTarget target{fork, 0.3};
    ASSERT_TRUE(engine->CompressForks(base, recipe, {&target, 1}));
    kept.emplace_back();
    for (int layer = 0; layer < 30; ++layer) {
      for (int head = 0; head < 3; ++head) {
        for (const int32_t position : engine->EntryPositions(fork, layer, head))
          kept.back().push_back((layer * 3 + head) * 10000 + position);
      }
    }
    engine->Free(fork);
  }
  const auto common = [&](size_t a, size_t b) {
    std::vector<int32_t> both;
    std::ranges::set_intersection(kept[a], kept[b], std::back_inserter(both));
    return static_cast<double>(both.size()) / static_cast<double>(kept[a].size());
  };
  EXPECT_EQ(kept[0], kept[1]);
  std::printf("in common: %.3f of 128 with 128 that see all, %.3f with one chunk\n", common(2, 3), common(2, 0));
  EXPECT_GT(common(2, 3), 0.8);
  EXPECT_LT(common(2, 3), 1) << "control";
}

// A fact is asked for that nobody knew of while compressing. What is judged needs weights that mean something, which
// the model of sanitized tests lacks: Slow tests run without sanitizers alone.
TEST(SlowRepeat, KvZipKeepsWhatLaterQuestionsNeed) {
  // The last queries, which a window observes, are about something else.
  const std::vector<int32_t> context = Tokenize(Ledger(24) +
                                                "\n\nRain fell on the roofs all night. By morning the streets were "
                                                "quiet, the shops stayed shut, and nobody spoke of the harvest.\n\n");
  const std::vector<int32_t> tail = Tokenize("In chapter 7 the garden met a river and paid 57 coins.");
  const EngineOptions options = CompressedAfter({"kvzip", "kvzip:chunk=128", "snapkv", "random"});
  auto engine = MakeDefaultEngine(options);
  const SequenceId base = *engine->NewSequence();
  ASSERT_TRUE(engine->Prefill(base, context));
  const SequenceId whole = *engine->Fork(base);
  const std::vector<float> full = Follow(*engine, whole, tail);
  std::vector<double> kl;
  for (const Recipe& recipe : options.later_recipes) {
    const auto forked = engine->Fork(base);
    ASSERT_TRUE(forked) << forked.error().message;
    const SequenceId fork = *forked;
    const CompressTarget target{fork, 0.2};
    const auto kept = engine->CompressForks(base, recipe, {&target, 1});
    ASSERT_TRUE(kept) << kept.error().message;
    EXPECT_NEAR(kept->front(), 0.2, 0.01);
    kl.push_back(MeanKl(full, Follow(*engine, fork, tail)));
    engine->Free(fork);
  }
  std::printf("KL kvzip %.4f, in chunks of 128 %.4f, snapkv %.4f, random %.4f\n", kl[0], kl[1], kl[2], kl[3]);
  EXPECT_LT(kl[0], 0.5 * kl[2]);
  EXPECT_LT(kl[0], 0.5 * kl[3]);
  EXPECT_LT(kl[1], kl[2]);
  EXPECT_LT(kl[1], kl[3]);
}

// What is dropped leaves something in its place.
TEST(ModelRepeat, EntriesThatStandInLoseLess) {
  const std::vector<int32_t> context = Tokenize(Ledger(24)),
                             tail = Tokenize("In chapter 7 the garden met a river and paid 57 coins.");
  const EngineOptions options =
      CompressedAfter({"kvzip format=q4", "kvzip act=residue format=q4", "kvzip", "kvzip act=residue:refit=0",
               "snapkv:window=8", "snapkv:window=8 act=residue"});
  auto engine = MakeDefaultEngine(options);
  const SequenceId base = *engine->NewSequence();
  ASSERT_TRUE(engine->Prefill(base, context));
  const std::vector<float> full = FollowFork(*engine, base, tail);
  std::vector<double> kl;
  for (const Recipe& recipe : options.later_recipes) {
    const SequenceId fork = *engine->Fork(base);
    const CompressTarget target{fork, 0.1};
    const auto kept = engine->CompressForks(base, recipe, {&target, 1});
    ASSERT_TRUE(kept) << kept.error().message;
    EXPECT_LE(engine->KeptBytes(fork), 0.1001) << recipe.text;
    EXPECT_GE(engine->KeptBytes(fork), 0.095) << recipe.text;
    const std::vector<int32_t> positions = engine->EntryPositions(fork, 3, 1);
    EXPECT_TRUE(std::is_sorted(positions.begin(), positions.end()));
    EXPECT_EQ(std::adjacent_find(positions.begin(), positions.end()), positions.end());
    kl.push_back(MeanKl(full, Follow(*engine, fork, tail)));
    engine->Free(fork);
  }
  for (size_t i = 0; i < kl.size(); ++i) std::printf("KL %s %.4f\n", options.later_recipes[i].text.c_str(), kl[i]);
  for (size_t i = 0; i < kl.size(); i += 2) EXPECT_LT(kl[i + 1], 0.7 * kl[i]) << options.later_recipes[i].text;
  EXPECT_EQ(Follow(*engine, base, tail), full) << "the source is as it was";
}

// The same entries stay as without, in as many bytes, and lose less.
TEST(ModelRepeat, EntriesThatSpeakForOthersLoseLess) {
  const std::vector<int32_t> context = Tokenize(Ledger(24)),
                             tail = Tokenize("In chapter 7 the garden met a river and paid 57 coins.");
  const EngineOptions options = CompressedAfter({"kvzip_uniform", "kvzip_uniform act=match", "kvzip_uniform format=q8",
                                                 "kvzip_uniform act=match format=q8", "snapkv:window=8",
                                                 "snapkv:window=8 act=match:steps=2,bias=0,value=0"});
  auto engine = MakeDefaultEngine(options);
  const SequenceId base = *engine->NewSequence();
  ASSERT_TRUE(engine->Prefill(base, context));
  const std::vector<float> full = FollowFork(*engine, base, tail);
  std::vector<double> kl, bytes;
  std::vector<std::vector<int32_t>> held;
  for (const Recipe& recipe : options.later_recipes) {
    const SequenceId fork = *engine->Fork(base);
    const CompressTarget target{fork, 0.2};
    const auto kept = engine->CompressForks(base, recipe, {&target, 1});
    ASSERT_TRUE(kept) << kept.error().message;
    bytes.push_back(engine->KeptBytes(fork));
    held.push_back(engine->EntryPositions(fork, 3, 1));
    kl.push_back(MeanKl(full, Follow(*engine, fork, tail)));
    engine->Free(fork);
  }
  for (size_t i = 0; i < kl.size(); ++i) std::printf("KL %s %.4f\n", options.later_recipes[i].text.c_str(), kl[i]);
  for (size_t i = 0; i < kl.size(); i += 2) {
    SCOPED_TRACE(options.later_recipes[i].text);
    EXPECT_EQ(bytes[i + 1], bytes[i]);
    EXPECT_EQ(held[i + 1], held[i]);
    EXPECT_LT(kl[i + 1], 0.8 * kl[i]);
  }
  EXPECT_EQ(Follow(*engine, base, tail), full) << "the source is as it was";
}

// Compressing again makes them anew; sessions and forks know nothing of them.
TEST(ModelRepeat, EntriesThatStandInAreEntries) {
  const std::vector<int32_t> context = Tokenize(Ledger(16)),
                             tail = Tokenize("In chapter 7 the garden met a river and paid 57 coins.");
  for (const char* const text :
       {"kvzip act=residue", "kvzip act=residue format=q4", "kvzip act=match", "kvzip act=match:keys=fast format=q4"}) {
    SCOPED_TRACE(text);
    const EngineOptions options = CompressedAfter({text});
    auto engine = MakeDefaultEngine(options);
    const SequenceId sequence = *engine->NewSequence();
    ASSERT_TRUE(engine->Prefill(sequence, context));
    ASSERT_TRUE(engine->Compress(sequence, options.later_recipes.front(), 0.1));
    const SequenceId fork = *engine->Fork(sequence);
    const auto saved = engine->SaveToMemory(sequence, {});
    ASSERT_TRUE(saved) << saved.error().message;
    const std::vector<float> expected = Follow(*engine, sequence, tail);
    EXPECT_EQ(Follow(*engine, fork, tail), expected);
    engine->Free(fork);
    const auto restored = engine->RestoreFromMemory(*saved, options);
    ASSERT_TRUE(restored) << restored.error().message;
    EXPECT_EQ(Follow(*engine, restored->sequence, tail), expected);
    engine->Free(restored->sequence);
    const double before = engine->KeptBytes(sequence);
    const auto again = engine->Compress(sequence, options.later_recipes.front(), 0.1);
    ASSERT_TRUE(again) << again.error().message;
    EXPECT_LT(engine->KeptBytes(sequence), 0.5 * before);
    ASSERT_TRUE(engine->Decode(sequence, tail.front()));
  }
}

// Whatever a compression has converted pages to, and by a recipe that the sequence was not made for.
TEST(ModelRepeat, ConvertedSequencesComeBackFromFilesAndMemory) {
  const std::vector<int32_t> context = Tokenize(Ledger(8)), tail = Tokenize("In chapter 7 the garden met a river");
  const std::string path = ::testing::TempDir() + fmt::format("pith_converted_{}", getpid());
  const EngineOptions options = CompressedAfter({});
  auto engine = MakeDefaultEngine(options);
  for (const char* const text :
       {"full format=q8", "full format=q4", "keydiff format=q4/q2", "keydiff format=q2", "keydiff format=bf16/q4",
        "keydiff format=auto:0.6", "full format=comp:ek=1/10,ev=1/5", "keydiff format=comp"}) {
    SCOPED_TRACE(text);
    const SequenceId sequence = *engine->NewSequence();
    ASSERT_TRUE(engine->Prefill(sequence, context));
    const auto kept = engine->Compress(sequence, *ParseRecipe(text), 0.3);
    ASSERT_TRUE(kept) << kept.error().message;
    const double bytes = engine->KeptBytes(sequence);
    const auto saved = engine->SaveToMemory(sequence, {});
    ASSERT_TRUE(saved) << saved.error().message;
    ASSERT_TRUE(engine->Save(sequence, path, {}));
    const std::vector<float> expected = Follow(*engine, sequence, tail);
    engine->Free(sequence);
    for (const bool from_file : {false, true}) {
      const auto restored = from_file ? engine->Restore(path) : engine->RestoreFromMemory(*saved, options);
      ASSERT_TRUE(restored) << restored.error().message;
      EXPECT_EQ(engine->KeptBytes(restored->sequence), bytes);
      EXPECT_EQ(Follow(*engine, restored->sequence, tail), expected);
      engine->Free(restored->sequence);
    }
  }
}

// One recipe for both: a whole prompt is read again, blocks are judged as they come, in the bits that hold most of it.
TEST(ModelRepeat, PithChoosesHowToJudgeAndInWhichFormat) {
  const std::vector<int32_t> context = Tokenize(Ledger(24)),
                             tail = Tokenize("In chapter 7 the garden met a river and paid 57 coins.");
  EngineOptions options =
      CompressedAfter({"pith", "kvzip", "score=kvzip alloc=global act=residue format=q4/q2"});
  {
    auto engine = MakeDefaultEngine(options);
    const SequenceId base = *engine->NewSequence();
    ASSERT_TRUE(engine->Prefill(base, context));
    const std::vector<float> full = FollowFork(*engine, base, tail);
    const auto compress = [&](const Recipe& recipe, double share, double* bytes, double* kl) {
      const SequenceId fork = *engine->Fork(base);
      const CompressTarget target{fork, share};
      const auto kept = engine->CompressForks(base, recipe, {&target, 1});
      EXPECT_TRUE(kept) << kept.error().message;
      *bytes = engine->KeptBytes(fork);
      *kl = MeanKl(full, Follow(*engine, fork, tail));
      engine->Free(fork);
      return kept.value_or(std::vector<double>{0}).front();
    };
    double bytes = 0, kl = 0, kl_f16 = 0;
    EXPECT_EQ(compress(options.later_recipes[0], 0.6, &bytes, &kl), 1.0) << "in 8 bits all of it fits";
    EXPECT_GT(bytes, 0.53);
    EXPECT_NEAR(compress(options.later_recipes[0], 0.2, &bytes, &kl), 0.7, 0.05) << "4 bits";
    EXPECT_LE(bytes, 0.2001);
    compress(options.later_recipes[1], 0.2, &bytes, &kl_f16);
    EXPECT_LT(kl, 0.5 * kl_f16);
    EXPECT_NEAR(compress(options.later_recipes[0], 0.1, &bytes, &kl), 0.35, 0.03) << "4 bits: few are looked at";
    EXPECT_LE(bytes, 0.1001);
    double kl_fewer_bits = 0;
    EXPECT_NEAR(compress(options.later_recipes[2], 0.1, &bytes, &kl_fewer_bits), 0.42, 0.06);
    EXPECT_LT(kl, kl_fewer_bits);
  }
  options.compress = CompressMode::kBlock;
  options.recipe = std::exchange(options.later_recipes, {}).front();
  options.max_sequences = 1;
  options.num_ctx = 1200;
  options.budget_bytes = size_t{6} << 20;
  auto engine = MakeDefaultEngine(options);
  EXPECT_EQ(engine->stats().format.Name(), "q4")
      << "a part of the entries is enough where others stand in for the rest";
  const SequenceId sequence = *engine->NewSequence();
  ASSERT_TRUE(engine->Prefill(sequence, Tokenize(Ledger(48))));
  for (const int32_t token : tail) ASSERT_TRUE(engine->Decode(sequence, token));
  EXPECT_LE(engine->stats().peak_bytes, options.budget_bytes);
  EXPECT_LT(engine->stats().kept_fraction, 1);
  options.budget_bytes = size_t{40} << 20;
  EXPECT_EQ(MakeDefaultEngine(options)->stats().format, PageFormat()) << "nothing is given up that fits";
}

// A prompt that is never whole: each block is repeated before the next one, within the bytes, also from a session.
TEST(ModelRepeat, BlocksAreReadAgainAsTheyCome) {
  const std::vector<int32_t> context = Tokenize(Ledger(30)), tail = Tokenize("In chapter 7 the garden met a river and");
  EngineOptions options;
  options.num_ctx = static_cast<int>(context.size() + tail.size()) + 1;
  options.num_threads = testing::kThreads;
  options.block_tokens = 128;
  const auto read = [&](Engine& engine) {
    const SequenceId id = *engine.NewSequence();
    EXPECT_TRUE(engine.Prefill(id, context));
    return id;
  };
  auto whole = MakeDefaultEngine(options);
  const std::vector<float> full = Follow(*whole, read(*whole), tail);
  const auto kl_of = [&](const std::string& recipe, double share = 0.2) {
    EngineOptions some = options;
    KeepShare(whole->model().info(), *ParseRecipe(recipe), static_cast<int>(context.size()), share, &some);
    some.max_sequences = 2;
    auto engine = MakeDefaultEngine(some);
    const SequenceId id = read(*engine);
    EXPECT_LE(engine->KeptBytes(id), share * 1.0005) << recipe;
    EXPECT_GT(engine->KeptBytes(id), share * 0.9) << recipe;
    const auto saved = engine->SaveToMemory(id, {});
    EXPECT_TRUE(saved) << saved.error().message;
    const auto restored = engine->RestoreFromMemory(*saved, engine->options());
    EXPECT_TRUE(restored) << restored.error().message;
    if (!restored) return 0.0;
    const std::vector<float> followed = Follow(*engine, id, tail);
    EXPECT_EQ(Follow(*engine, restored->sequence, tail), followed) << recipe;
    return MeanKl(full, followed);
  };
  const double by_keys = kl_of("keydiff:recent=16 alloc=ada:alpha=0.5 format=q4");
  for (const char* how : {"blocks", "echo"}) {
    EXPECT_LT(kl_of(fmt::format("score=kvzip:read={} alloc=global format=q4", how)), 0.5 * by_keys) << how;
  }
  const std::string blocks = "score=kvzip:read=blocks alloc=global";
  for (const char* format : {"", " format=q4"}) {
    const double dropped = kl_of(blocks + format, 0.1), stood_for = kl_of(blocks + " act=residue" + format, 0.1);
    std::printf("KL at a tenth%s: %.4f, with entries that stand in %.4f\n", format, dropped, stood_for);
    EXPECT_LT(stood_for, (*format == 0 ? 0.5 : 1) * dropped) << format;
  }
}

TEST(ModelRepeat, RefusesWhatCannotBeReadAgain) {
  EngineOptions options = CompressedAfter({});
  options.recipe = *ParseRecipe("kvzip");
  options.compress = CompressMode::kBlock;
  const auto block = Engine::Create(testing::DefaultModel(), options);
  ASSERT_FALSE(block);
  EXPECT_EQ(
      block.error().message,
      "kvzip needs the whole prompt before it drops anything, so it cannot evict after each block: use it with "
      "--compress after");
  options.recipe = *ParseRecipe("h2o act=match");
  const auto fitted = Engine::Create(testing::DefaultModel(), options);
  ASSERT_FALSE(fitted);
  EXPECT_NE(fitted.error().message.find("h2o act=match needs the whole prompt"), std::string::npos)
      << fitted.error().message;
  options.compress = CompressMode::kAfter;
  options.format = KvFormat::kQ8;
  const auto rounded = Engine::Create(testing::DefaultModel(), options);
  ASSERT_FALSE(rounded);
  EXPECT_EQ(rounded.error().message, "act=match writes entries, which a cache in q8 cannot do: use f16");
  options.format = {};
  options.recipe = *ParseRecipe("kvzip");
  {
    auto engine = MakeDefaultEngine(options);
    const SequenceId filled = *engine->NewSequence();
    ASSERT_TRUE(engine->FillForBenchmark(filled, 64));
    const auto unknown = engine->Compress(filled, options.recipe, 0.5);
    ASSERT_FALSE(unknown);
    EXPECT_EQ(unknown.error().message, "kvzip reads the prompt again, and the tokens of this sequence are not known");
  }
  const std::vector<int32_t> context = Tokenize(Ledger(16));
  options.max_sequences = 1;
  options.budget_bytes = context.size() * 23040 + (size_t{3} << 20);
  auto engine = MakeDefaultEngine(options);
  const SequenceId sequence = *engine->NewSequence();
  ASSERT_TRUE(engine->Prefill(sequence, context));
  const auto tight = engine->Compress(sequence, options.recipe, 0.5);
  ASSERT_FALSE(tight);
  EXPECT_EQ(tight.error().code, ErrorCode::kOutOfBudget);
  EXPECT_NE(tight.error().message.find("not its second reading"), std::string::npos);
  EXPECT_EQ(engine->EntryPositions(sequence, 0, 0).size(), context.size()) << "nothing was dropped";
  EXPECT_LE(engine->stats().peak_bytes, options.budget_bytes);
}

}  // namespace
}  // namespace pith
