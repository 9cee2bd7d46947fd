// The engine on the default model: budget, blocks, forks, formats, determinism.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <iterator>
#include <memory>
#include <set>
#include <span>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "base/crowd.h"
#include "engine/engine.h"
#include "engine/value_projections.h"
#include "host/model.h"
#include "tests/support/default_model.h"
#include "tests/support/kl.h"

namespace pith {
namespace {

using testing::Kl;
using testing::kThreads;

std::shared_ptr<HostModel> Model() { return testing::DefaultModel(); }

// Text enough for a few hundred tokens, varied so that entries differ.
std::vector<int32_t> Tokens(size_t count) {
  static const char* const kThings[] = {"river", "engine", "letter", "garden", "number", "winter", "planet", "copper"};
  std::string text;
  for (int i = 0; text.size() < count * 8; ++i) {
    text += "In chapter " + std::to_string(i) + " the " + kThings[i * 5 % 8] + " met a " + kThings[i * 3 % 7] +
            " and paid " + std::to_string(i * 37 % 101) + " coins. ";
  }
  auto tokens = Model()->Tokenize(text, true, false);
  EXPECT_TRUE(tokens);
  tokens->resize(count);
  return *tokens;
}

EngineOptions Options(const std::string& recipe, size_t budget_bytes = 0, int block_tokens = 0) {
  EngineOptions options;
  options.num_ctx = 4096;
  options.num_threads = kThreads;
  options.budget_bytes = budget_bytes;
  options.block_tokens = block_tokens;
  auto parsed = ParseRecipe(recipe);
  EXPECT_TRUE(parsed) << parsed.error().message;
  options.recipe = *parsed;
  return options;
}

std::unique_ptr<Engine> Make(const EngineOptions& options) {
  auto engine = Engine::Create(Model(), options);
  EXPECT_TRUE(engine) << engine.error().message;
  return engine ? std::move(*engine) : nullptr;
}

// Of a hundred rows or all: a row's takes longer than its token.
double MeanKl(const std::vector<float>& a, const std::vector<float>& b) {
  const size_t vocab = static_cast<size_t>(Model()->info().num_vocab), rows = a.size() / vocab;
  const size_t step = std::max<size_t>(rows / 100, 1);
  double sum = 0, count = 0;
  for (size_t r = rows % step; r < rows; r += step, ++count) {
    sum += Kl({a.data() + r * vocab, vocab}, {b.data() + r * vocab, vocab});
  }
  return sum / count;
}

std::vector<float> PrefillLogits(const EngineOptions& options, const std::vector<int32_t>& tokens) {
  auto engine = Make(options);
  const auto sequence = engine->NewSequence();
  std::vector<float> logits;
  const Status status = engine->Prefill(*sequence, tokens, false, &logits);
  EXPECT_TRUE(status) << status.error().message;
  return logits;
}

// CAKE's cascade: what one selection over all layers keeps of one block, while no more than a few layers' block is
// there beside what stays.
TEST(ModelEngine, ACascadeKeepsWhatOneSelectionKeeps) {
  const std::vector<int32_t> tokens = Tokens(400);
  constexpr int kKeep = 100;
  for (const char* recipe : {"cake sinks=4", "layer_defensivekv sinks=4"}) {
    SCOPED_TRACE(recipe);
    EngineOptions options = Options(recipe, 0, 512);
    options.keep_entries = kKeep;
    auto cascade = Make(options);
    options.keep_entries = 0;
    options.compress = CompressMode::kAfter;
    auto whole = Make(options);
    const SequenceId ours = *cascade->NewSequence(), theirs = *whole->NewSequence();
    ASSERT_TRUE(cascade->Prefill(ours, tokens));
    ASSERT_TRUE(whole->Prefill(theirs, tokens));
    ASSERT_TRUE(
        whole->Compress(theirs, options.recipe, static_cast<double>(kKeep) / static_cast<double>(tokens.size())));
    std::set<size_t> sizes;
    size_t num_apart = 0;
    for (int layer = 0; layer < 30; ++layer) {
      for (int head = 0; head < 3; ++head) {
        const std::vector<int32_t> kept = cascade->EntryPositions(ours, layer, head);
        const std::vector<int32_t> wanted = whole->EntryPositions(theirs, layer, head);
        // Shares are rounded to entries, the rests going where there is room: one entry more or less.
        std::vector<int32_t> apart;
        std::ranges::set_symmetric_difference(kept, wanted, std::back_inserter(apart));
        EXPECT_LE(apart.size(), 1U) << layer << " " << head;
        num_apart += apart.size();
        sizes.insert(kept.size());
      }
    }
    EXPECT_LE(num_apart, 9U);
    EXPECT_GT(sizes.size(), 5U) << "shares are equal";
    // Entries at once: what stays between evictions, three layers' block, and a page that is not full in each head.
    const size_t pages = (90 * (kKeep + kKeep / 8) + 3 * 3 * tokens.size()) / kPageEntries + 90;
    const size_t page_bytes = PageLayout::Make(KvFormat::kF16, 64, 64, 0).page_bytes;
    EXPECT_LE(cascade->stats().peak_bytes - cascade->stats().used_bytes + cascade->stats().page_bytes,
              pages * page_bytes);
    EXPECT_GT(whole->stats().peak_bytes - whole->stats().used_bytes + whole->stats().page_bytes, 2 * pages * page_bytes)
        << "the control";
  }
}

// Later blocks: layers to come still hold what they had.
TEST(ModelEngine, ACascadeGoesOnOverBlocks) {
  const size_t budget = size_t{9} << 20;
  for (const char* recipe : {"cake", "layer_defensivekv"}) {
    SCOPED_TRACE(recipe);
    auto engine = Make(Options(recipe, budget, 128));
    const SequenceId sequence = *engine->NewSequence();
    const std::vector<int32_t> tokens = Tokens(500);
    for (size_t at = 0; at < 480; at += 120) ASSERT_TRUE(engine->Prefill(sequence, {tokens.data() + at, 120}));
    for (size_t i = 480; i < tokens.size(); ++i) ASSERT_TRUE(engine->Decode(sequence, tokens[i]));
    EXPECT_LE(engine->stats().peak_bytes, budget);
    const int64_t entries = engine->stats().entries, keep = engine->stats().keep_entries;
    EXPECT_GE(entries, keep * 90 * 9 / 10);
    EXPECT_LE(entries, keep * 90 * 3 / 2);
    for (const float logit : engine->logits(sequence)) ASSERT_TRUE(std::isfinite(logit));
  }
}

TEST(ModelEngine, GenerationStaysInsideTheBudgetForLong) {
  auto engine = Make(Options("knorm", size_t{6} << 20, 32));
  const SequenceId sequence = *engine->NewSequence();
  const std::vector<int32_t> tokens = Tokens(700);
  ASSERT_TRUE(engine->Prefill(sequence, {tokens.data(), 20}));
  for (size_t i = 20; i < tokens.size(); ++i) ASSERT_TRUE(engine->Decode(sequence, tokens[i]));
  const KvStats stats = engine->stats();
  EXPECT_LE(stats.peak_bytes, stats.budget_bytes);
  EXPECT_EQ(stats.entries_seen, 700 * 90);
  EXPECT_LT(stats.entries, stats.entries_seen / 2);
}

TEST(ModelEngine, AnySequenceOfBlocksGivesTheSameResult) {
  const std::vector<int32_t> tokens = Tokens(160);
  const std::vector<float> one = PrefillLogits(Options("full", 0, 256), tokens);
  auto engine = Make(Options("full", 0, 64));
  const SequenceId sequence = *engine->NewSequence();
  std::vector<float> blocks;
  for (size_t at = 0, step = 1; at < tokens.size(); at += step, step = step * 3 % 50 + 1) {
    ASSERT_TRUE(
        engine->Prefill(sequence, std::span(tokens).subspan(at, std::min(step, tokens.size() - at)), false, &blocks));
  }
  ASSERT_EQ(one.size(), blocks.size());
  // Q4_1 weights quantise activations: this is libllama's own noise between block sizes.
  EXPECT_LT(MeanKl(one, blocks), 0.02);
  // The control: a cache without the history is far off.
  EngineOptions forgetful = Options("window:sinks=0", 0, 32);
  forgetful.keep_entries = 8;
  EXPECT_GT(MeanKl(one, PrefillLogits(forgetful, tokens)), 0.1);
}

// CritiPrefill: with room for every block nothing changes, not a bit; with less the answer drifts, the more
// the smaller the budget; the prompt's last segment always sees everything that its layers were given.
TEST(ModelEngine, CritiPrefillSkipsWorkAndNothingElse) {
  const std::vector<int32_t> tokens = Tokens(700);
  const std::vector<float> full = PrefillLogits(Options("full", 0, 256), tokens);
  EXPECT_EQ(full, PrefillLogits(Options("full prefill=criti:segment=128,budget=704,threshold=0", 0, 256), tokens));
  EXPECT_EQ(full, PrefillLogits(Options("full prefill=criti:segment=128,budget=64,threshold=704", 0, 256), tokens));
  double previous = 0;
  for (const int budget : {448, 192, 32}) {
    const std::string recipe = "full prefill=criti:segment=128,threshold=0,skip=0,budget=" + std::to_string(budget);
    const double kl = MeanKl(full, PrefillLogits(Options(recipe, 0, 256), tokens));
    EXPECT_GT(kl, previous) << budget;
    previous = kl;
  }
  EXPECT_GT(previous, 0.02);
}

TEST(ModelEngine, CritiPrefillLeavesOnlyThePromptsEndWhole) {
  const std::vector<int32_t> tokens = Tokens(512);
  const EngineOptions options = Options("full prefill=criti:segment=128,threshold=0,skip=0,budget=32", 0, 128);
  const std::vector<float> once = PrefillLogits(options, tokens);
  // Block by block, each the end of its prompt: every segment sees everything.
  const auto in_pieces = [&](bool continues) {
    auto engine = Make(options);
    const SequenceId sequence = *engine->NewSequence();
    std::vector<float> logits;
    for (size_t at = 0; at < tokens.size(); at += 128) {
      engine->SetPromptContinues(sequence, continues && at + 128 < tokens.size());
      EXPECT_TRUE(engine->Prefill(sequence, std::span(tokens).subspan(at, 128), false, &logits));
    }
    return logits;
  };
  EXPECT_EQ(in_pieces(true), once);
  EXPECT_EQ(in_pieces(false), PrefillLogits(Options("full", 0, 128), tokens));
  EXPECT_NE(once, PrefillLogits(Options("full", 0, 128), tokens));
}

TEST(ModelEngine, CritiPrefillGoesWithEviction) {
  const std::vector<int32_t> tokens = Tokens(1000);
  EngineOptions options = Options("snapkv prefill=criti:segment=64,threshold=0,budget=64", size_t{9} << 20, 128);
  auto engine = Make(options);
  const SequenceId sequence = *engine->NewSequence();
  ASSERT_TRUE(engine->Prefill(sequence, tokens));
  EXPECT_LE(engine->stats().peak_bytes, options.budget_bytes);
  EXPECT_LT(engine->stats().kept_fraction, 1.0);
  for (const float logit : engine->logits(sequence)) ASSERT_TRUE(std::isfinite(logit));
}

// What attention gathers of its own weights selects as what is computed row by row does, which is what a prefill option
// needs even where it skips nothing.
TEST(ModelEngine, GatheredAttentionSelectsAsRowsDo) {
  const std::vector<int32_t> tokens = Tokens(560);
  const auto kept = [&](const std::string& recipe) {
    auto engine = Make(Options(recipe, size_t{9} << 20, 128));
    const SequenceId sequence = *engine->NewSequence();
    EXPECT_TRUE(engine->Prefill(sequence, std::span(tokens).first(552)));
    for (const int32_t token : std::span(tokens).subspan(552)) EXPECT_TRUE(engine->Decode(sequence, token));
    EXPECT_LT(engine->stats().kept_fraction, 0.9);
    std::vector<int32_t> all;
    for (int layer = 0; layer < 30; ++layer) {
      for (int head = 0; head < 3; ++head) {
        for (const int32_t position : engine->EntryPositions(sequence, layer, head))
          all.push_back((layer * 3 + head) * 1000 + position);
      }
    }
    return all;
  };
  const auto common_share = [](const std::vector<int32_t>& a, const std::vector<int32_t>& b) {
    std::vector<int32_t> common;
    std::set_intersection(a.begin(), a.end(), b.begin(), b.end(), std::back_inserter(common));
    return static_cast<double>(common.size()) / static_cast<double>(std::max(a.size(), b.size()));
  };
  std::vector<std::vector<int32_t>> by_rows;
  for (const std::string recipe : {"h2o", "observed", "roco", "score=peak"}) {
    SCOPED_TRACE(recipe);
    by_rows.push_back(kept(recipe));
    EXPECT_GT(common_share(by_rows.back(), kept(recipe + " prefill=criti")), 0.98);
  }
  EXPECT_LT(common_share(by_rows[0], by_rows[1]), 0.95) << "control";
}

TEST(ModelEngine, ProjectionsAreTheSameWhetherTheyAreKept) {
  const auto model = Model();
  ValueProjections some(*model, size_t{1} << 20), all(*model);  // room for two layers
  const LayerShape& shape = model->info().layers[0];
  const auto dim = static_cast<size_t>(shape.value_dim);
  std::vector<float> values(4 * dim);
  for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(i * 37 % 101) - 50;
  const auto norms = [&](ValueProjections& projections, int layer) {
    std::vector<float> out;
    for (const kernels::PackedProjection& projection : projections.Of(layer)) {
      out.resize(out.size() + 4);
      kernels::ProjectedNorms(values.data(), 4, projection, out.data() + out.size() - 4);
    }
    return out;
  };
  std::vector<std::vector<float>> first;
  for (const int layer : {0, 1, 2, 3, 4, 0, 4, 3}) {
    first.push_back(norms(all, layer));
    EXPECT_EQ(first.back(), norms(some, layer)) << layer;
  }
  EXPECT_EQ(first[0].size(), 4 * static_cast<size_t>(shape.num_kv_heads));
  EXPECT_NE(first[0], first[1]);
  EXPECT_EQ(first[0], first[5]);
  EXPECT_EQ(first[4], first[6]);
}

// A machine on which one thread is always faster, and then two again.
class FakeClock final : public StepClock {
 public:
  explicit FakeClock(const Engine* const* engine) : engine_(engine) {}
  double Wall() override { return now_ += 1e-3 * ((*engine_)->decode_threads() == 1 ? 1 : 4); }
  double Cpu() override { return now_ * 1.2; }

 private:
  const Engine* const* engine_;
  double now_ = 0;
};

TEST(ModelEngine, FewerThreadsChangeNoBit) {
  const std::vector<int32_t> tokens = Tokens(420);
  const auto logits = [&](bool adapt, int* switches) {
    EngineOptions options = Options("h2o", size_t{7} << 20, 64);
    options.num_threads = 2;
    options.adapt_threads = adapt;
    const Engine* clocked = nullptr;
    FakeClock clock(&clocked);
    options.clock = &clock;
    Crowd::OfProcess().Settle(0, false);  // whatever the machine was like a moment ago
    auto engine = Make(options);
    clocked = engine.get();
    const SequenceId sequence = *engine->NewSequence();
    EXPECT_TRUE(engine->Prefill(sequence, std::span(tokens).first(340)));
    std::vector<float> all;
    int threads = 2;
    for (const int32_t token : std::span(tokens).subspan(340)) {
      EXPECT_TRUE(engine->Decode(sequence, token));
      *switches += engine->decode_threads() != threads;
      threads = engine->decode_threads();
      const std::span<const float> row = engine->logits(sequence);
      all.insert(all.end(), row.begin(), row.end());
    }
    return all;
  };
  int switches = 0, none = 0;
  EXPECT_EQ(logits(true, &switches), logits(false, &none));
  EXPECT_GE(switches, 3);
  EXPECT_EQ(none, 0);
}

// D2O: merged entries change the answer, and only an f16 cache can take them.
TEST(ModelEngine, MergingChangesKeptEntries) {
  const std::vector<int32_t> tokens = Tokens(300);
  const auto compressed = [&](const std::string& recipe) {
    EngineOptions options = Options("full", 0, 128);
    options.compress = CompressMode::kAfter;
    options.later_recipes = {*ParseRecipe(recipe)};
    options.max_sequences = 2;
    auto engine = Make(options);
    const SequenceId base = *engine->NewSequence();
    EXPECT_TRUE(engine->Prefill(base, std::span(tokens).first(290)));
    const SequenceId fork = *engine->Fork(base);
    const auto kept = engine->Compress(fork, options.later_recipes[0], 0.25);
    EXPECT_TRUE(kept);
    EXPECT_NEAR(*kept, 0.25, 0.01);
    std::vector<float> logits, whole;
    EXPECT_TRUE(engine->Prefill(fork, std::span(tokens).subspan(290), false, &logits));
    EXPECT_TRUE(engine->Prefill(base, std::span(tokens).subspan(290), false, &whole));
    EXPECT_LT(MeanKl(whole, logits), 3.0) << recipe;
    return logits;
  };
  const std::vector<float> dropped = compressed("d2o act=drop"), merged = compressed("d2o");
  EXPECT_NE(dropped, merged);
  EngineOptions low = Options("d2o");
  low.format = KvFormat::kQ8;
  const auto refused = Engine::Create(Model(), low);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().message, "act=merge rewrites keys and values, which a cache in q8 cannot do: use f16");
}

TEST(ModelEngine, ForksAreEqualAndIndependent) {
  EngineOptions options = Options("full");
  options.max_sequences = 2;
  auto engine = Make(options);
  const std::vector<int32_t> tokens = Tokens(64);
  const SequenceId a = *engine->NewSequence();
  ASSERT_TRUE(engine->Prefill(a, {tokens.data(), 60}));
  const size_t before = engine->stats().page_bytes;
  const SequenceId b = *engine->Fork(a);
  EXPECT_EQ(engine->stats().page_bytes, before);
  ASSERT_TRUE(engine->Decode(b, tokens[61]));
  ASSERT_TRUE(engine->Decode(a, tokens[60]));
  const std::vector<float> first(engine->logits(a).begin(), engine->logits(a).end());
  engine->Free(b);
  const SequenceId c = *engine->NewSequence();
  ASSERT_TRUE(engine->Prefill(c, {tokens.data(), 60}));
  ASSERT_TRUE(engine->Decode(c, tokens[60]));
  const auto logits = engine->logits(c);
  EXPECT_EQ(0, std::memcmp(first.data(), logits.data(), logits.size_bytes())) << "the fork has written into its origin";
}

TEST(ModelEngine, BatchedDecodeEqualsOneByOne) {
  EngineOptions options = Options("full");
  options.max_sequences = 2;
  auto engine = Make(options);
  const std::vector<int32_t> tokens = Tokens(80);
  std::vector<SequenceId> ids;
  for (const size_t count : {70u, 33u}) {
    ids.push_back(*engine->NewSequence());
    ASSERT_TRUE(engine->Prefill(ids.back(), {tokens.data(), count}));
  }
  const std::vector<int32_t> next = {tokens[70], tokens[33]};
  ASSERT_TRUE(engine->DecodeBatch(ids, next));
  for (size_t i = 0; i < ids.size(); ++i) {
    const std::vector<float> batched(engine->logits(ids[i]).begin(), engine->logits(ids[i]).end());
    auto alone = Make(Options("full"));
    const SequenceId id = *alone->NewSequence();
    ASSERT_TRUE(alone->Prefill(id, {tokens.data(), i == 0 ? 70u : 33u}));
    ASSERT_TRUE(alone->Decode(id, next[i]));
    EXPECT_LT(Kl(alone->logits(id), batched), 0.02);
  }
}

TEST(ModelEngine, EightBitCacheIsCloseAndSmaller) {
  const std::vector<int32_t> tokens = Tokens(200);
  const std::vector<float> half = PrefillLogits(Options("full"), tokens);
  EngineOptions options = Options("full");
  options.format = KvFormat::kQ8;
  auto engine = Make(options);
  const SequenceId sequence = *engine->NewSequence();
  std::vector<float> logits;
  ASSERT_TRUE(engine->Prefill(sequence, tokens, false, &logits));
  EXPECT_LT(MeanKl(half, logits), 0.03);
  auto full = Make(Options("full"));
  const SequenceId other = *full->NewSequence();
  ASSERT_TRUE(full->Prefill(other, tokens));
  EXPECT_LT(static_cast<double>(engine->stats().page_bytes), 0.6 * static_cast<double>(full->stats().page_bytes));
}

// Formats whose keys are in groups: f16 until a page is full, then small.
TEST(ModelEngine, GroupedCachesAreCloseAndSmaller) {
  const std::vector<int32_t> tokens = Tokens(400);
  const std::vector<float> half = PrefillLogits(Options("full", 0, 128), tokens);
  auto full = Make(Options("full", 0, 128));
  ASSERT_TRUE(full->Prefill(*full->NewSequence(), tokens));
  const auto full_bytes = static_cast<double>(full->stats().page_bytes);
  for (const auto& [format, kl, share] : {std::tuple{PageFormat(KvFormat::kBf16), 0.03, 1.0},
                                          {PageFormat(KvFormat::kQ4), 0.1, 0.45},
                                          {PageFormat(KvFormat::kQ8, KvFormat::kQ4), 0.1, 0.5},
                                          {PageFormat(CodedFormat(16)), 0.1, 0.45},
                                          {PageFormat(KvFormat::kQ3), 0.3, 0.4},
                                          {PageFormat(KvFormat::kQ2), 2.0, 0.35}}) {
    SCOPED_TRACE(format.Name());
    EngineOptions options = Options("full", 0, 128);
    options.format = format;
    auto engine = Make(options);
    const SequenceId sequence = *engine->NewSequence();
    std::vector<float> logits;
    ASSERT_TRUE(engine->Prefill(sequence, tokens, false, &logits));
    EXPECT_LT(MeanKl(half, logits), kl);
    EXPECT_LE(static_cast<double>(engine->stats().page_bytes), share * full_bytes);
    for (int i = 0; i < 40; ++i) ASSERT_TRUE(engine->Decode(sequence, tokens[static_cast<size_t>(i)]));
    EXPECT_EQ(engine->stats().kept_fraction, 1.0);
  }
}

// The budget holds in small formats, while evicting, and they keep more entries.
TEST(ModelEngine, GroupedCachesHoldMoreWithinTheBudget) {
  const std::vector<int32_t> tokens = Tokens(600);
  int former = 0;
  std::vector<std::string> formats;
  for (const KvFormat format : kKvFormats) {
    if (format == KvFormat::kBf16) continue;
    formats.emplace_back(KvFormatName(format));
    if (format == KvFormat::kQ8) formats.emplace_back("comp");
  }
  for (const std::string& format : formats) {
    for (const std::string recipe : {"snapkv", "cake"}) {
      SCOPED_TRACE(recipe + " " + format);
      const EngineOptions options = Options((recipe + " format=" + format).c_str(), size_t{6} << 20, 64);
      auto engine = Make(options);
      const SequenceId sequence = *engine->NewSequence();
      ASSERT_TRUE(engine->Prefill(sequence, tokens));
      for (int i = 0; i < 40; ++i) ASSERT_TRUE(engine->Decode(sequence, tokens[static_cast<size_t>(i)]));
      EXPECT_LE(engine->stats().peak_bytes, engine->stats().budget_bytes);
      if (recipe != "snapkv") continue;
      EXPECT_GT(engine->stats().keep_entries, former);
      former = engine->stats().keep_entries;
    }
  }
}

TEST(ModelEngine, CompressToAFormatKeepsTheShareOfBytes) {
  EngineOptions options = Options("full");
  options.max_sequences = 2;
  for (const char* recipe :
       {"keydiff format=q8", "snapkv format=q4", "adakv format=q4/q2", "adakv format=q2", "adakv format=q8",
        "knorm alloc=global format=q4 sinks=5", "full format=q4", "full format=comp"}) {
    options.later_recipes.push_back(*ParseRecipe(recipe));
  }
  auto engine = Make(options);
  const SequenceId sequence = *engine->NewSequence();
  ASSERT_TRUE(engine->Prefill(sequence, Tokens(500)));
  for (const Recipe& recipe : options.later_recipes) {
    SCOPED_TRACE(recipe.text);
    const SequenceId fork = *engine->Fork(sequence);
    const auto kept = engine->Compress(fork, recipe, 0.2);
    ASSERT_TRUE(kept) << kept.error().message;
    const double bytes = engine->KeptBytes(fork);
    if (recipe.policy->keeps_everything()) {
      EXPECT_EQ(*kept, 1.0);
      EXPECT_LT(bytes, 0.33);
    } else {
      EXPECT_GT(*kept, 0.3);
      EXPECT_LE(bytes, 0.2001);
      EXPECT_GT(bytes, 0.185);
    }
    EXPECT_TRUE(engine->Decode(fork, 5));
    engine->Free(fork);
  }
  EXPECT_LE(engine->stats().peak_bytes, engine->stats().budget_bytes);
}

TEST(ModelEngine, TwoFormatsForOneCacheAreRefused) {
  EngineOptions options = Options("snapkv format=q4");
  options.format = KvFormat::kQ8;
  const auto engine = Engine::Create(Model(), options);
  ASSERT_FALSE(engine);
  EXPECT_EQ(engine.error().code, ErrorCode::kInvalidArgument);
}

TEST(ModelEngine, SameInputsGiveTheSameBits) {
  const std::vector<int32_t> tokens = Tokens(150);
  const EngineOptions options = Options("snapkv", size_t{6} << 20, 64);
  const std::vector<float> a = PrefillLogits(options, tokens), b = PrefillLogits(options, tokens);
  ASSERT_EQ(a.size(), b.size());
  EXPECT_EQ(0, std::memcmp(a.data(), b.data(), a.size() * sizeof(float)));
}

TEST(ModelEngine, CompressKeepsTheShareAskedFor) {
  EngineOptions options = Options("full");
  options.max_sequences = 2;
  for (const char* name : {"knorm", "snapkv", "adakv", "layer-defensivekv", "cake", "h2o"}) {
    options.later_recipes.push_back(*ParseRecipe(name));
  }
  auto engine = Make(options);
  const SequenceId sequence = *engine->NewSequence();
  ASSERT_TRUE(engine->Prefill(sequence, Tokens(300)));
  for (const Recipe& recipe : options.later_recipes) {
    const SequenceId fork = *engine->Fork(sequence);
    const auto kept = engine->Compress(fork, recipe, 0.2);
    ASSERT_TRUE(kept) << kept.error().message;
    EXPECT_NEAR(*kept, 0.2, 0.011) << recipe.text;
    engine->Free(fork);
  }
}

// Forks that are compressed and fed together are what each of them would be alone.
TEST(ModelEngine, ForksCompressedTogetherEqualOneByOne) {
  const std::vector<int32_t> tokens = Tokens(430);
  const std::span<const int32_t> context = std::span(tokens).first(400), tail = std::span(tokens).subspan(400);
  const size_t vocab = static_cast<size_t>(Model()->info().num_vocab);
  for (const char* name : {"snapkv:window=16", "layer-defensivekv:window=16"}) {
    EngineOptions options = Options("full");
    options.compress = CompressMode::kAfter;
    options.max_sequences = 4;
    options.later_recipes = {*ParseRecipe(name)};
    auto engine = Make(options);
    const Recipe& recipe = options.later_recipes.front();
    const SequenceId base = *engine->NewSequence();
    ASSERT_TRUE(engine->Prefill(base, context));
    const SequenceId forks[] = {*engine->Fork(base), *engine->Fork(base)};
    const CompressTarget targets[] = {{forks[0], 0.5}, {forks[1], 0.2}};
    const auto kept = engine->CompressForks(base, recipe, targets);
    ASSERT_TRUE(kept) << kept.error().message;
    EXPECT_EQ(engine->EntryPositions(base, 0, 0).size(), 400u) << "the source stays whole";
    constexpr size_t kFirst = 7;
    std::vector<float> together;
    ASSERT_TRUE(engine->PrefillTogether(forks, tail, kFirst, together));
    ASSERT_EQ(together.size(), 2 * (tail.size() - kFirst) * vocab);
    float apart = 0;  // of half and a fifth
    for (size_t at = 0; at < together.size() / 2; ++at) {
      apart = std::max(apart, std::abs(together[at] - together[together.size() / 2 + at]));
    }
    for (int i = 0; i < 2; ++i) {
      const SequenceId alone = *engine->Fork(base);
      EXPECT_EQ(*engine->Compress(alone, recipe, targets[i].keep_fraction), (*kept)[static_cast<size_t>(i)]);
      std::vector<float> rows;
      ASSERT_TRUE(engine->Prefill(alone, tail, false, &rows));
      for (int layer : {0, 15}) {
        EXPECT_EQ(engine->EntryPositions(alone, layer, 1), engine->EntryPositions(forks[i], layer, 1));
      }
      float worst = 0;
      for (size_t at = kFirst * vocab; at < rows.size(); ++at) {
        const size_t mine = static_cast<size_t>(i) * (tail.size() - kFirst) * vocab + at - kFirst * vocab;
        worst = std::max(worst, std::abs(rows[at] - together[mine]));
      }
      // Quantised products see other batches; the other fork's rows are off by more than that.
      EXPECT_LT(worst, std::min(2.5f, 0.5f * apart));
      engine->Free(alone);
    }
  }
}

// A fork that has read on keeps what it read; a source may shrink itself among its forks.
TEST(ModelEngine, CompressingForksKeepsWhatTheyReadSince) {
  const std::vector<int32_t> tokens = Tokens(230);
  EngineOptions options = Options("full");
  options.compress = CompressMode::kAfter;
  options.max_sequences = 2;
  options.later_recipes = {*ParseRecipe("keydiff")};
  auto engine = Make(options);
  const SequenceId base = *engine->NewSequence();
  ASSERT_TRUE(engine->Prefill(base, std::span(tokens).first(200)));
  const SequenceId fork = *engine->Fork(base);
  ASSERT_TRUE(engine->Prefill(fork, std::span(tokens).subspan(200)));
  const CompressTarget targets[] = {{base, 0.25}, {fork, 0.5}};
  const auto kept = engine->CompressForks(base, options.later_recipes.front(), targets);
  ASSERT_TRUE(kept) << kept.error().message;
  EXPECT_NEAR((*kept)[0], 0.25, 0.01);
  EXPECT_NEAR((*kept)[1], 0.5, 0.01);
  const std::vector<int32_t> positions = engine->EntryPositions(fork, 3, 2);
  ASSERT_EQ(positions.size(), 130u);
  for (int i = 0; i < 30; ++i) EXPECT_EQ(positions[100 + static_cast<size_t>(i)], 200 + i);
  EXPECT_EQ(engine->EntryPositions(base, 3, 2).size(), 50u);
}

TEST(ModelEngine, RefusesWhatDoesNotFit) {
  auto small = Engine::Create(Model(), Options("snapkv", 100 << 10));
  ASSERT_FALSE(small);
  EXPECT_EQ(small.error().code, ErrorCode::kOutOfBudget);
  auto engine = Make(Options("full"));
  const SequenceId sequence = *engine->NewSequence();
  const Status empty = engine->Prefill(sequence, {});
  ASSERT_FALSE(empty);
  const Status status = engine->Prefill(sequence, std::vector<int32_t>(5000, 5));
  ASSERT_FALSE(status);
  EXPECT_EQ(status.error().code, ErrorCode::kInvalidArgument);
}

TEST(ModelEngine, LayerSharesFromAFileAreFollowedOrRefused) {
  const std::string path = ::testing::TempDir() + "pith_engine_layers.json";
  std::ofstream(path) << "{\"layers\": [3, 1]}";
  const auto refused = Engine::Create(Model(), Options("snapkv alloc=file:" + path));
  ASSERT_FALSE(refused);
  EXPECT_NE(refused.error().message.find("has 2 layers, and this model has 30"), std::string::npos);
  std::ofstream shares(path);
  shares << "{\"layers\": [3";
  for (int l = 1; l < 30; ++l) shares << ", 1";
  shares << "]}";
  shares.close();
  EngineOptions options = Options("full");
  options.later_recipes = {*ParseRecipe("snapkv alloc=file:" + path), *ParseRecipe("snapkv")};
  options.max_sequences = 2;
  auto engine = Make(options);
  const SequenceId sequence = *engine->NewSequence();
  ASSERT_TRUE(engine->Prefill(sequence, Tokens(320)));
  const SequenceId fork = *engine->Fork(sequence);
  const auto kept = engine->Compress(fork, options.later_recipes[0], 0.25);
  ASSERT_TRUE(kept) << kept.error().message;
  EXPECT_NEAR(*kept, 0.25, 0.01);
  std::remove(path.c_str());
}

TEST(ModelEngine, HeadsThatCompeteFreePages) {
  // Entries of an Ada-KV cache are as many as those of SnapKV, spread unevenly over heads; what a head loses
  // must be bytes, not a mask.
  const std::vector<int32_t> tokens = Tokens(1000);
  size_t bytes[2] = {}, full_bytes = 0;
  for (const char* name : {"snapkv", "adakv"}) {
    EngineOptions options = Options("full");
    options.later_recipes = {*ParseRecipe(name)};
    auto engine = Make(options);
    const SequenceId sequence = *engine->NewSequence();
    ASSERT_TRUE(engine->Prefill(sequence, tokens));
    full_bytes = engine->stats().page_bytes;
    const size_t used = engine->stats().used_bytes;
    const auto kept = engine->Compress(sequence, options.later_recipes[0], 0.2);
    ASSERT_TRUE(kept) << kept.error().message;
    EXPECT_NEAR(*kept, 0.2, 0.001);
    const KvStats stats = engine->stats();
    EXPECT_EQ(used - stats.used_bytes, full_bytes - stats.page_bytes);
    bytes[name == std::string("adakv")] = stats.page_bytes;
    // A ragged head wastes at most one page of 32 entries.
    const double page = static_cast<double>(full_bytes) / (90 * 32);  // 1,000 tokens: 32 pages in each of 90 heads
    EXPECT_LE(static_cast<double>(stats.page_bytes), static_cast<double>(stats.entries) / 32 * page + 90 * page);
  }
  EXPECT_LT(bytes[1], full_bytes / 4);
  EXPECT_NEAR(static_cast<double>(bytes[1]) / static_cast<double>(bytes[0]), 1, 0.15);
}

TEST(ModelEngine, AFullCacheThatMayNotEvictSaysSo) {
  auto engine = Make(Options("full", size_t{6} << 20, 64));
  const SequenceId sequence = *engine->NewSequence();
  const Status status = engine->Prefill(sequence, Tokens(600));
  ASSERT_FALSE(status);
  EXPECT_EQ(status.error().code, ErrorCode::kOutOfBudget);
  EXPECT_LE(engine->stats().peak_bytes, engine->stats().budget_bytes);
}

}  // namespace
}  // namespace pith
