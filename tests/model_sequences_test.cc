// Many sequences in one engine, each with its own recipe, format and bytes: what one does must not be seen by another.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <fstream>
#include <map>
#include <memory>
#include <random>
#include <span>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "engine/engine.h"
#include "host/model.h"
#include "host/sampler.h"
#include "tests/support/default_model.h"
#include "tests/support/kl.h"

namespace pith {
namespace {

using testing::Kl;
using testing::kThreads;

std::shared_ptr<HostModel> Model() { return testing::DefaultModel(); }

// Text of its own for each seed.
std::vector<int32_t> Tokens(size_t count, unsigned seed) {
  static const char* const kThings[] = {"river", "engine", "letter", "garden", "number", "winter", "planet", "copper"};
  std::string text;
  for (unsigned i = seed * 13; text.size() < count * 8; ++i) {
    text += "In chapter " + std::to_string(i) + " the " + kThings[i * 5 % 8] + " met a " + kThings[(i * 3 + seed) % 7] +
            " and paid " + std::to_string(i * 37 % 101) + " coins. ";
  }
  auto tokens = Model()->Tokenize(text, true, false);
  EXPECT_TRUE(tokens);
  tokens->resize(count);
  return *tokens;
}

EngineOptions Many(int num_sequences, size_t budget_bytes, int block_tokens = 64) {
  EngineOptions options;
  options.num_ctx = 2048;
  options.num_threads = kThreads;
  options.adapt_threads = false;
  options.budget_bytes = budget_bytes;
  options.block_tokens = block_tokens;
  options.max_sequences = num_sequences;
  return options;
}

std::unique_ptr<Engine> Make(const EngineOptions& options) {
  auto engine = Engine::Create(Model(), options);
  EXPECT_TRUE(engine) << engine.error().message;
  return engine ? std::move(*engine) : nullptr;
}

SequenceOptions With(const std::string& recipe, PageFormat format = {}) {
  SequenceOptions options;
  auto parsed = ParseRecipe(recipe);
  EXPECT_TRUE(parsed) << parsed.error().message;
  options.recipe = *parsed;
  options.format = format;
  options.seed = 5;
  return options;
}

// One item of a step, and the logits after it.
std::vector<float> StepOne(Engine& engine, SequenceId id, std::span<const int32_t> tokens) {
  const StepItem item{.sequence = id, .tokens = tokens};
  Status status;
  engine.Step({&item, 1}, {&status, 1});
  EXPECT_TRUE(status) << status.error().message;
  const std::span<const float> logits = engine.logits(id);
  return {logits.begin(), logits.end()};
}

std::vector<std::vector<int32_t>> Positions(const Engine& engine, SequenceId id) {
  std::vector<std::vector<int32_t>> all;
  for (int layer = 0; layer < 30; ++layer) {
    for (int head = 0; head < 3; ++head) all.push_back(engine.EntryPositions(id, layer, head));
  }
  return all;
}

// Entries that both keep, as a share.
double Common(const std::vector<std::vector<int32_t>>& a, const std::vector<std::vector<int32_t>>& b) {
  size_t common = 0, most = 0;
  for (size_t h = 0; h < a.size(); ++h) {
    std::vector<int32_t> both;
    std::ranges::set_intersection(a[h], b[h], std::back_inserter(both));
    common += both.size();
    most += std::max(a[h].size(), b[h].size());
  }
  return static_cast<double>(common) / static_cast<double>(most);
}

struct Kind {
  const char* recipe;
  PageFormat format;
};
const Kind kKinds[] = {{"full", {}},           {"snapkv", {}},
                       {"h2o", KvFormat::kQ8}, {"keydiff format=q4", {}},
                       {"adakv", {}},          {"expectedattention", {}},
                       {"cake", {}},           {"full", KvFormat::kQ4}};
constexpr size_t kNumKinds = std::size(kKinds);
constexpr size_t kShare = size_t{9} << 19;
// Moments of queries and their copy are more than half of it.
size_t CeilingOf(size_t kind) {
  if (kind == 0) return 3 * kShare;
  return std::string_view(kKinds[kind].recipe) == "expectedattention" ? 2 * kShare : kShare;
}

// Eight recipes and formats in one engine, prompts and tokens mixed at random, forked, saved and freed in between: each
// sequence keeps what it keeps alone, and says the same within the noise of quantised products.
TEST(ModelSequences, EightKindsMixedAreWhatEachIsAlone) {
  constexpr size_t kLength = 280;
  auto engine = Make(Many(10, size_t{110} << 20));
  std::vector<SequenceId> ids;
  std::vector<std::vector<int32_t>> texts;
  std::vector<size_t> read(kNumKinds, 0);
  for (size_t k = 0; k < kNumKinds; ++k) {
    SequenceOptions options = With(kKinds[k].recipe, kKinds[k].format);
    options.ceiling_bytes = CeilingOf(k);
    const auto made = engine->NewSequence(options);
    ASSERT_TRUE(made) << kKinds[k].recipe << ": " << made.error().message;
    ids.push_back(*made);
    texts.push_back(Tokens(kLength, static_cast<unsigned>(k)));
  }
  std::mt19937 random(7);
  std::vector<std::vector<float>> last(kNumKinds);
  std::vector<std::vector<size_t>> pieces(kNumKinds);  // that each was read in
  const auto left = [&](size_t k) { return kLength - read[k]; };
  for (int step = 0; std::ranges::any_of(read, [](size_t n) { return n < kLength; }); ++step) {
    ASSERT_LT(step, 10000);
    std::vector<StepItem> items;
    std::vector<size_t> of;
    size_t rows = 0;
    for (size_t k = 0; k < kNumKinds; ++k) {
      if (left(k) == 0 || random() % 3 == 0) continue;
      const size_t count =
          std::min({left(k), static_cast<size_t>(random() % 2 == 0 ? 1 + random() % 40 : 1), 64 - rows});
      if (count == 0) continue;
      items.push_back({.sequence = ids[k], .tokens = std::span(texts[k]).subspan(read[k], count)});
      of.push_back(k);
      rows += count;
    }
    if (items.empty()) continue;
    std::vector<Status> statuses(items.size());
    engine->Step(items, statuses);
    for (size_t i = 0; i < items.size(); ++i) {
      ASSERT_TRUE(statuses[i]) << kKinds[of[i]].recipe << ": " << statuses[i].error().message;
      read[of[i]] += items[i].tokens.size();
      pieces[of[i]].push_back(items[i].tokens.size());
      const std::span<const float> logits = engine->logits(ids[of[i]]);
      last[of[i]].assign(logits.begin(), logits.end());
    }
    if (step % 20 == 7) {  // a fork that goes another way and ends
      const auto fork = engine->Fork(ids[random() % kNumKinds]);
      ASSERT_TRUE(fork) << fork.error().message;
      (void)StepOne(*engine, *fork, std::span(texts[0]).first(3));
      engine->Free(*fork);
    }
    if (step % 25 == 11) {  // one goes to memory and comes back
      const size_t k = random() % kNumKinds;
      SequenceOptions options = With(kKinds[k].recipe, kKinds[k].format);
      options.ceiling_bytes = engine->stats(ids[k]).ceiling_bytes;
      const auto saved = engine->SaveToMemory(ids[k], {});
      ASSERT_TRUE(saved) << saved.error().message;
      engine->Free(ids[k]);
      const auto back = engine->RestoreFromMemory(*saved, options);
      ASSERT_TRUE(back) << back.error().message;
      ids[k] = back->sequence;
    }
    ASSERT_LE(engine->stats().peak_bytes, engine->stats().budget_bytes);
  }
  std::vector<std::vector<std::vector<int32_t>>> kept;
  for (size_t k = 0; k < kNumKinds; ++k) kept.push_back(Positions(*engine, ids[k]));
  double swapped = 0;
  for (size_t k = 0; k < kNumKinds; ++k) {
    SCOPED_TRACE(kKinds[k].recipe);
    auto alone = Make(Many(10, size_t{110} << 20));
    SequenceOptions options = With(kKinds[k].recipe, kKinds[k].format);
    options.ceiling_bytes = CeilingOf(k);
    const SequenceId id = *alone->NewSequence(options);
    std::vector<float> logits;
    size_t at = 0;
    for (const size_t count : pieces[k])
      logits = StepOne(*alone, id, std::span(texts[k]).subspan(at, count)), at += count;
    // What a last bit turns over in one eviction, later ones go on from.
    EXPECT_GT(Common(kept[k], Positions(*alone, id)), 0.85);
    // Few bits make more of the last bit of a product.
    const bool few_bits =
        kKinds[k].format == PageFormat(KvFormat::kQ4) || std::string(kKinds[k].recipe).ends_with("q4");
    EXPECT_LT(Kl(logits, last[k]), few_bits ? 0.2 : 0.05);
    swapped = std::max(swapped, Kl(logits, last[(k + 1) % kNumKinds]));
  }
  EXPECT_GT(swapped, 0.5) << "control: another sequence's logits";
  EXPECT_LT(Common(kept[1], kept[4]), 0.9) << "control: another recipe keeps others";
}

class FailsOnce final : public StepFaults {
 public:
  bool FailsAt(int32_t sequence, int layer) override { return sequence == victim && layer == at_layer; }
  int32_t victim = -1;
  int at_layer = -1;
};

// Three sequences, one of which fails in some layer: the others' bits are those of a step in which nothing failed.
TEST(ModelSequences, AFailureInAnyLayerConcernsItsOwnSequence) {
  const std::vector<int32_t> texts[] = {Tokens(90, 1), Tokens(90, 2), Tokens(90, 3)};
  for (const char* recipe : {"full", "snapkv"}) {
    SCOPED_TRACE(recipe);
    std::vector<float> expected[3];
    std::vector<float> after;  // of the victim, in a next step
    for (const int layer : {-1, 0, 1, 14, 29}) {  // -1: nothing fails
      SCOPED_TRACE(layer);
      FailsOnce faults;
      EngineOptions options = Many(3, size_t{40} << 20);
      options.faults = &faults;
      auto engine = Make(options);
      SequenceId ids[3];
      for (int i = 0; i < 3; ++i) {
        ids[i] = *engine->NewSequence(With(i == 1 ? recipe : "keydiff"));
        (void)StepOne(*engine, ids[i], std::span(texts[i]).first(60));
      }
      const size_t used = engine->stats().used_bytes;
      faults.victim = ids[1];
      faults.at_layer = layer;
      const StepItem items[] = {{ids[0], std::span(texts[0]).subspan(60, 1)},
                                {ids[1], std::span(texts[1]).subspan(60, 20)},
                                {ids[2], std::span(texts[2]).subspan(60, 9)}};
      Status statuses[3];
      engine->Step(items, statuses);
      faults.victim = -1;
      for (int i = 0; i < 3; ++i) {
        if (i == 1) continue;
        ASSERT_TRUE(statuses[i]);
        const std::span<const float> logits = engine->logits(ids[i]);
        if (layer < 0) expected[i].assign(logits.begin(), logits.end());
        EXPECT_EQ(0, std::memcmp(expected[i].data(), logits.data(), logits.size_bytes())) << i;
      }
      if (layer < 0) {
        ASSERT_TRUE(statuses[1]);
        continue;
      }
      ASSERT_FALSE(statuses[1]);
      // As it was: the same tokens give the same, now that nothing fails.
      EXPECT_EQ(engine->num_tokens(ids[1]), 60);
      const std::vector<float> again = StepOne(*engine, ids[1], items[1].tokens);
      if (after.empty()) after = again;
      EXPECT_EQ(after, again);
      engine->Free(ids[1]);
      EXPECT_LE(engine->stats().used_bytes, used);
      ASSERT_TRUE(engine->NewSequence(With("snapkv"))) << "its place and bytes are free again";
    }
  }
}

// A sequence that may drop nothing fills its own bytes and no others'.
TEST(ModelSequences, AFullSequenceLeavesOthersTheirs) {
  auto engine = Make(Many(2, size_t{16} << 20));
  const SequenceId greedy = *engine->NewSequence(With("full"));
  const SequenceId small = *engine->NewSequence(With("keydiff"));
  const std::vector<int32_t> text = Tokens(900, 1);
  size_t at = 0;
  Status status;
  for (; at < text.size() && status; at += 60) {
    const StepItem item{greedy, std::span(text).subspan(at, 60)};
    engine->Step({&item, 1}, {&status, 1});
  }
  ASSERT_FALSE(status);
  EXPECT_EQ(status.error().code, ErrorCode::kOutOfBudget);
  EXPECT_EQ(status.error().message.find("is lost"), std::string::npos) << "the step was refused before it began";
  const int tokens = engine->num_tokens(greedy);
  for (size_t i = 0; i + 60 <= text.size(); i += 60) (void)StepOne(*engine, small, std::span(text).subspan(i, 60));
  EXPECT_LT(engine->stats(small).kept_fraction, 0.9);
  EXPECT_EQ(engine->num_tokens(greedy), tokens);
  EXPECT_FALSE(StepOne(*engine, greedy, std::span(text).first(1)).empty()) << "what fits is read";
  EXPECT_LE(engine->stats().peak_bytes, engine->stats().budget_bytes);
}

// Bytes that nobody claims are lent, and given back when somebody does.
TEST(ModelSequences, BorrowedBytesAreGivenBack) {
  auto engine = Make(Many(2, size_t{20} << 20));
  const std::vector<int32_t> text = Tokens(1200, 1);
  SequenceOptions borrower = With("keydiff");
  const size_t share = engine->stats(*engine->NewSequence(borrower)).floor_bytes;
  engine->Free(0);
  borrower.floor_bytes = share / 2;
  borrower.ceiling_bytes = share * 3 / 2;
  const SequenceId first = *engine->NewSequence(borrower);
  ASSERT_TRUE(engine->Prefill(first, text));
  const SequenceStats before = engine->stats(first);
  EXPECT_GT(before.used_bytes, share * 11 / 10);
  const auto second = engine->NewSequence(With("snapkv"));
  ASSERT_TRUE(second) << second.error().message;
  EXPECT_LE(engine->stats(first).used_bytes, engine->stats(first).floor_bytes);
  EXPECT_LT(engine->stats(first).entries, before.entries);
  ASSERT_TRUE(engine->Prefill(*second, text));
  for (int i = 0; i < 60; ++i) {
    const SequenceId ids[] = {first, *second};
    const int32_t tokens[] = {text[static_cast<size_t>(i)], text[static_cast<size_t>(i) + 1]};
    ASSERT_TRUE(engine->DecodeBatch(ids, tokens));
  }
  EXPECT_LE(engine->stats().peak_bytes, engine->stats().budget_bytes);
  engine->Free(*second);
  ASSERT_TRUE(engine->Prefill(first, std::span(text).first(600)));
  EXPECT_GT(engine->stats(first).used_bytes, share) << "nobody claims them any more";
}

TEST(ModelSequences, AdmissionSaysWhatAPromptTakes) {
  auto engine = Make(Many(2, size_t{24} << 20));
  const auto full = engine->Admit(With("full"), 300), dropping = engine->Admit(With("snapkv"), 2000);
  ASSERT_TRUE(full && dropping);
  EXPECT_TRUE(full->fits && dropping->fits);
  const SequenceId id = *engine->NewSequence(With("full"));
  ASSERT_TRUE(engine->Prefill(id, Tokens(300, 1)));
  const size_t used = engine->stats(id).used_bytes;
  EXPECT_GE(full->steady_bytes, used);
  EXPECT_LE(static_cast<double>(full->steady_bytes), 1.1 * static_cast<double>(used));
  EXPECT_FALSE(engine->Admit(With("full"), 1500)->fits);
  EXPECT_GT(engine->Admit(With("full"), 2000)->missing_bytes, 0U);
  EXPECT_FALSE(engine->Admit(With("full"), 5000)) << "beyond the context";
  ASSERT_TRUE(engine->NewSequence(With("snapkv")));
  EXPECT_FALSE(engine->Admit(With("snapkv"), 10)->fits) << "all places are taken";
  EXPECT_FALSE(engine->NewSequence(With("snapkv")));
}

// In full pages of few bits as in f16.
TEST(ModelSequences, AdmittedBytesHoldThePrompt) {
  const std::vector<int32_t> text = Tokens(330, 1);
  for (const PageFormat format : {PageFormat(), PageFormat(KvFormat::kQ8), PageFormat(KvFormat::kQ4)}) {
    SCOPED_TRACE(format.Name());
    auto engine = Make(Many(2, size_t{40} << 20));
    SequenceOptions options = With("full", format);
    const auto admission = engine->Admit(options, text.size());
    ASSERT_TRUE(admission) << admission.error().message;
    options.floor_bytes = options.ceiling_bytes = admission->steady_bytes;
    const auto id = engine->NewSequence(options);
    ASSERT_TRUE(id) << id.error().message;
    const Status read = engine->Prefill(*id, text);
    ASSERT_TRUE(read) << read.error().message;
    EXPECT_LE(engine->stats(*id).used_bytes, admission->steady_bytes);
    Status more;
    for (int i = 0; i < 100 && more; ++i) more = engine->Decode(*id, text[static_cast<size_t>(i)]);
    EXPECT_FALSE(more) << "no more than these bytes";
    EXPECT_LE(engine->stats(*id).used_bytes, admission->steady_bytes);
  }
}

TEST(ModelSequences, MemoryAndBackGivesTheSameBits) {
  const std::vector<int32_t> text = Tokens(300, 4);
  for (const char* recipe : {"snapkv", "h2o format=q8", "full format=q4"}) {
    SCOPED_TRACE(recipe);
    auto engine = Make(Many(2, size_t{24} << 20));
    const SequenceId id = *engine->NewSequence(With(recipe));
    ASSERT_TRUE(engine->Prefill(id, std::span(text).first(250)));
    const std::vector<float> now(engine->logits(id).begin(), engine->logits(id).end());
    const auto saved = engine->SaveToMemory(id, {.tokens = {1, 2}, .text = "note"});
    ASSERT_TRUE(saved) << saved.error().message;
    const std::vector<float> next = StepOne(*engine, id, std::span(text).subspan(250, 1));
    engine->Free(id);
    const auto back = engine->RestoreFromMemory(*saved, With(recipe));
    ASSERT_TRUE(back) << back.error().message;
    EXPECT_EQ(back->note.text, "note");
    const std::span<const float> logits = engine->logits(back->sequence);
    EXPECT_EQ(now, std::vector<float>(logits.begin(), logits.end()));
    EXPECT_EQ(next, StepOne(*engine, back->sequence, std::span(text).subspan(250, 1)));
    std::vector<std::byte> damaged = *saved;
    damaged[damaged.size() / 2] ^= std::byte{4};
    EXPECT_FALSE(engine->RestoreFromMemory(damaged, With(recipe)));
    EXPECT_FALSE(engine->RestoreFromMemory(*saved, With("keydiff"))) << "another recipe";
  }
}

// Again and again, with other recipes and formats, and a part alone.
TEST(ModelSequences, CompressionMayBeRepeatedAndPartial) {
  const std::vector<int32_t> text = Tokens(600, 1);
  auto engine = Make(Many(2, size_t{60} << 20, 128));
  SequenceOptions options = With("full");
  options.keep_queries = 64;
  const SequenceId id = *engine->NewSequence(options);
  ASSERT_TRUE(engine->Prefill(id, text));
  const auto part = engine->CompressPart(id, *ParseRecipe("keydiff"), 0.25, 100, 300);
  ASSERT_TRUE(part) << part.error().message;
  EXPECT_NEAR(*part, 0.25, 0.02);
  const std::vector<std::vector<int32_t>> positions = Positions(*engine, id);
  for (const std::vector<int32_t>& head : positions) {
    for (int32_t position = 0; position < 600; ++position) {
      if (position >= 100 && position < 300) continue;
      ASSERT_TRUE(std::ranges::binary_search(head, position)) << position;
    }
  }
  size_t bytes = engine->stats(id).used_bytes;
  for (const char* recipe : {"snapkv", "keydiff format=q8", "adakv format=q4", "pith", "knorm format=q4/q2"}) {
    SCOPED_TRACE(recipe);
    const auto kept = engine->Compress(id, *ParseRecipe(recipe), 0.6);
    if (std::string(recipe) == "pith") {  // reads again, and its tokens were not noted
      ASSERT_FALSE(kept);
      continue;
    }
    ASSERT_TRUE(kept) << kept.error().message;
    EXPECT_LE(engine->stats(id).used_bytes, bytes);
    bytes = engine->stats(id).used_bytes;
    for (const float logit : StepOne(*engine, id, std::span(text).first(1))) ASSERT_TRUE(std::isfinite(logit));
  }
  const auto merged = engine->Compress(id, *ParseRecipe("score=keydiff act=merge"), 0.5);
  ASSERT_FALSE(merged) << "entries of few bits cannot be rewritten";
  EXPECT_NE(merged.error().message.find("needs an f16 cache, and this one is q4/q2"), std::string::npos)
      << merged.error().message;
  const auto refused = engine->Compress(id, *ParseRecipe("h2o"), 0.5);
  ASSERT_FALSE(refused);
  EXPECT_NE(refused.error().message.find("name the recipe when the sequence is made"), std::string::npos);
  EXPECT_FALSE(engine->CompressPart(id, *ParseRecipe("keydiff"), 0.5, 300, 100));
  EXPECT_FALSE(engine->CompressPart(id, *ParseRecipe("keydiff"), 1.5, 100, 300));
}

// The second time found pages of few bits where it took f16 for granted, and ended the process.
TEST(ModelSequences, FormatAutoMayBeRepeated) {
  const std::vector<int32_t> text = Tokens(400, 2);
  auto engine = Make(Many(1, size_t{40} << 20, 128));
  const SequenceId id = *engine->NewSequence(With("full"));
  ASSERT_TRUE(engine->Prefill(id, text));
  double bytes = engine->KeptBytes(id);
  for (const double share : {0.8, 0.5, 0.5, 0.1, 1.0}) {
    SCOPED_TRACE(share);
    const auto kept = engine->Compress(id, *ParseRecipe("keydiff format=auto"), share);
    ASSERT_TRUE(kept) << kept.error().message;
    EXPECT_LE(engine->KeptBytes(id), bytes);
    bytes = engine->KeptBytes(id);
    for (const float logit : StepOne(*engine, id, std::span(text).first(1))) ASSERT_TRUE(std::isfinite(logit));
    bytes = std::max(bytes, engine->KeptBytes(id));  // with the new entry
  }
  EXPECT_LT(bytes, 0.15) << "of what f16 would take";
}

// They were noted before their rows were read.
TEST(ModelSequences, PinsAreThoseOfRowsThatWereRead) {
  FailsOnce faults;
  EngineOptions options = Many(1, size_t{20} << 20);
  options.faults = &faults;
  auto engine = Make(options);
  const std::vector<int32_t> text = Tokens(60, 1);
  const SequenceId id = *engine->NewSequence(With("snapkv"));
  const auto step = [&](size_t from, size_t count) {
    const StepItem item{.sequence = id, .tokens = std::span(text).subspan(from, count), .pin = true};
    Status status;
    engine->Step({&item, 1}, {&status, 1});
    return status;
  };
  faults.victim = id;
  faults.at_layer = 7;
  EXPECT_FALSE(step(0, 20));
  EXPECT_EQ(engine->stats(id).num_pinned, 0);
  faults.victim = -1;
  EXPECT_TRUE(step(0, 20));
  EXPECT_EQ(engine->stats(id).num_pinned, 20) << "the control";
  engine->Cancel(id);
  EXPECT_FALSE(step(20, 20));
  EXPECT_EQ(engine->stats(id).num_pinned, 20);
}

// From another thread, within a step: the other sequence's bits do not change.
TEST(ModelSequences, CancelEndsOneSequenceWithinAStep) {
  const std::vector<int32_t> text = Tokens(600, 1);
  EngineOptions options = Many(2, size_t{60} << 20, 512);
  const auto run = [&](bool cancels) {
    auto engine = Make(options);
    const SequenceId stays = *engine->NewSequence(With("full")), goes = *engine->NewSequence(With("snapkv"));
    (void)StepOne(*engine, stays, std::span(text).first(50));
    const StepItem items[] = {{stays, std::span(text).subspan(50, 1)}, {goes, std::span(text).first(500)}};
    Status statuses[2];
    std::thread other([&] {
      if (cancels) engine->Cancel(goes);
    });
    engine->Step(items, statuses);
    other.join();
    EXPECT_TRUE(statuses[0]);
    if (cancels) {
      // Before the step began, within it, or not in time.
      EXPECT_TRUE(statuses[1] || statuses[1].error().code == ErrorCode::kCancelled);
    }
    const std::span<const float> logits = engine->logits(stays);
    return std::vector<float>(logits.begin(), logits.end());
  };
  const std::vector<float> undisturbed = run(false), beside = run(true);
  EXPECT_LT(Kl(undisturbed, beside), 0.02);
  // All of a step: it ends at once.
  auto engine = Make(options);
  const SequenceId alone = *engine->NewSequence(With("snapkv"));
  engine->Cancel(alone);
  const Status status = engine->Prefill(alone, std::span(text).first(500));
  ASSERT_FALSE(status);
  EXPECT_EQ(status.error().code, ErrorCode::kCancelled);
}

TEST(ModelSequences, BadItemsAreRefusedOneByOne) {
  auto engine = Make(Many(3, size_t{30} << 20));
  const std::vector<int32_t> text = Tokens(120, 1), wrong = {-1}, unknown = {1 << 28};
  const SequenceId a = *engine->NewSequence(With("full")), b = *engine->NewSequence(With("snapkv"));
  const StepItem items[] = {{a, std::span(text).first(30)},
                            {77, std::span(text).first(1)},
                            {b, {}},
                            {b, wrong},
                            {b, unknown},
                            {a, std::span(text).first(1)},
                            {b, std::span(text).first(60)},
                            {b, std::span(text).first(20)}};
  std::vector<Status> statuses(std::size(items));
  engine->Step(items, statuses);
  EXPECT_TRUE(statuses[0]);
  for (size_t i = 1; i < std::size(items); ++i) {
    ASSERT_FALSE(statuses[i]) << i;
    EXPECT_EQ(statuses[i].error().code, ErrorCode::kInvalidArgument) << i;
  }
  EXPECT_EQ(engine->num_tokens(a), 30);
  EXPECT_EQ(engine->num_tokens(b), 0);
  SequenceOptions tiny = With("snapkv");
  tiny.ceiling_bytes = 1000;
  EXPECT_FALSE(engine->NewSequence(tiny));
  // More tokens than a block has rows.
  const std::vector<SequenceId> many(100, a);
  const std::vector<int32_t> tokens(100, 5);
  EXPECT_FALSE(engine->DecodeBatch(many, tokens));
}

// What callers may get wrong gets an answer.
TEST(ModelSequences, NamesAndCountsThatAreWrongAreAnswered) {
  auto engine = Make(Many(2, size_t{30} << 20));
  const std::vector<int32_t> text = Tokens(20, 1);
  const SequenceId id = *engine->NewSequence(With("full"));
  for (const SequenceId none : {-1, 1, 77}) {
    EXPECT_EQ(engine->num_tokens(none), 0);
    EXPECT_TRUE(engine->logits(none).empty());
    EXPECT_EQ(engine->stats(none).used_bytes, 0U);
    EXPECT_EQ(engine->KeptBytes(none), 0);
    EXPECT_TRUE(engine->EntryPositions(none, 0, 0).empty());
    engine->SetEviction(none, false);
    engine->SetPromptContinues(none, true);
    engine->Cancel(none);
    engine->Free(none);
    EXPECT_FALSE(engine->Fork(none));
    EXPECT_FALSE(engine->SetBudget(none, 0, 0));
    EXPECT_FALSE(engine->Prefill(none, text));
    EXPECT_FALSE(engine->Decode(none, 5));
    EXPECT_FALSE(engine->SaveToMemory(none, {}));
    EXPECT_FALSE(engine->Compress(none, *ParseRecipe("keydiff"), 0.5));
    EXPECT_FALSE(engine->FillForBenchmark(none, 10));
    EXPECT_FALSE(engine->AttentionOutputs(id, none, 0, 1));
  }
  EXPECT_TRUE(engine->EntryPositions(id, 30, 0).empty());
  EXPECT_TRUE(engine->EntryPositions(id, 0, 3).empty());
  EXPECT_TRUE(engine->EntryPositions(id, -1, -1).empty());
  EXPECT_FALSE(engine->FillForBenchmark(id, -10));
  const StepItem items[] = {{id, text}, {id, text}};
  Status few;
  engine->Step(items, {&few, 1});
  ASSERT_FALSE(few);
  EXPECT_EQ(engine->num_tokens(id), 0);
  engine->Step(std::span(items).first(1), {});
  EXPECT_EQ(engine->num_tokens(id), 0);
  const SequenceId ids[] = {id};
  EXPECT_FALSE(engine->DecodeBatch(ids, text));

  const auto plain =
      PlainContext::Create(*Model(), {.num_ctx = 64, .block_tokens = 32, .num_threads = 1, .max_sequences = 2});
  ASSERT_TRUE(plain) << plain.error().message;
  EXPECT_TRUE((*plain)->logits().empty());
  EXPECT_FALSE((*plain)->Decode(2, text));
  EXPECT_FALSE((*plain)->Decode(-1, text));
  EXPECT_FALSE((*plain)->DecodeBatch(std::span(text).first(3)));
  EXPECT_FALSE((*plain)->FillForBenchmark(0, 10)) << "it was not made for that";
  EXPECT_TRUE((*plain)->Decode(1, text));
  EXPECT_FALSE((*plain)->logits().empty());
  const auto sampler = HostSampler::Create(*Model(), {});
  ASSERT_TRUE(sampler);
  EXPECT_FALSE((*sampler)->Sample({}));
  EXPECT_FALSE((*sampler)->Sample((*plain)->logits().first(7)));
}

// Equal shares leave nothing over, and a recipe with more columns takes more for its rows in flight: its share is
// smaller then.
TEST(ModelSequences, TheLastPlaceIsThereForAnyRecipe) {
  for (const char* recipe : {"h2o", "expectedattention", "layer_defensivekv"}) {
    SCOPED_TRACE(recipe);
    auto engine = Make(Many(3, size_t{40} << 20));
    for (int i = 0; i < 2; ++i) ASSERT_TRUE(engine->NewSequence(With("keydiff")));
    const auto last = engine->NewSequence(With(recipe));
    ASSERT_TRUE(last) << last.error().message;
    EXPECT_FALSE(StepOne(*engine, *last, Tokens(40, 1)).empty());
    EXPECT_LE(engine->stats().peak_bytes, engine->stats().budget_bytes);
  }
}

}  // namespace
}  // namespace pith
