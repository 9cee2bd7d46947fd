// What is taken over from another sequence is what a reading would have left, but for what stood before it there.
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "engine/engine.h"
#include "host/model.h"
#include "tests/support/default_engine.h"
#include "tests/support/random_model.h"

namespace pith::testing {
namespace {

std::vector<int32_t> Tokens(size_t count, unsigned seed) {
  std::vector<int32_t> tokens;
  for (unsigned i = 0; i < count; ++i)
    tokens.push_back(static_cast<int32_t>((i * 37 + i * i / 7 * seed + seed * 11) % 97 + 3));
  return tokens;
}

std::vector<int32_t> Joined(std::initializer_list<std::vector<int32_t>> parts) {
  std::vector<int32_t> all;
  for (const std::vector<int32_t>& part : parts) all.insert(all.end(), part.begin(), part.end());
  return all;
}

double Largest(const std::vector<float>& rows) {
  double most = 0;
  for (const float x : rows) most = std::max<double>(most, std::abs(x));
  return most;
}

// The largest difference of rows [H, entries, D]: of `a` from its entry `first` on, of `b` from its entry `second` on.
double Farthest(const std::vector<float>& a, size_t a_entries, size_t first, const std::vector<float>& b,
                size_t b_entries, size_t second, size_t count, size_t heads) {
  const size_t dim = a.size() / heads / a_entries;
  double most = 0;
  for (size_t h = 0; h < heads; ++h) {
    const float* x = a.data() + (h * a_entries + first) * dim;
    const float* y = b.data() + (h * b_entries + second) * dim;
    for (size_t i = 0; i < count * dim; ++i) most = std::max<double>(most, std::abs(x[i] - y[i]));
  }
  return most;
}

class ModelSplice : public ::testing::Test {
 protected:
  bool Use(const std::string& architecture, const std::string& recipe, PageFormat format = {}, int keep_entries = 0,
           size_t budget_bytes = 0) {
    if (architecture != architecture_) {
      const std::string path = ::testing::TempDir() + fmt::format("pith_splice_{}_{}.gguf", architecture, getpid());
      const Status made = MakeRandomModel(architecture, NeedsExperts(architecture), path, 3);
      EXPECT_TRUE(made) << made.error().message;
      auto model = HostModel::Load(path, HostModelOptions{});
      std::filesystem::remove(path);
      EXPECT_TRUE(model) << model.error().message;
      if (!model) return false;
      model_ = *model, architecture_ = architecture;
    }
    EngineOptions options;
    options.num_ctx = 400;
    options.block_tokens = 48;
    options.num_threads = 2;
    options.max_sequences = 4;
    options.format = format;
    options.keep_entries = keep_entries;
    options.budget_bytes = budget_bytes;
    options.recipe = *ParseRecipe(recipe);
    auto engine = Engine::Create(model_, options);
    EXPECT_TRUE(engine) << engine.error().message;
    if (engine) engine_ = std::move(*engine);
    return engine.has_value();
  }

  SequenceId Reader(std::span<const int32_t> tokens) {
    const auto made = engine_->NewSequence();
    EXPECT_TRUE(made) << made.error().message;
    if (!made) return -1;
    const Status status = engine_->Prefill(*made, tokens);
    EXPECT_TRUE(status) << status.error().message;
    return *made;
  }

  std::vector<float> Logits(SequenceId id, std::span<const int32_t> tokens) {
    std::vector<float> logits;
    const Status status = engine_->Prefill(id, tokens, false, &logits);
    EXPECT_TRUE(status) << status.error().message;
    return logits;
  }

  // The source has read before + old + text, the target before + edited: text is taken over. Refused, nothing changes.
  void ExpectRefused(const std::string& reason, int from = 60, int to = 160, ErrorCode code = ErrorCode::kUnsupported) {
    SCOPED_TRACE(reason);
    const SequenceId source = Reader(Joined({before_, old_, text_})), target = Reader(Joined({before_, edited_}));
    const SequenceStats before = engine_->stats(target);
    const Status status = engine_->Splice(target, source, from, to, false);
    ASSERT_FALSE(status);
    EXPECT_EQ(status.error().code, code) << status.error().message;
    EXPECT_NE(status.error().message.find(reason), std::string::npos) << status.error().message;
    const SequenceStats after = engine_->stats(target);
    EXPECT_EQ(after.num_tokens, before.num_tokens);
    EXPECT_EQ(after.entries, before.entries);
    EXPECT_LE(after.used_bytes, before.used_bytes + 4096) << "but for tables that have grown";
    engine_->Free(source), engine_->Free(target);
  }

  std::string architecture_;
  std::shared_ptr<HostModel> model_;
  std::unique_ptr<Engine> engine_;
  const std::vector<int32_t> before_ = Tokens(40, 1), old_ = Tokens(20, 2), edited_ = Tokens(33, 5),
                             text_ = Tokens(100, 3);
};

// The first layer sees nothing but a token and its position, so that there a reading leaves the same.
TEST_F(ModelSplice, KeysAreTurnedToWhereTheyStandNow) {
  for (const char* architecture : {"llama", "qwen2", "phi2", "stablelm", "gptneox", "chatglm"}) {
    SCOPED_TRACE(architecture);
    if (!Use(architecture, "full")) return;
    const SequenceId source = Reader(Joined({before_, old_, text_})), target = Reader(Joined({before_, edited_}));
    const SequenceId fresh = Reader(Joined({before_, edited_, text_}));
    ASSERT_EQ(engine_->Spliceable(source).ranges, (std::vector<std::pair<int32_t, int32_t>>{{0, 160}}));
    // In two pieces, which end within pages.
    for (const auto& [from, to] : {std::pair(60, 101), {101, 160}}) {
      const Status status = engine_->Splice(target, source, from, to, false);
      ASSERT_TRUE(status) << status.error().message;
    }
    EXPECT_EQ(engine_->num_tokens(target), 173);
    EXPECT_EQ(engine_->stats(target).entries, engine_->stats(fresh).entries);
    EXPECT_EQ(engine_->stats(target).entries_seen, engine_->stats(fresh).entries_seen);
    EXPECT_EQ(engine_->EntryPositions(target, 1, 0), engine_->EntryPositions(fresh, 1, 0));
    EXPECT_TRUE(engine_->logits(target).empty());
    const auto heads = static_cast<size_t>(model_->info().layers[0].num_kv_heads);
    for (const bool values : {false, true}) {
      const std::vector<float> was = engine_->EntryRows(source, 0, values), is = engine_->EntryRows(target, 0, values),
                               read = engine_->EntryRows(fresh, 0, values);
      const double off = Farthest(is, 173, 73, read, 173, 73, 100, heads);
      const double unturned = Farthest(was, 160, 60, read, 173, 73, 100, heads);
      EXPECT_LT(off, values ? 1e-6 : 2e-3 * Largest(read));
      EXPECT_GT(unturned, values ? -1 : 0.2 * Largest(read)) << "the control";
    }
    for (const SequenceId id : {source, target, fresh}) engine_->Free(id);
  }
}

TEST_F(ModelSplice, AnUnchangedTextBeforeItLeavesWhatAReadingLeaves) {
  for (const PageFormat format : {PageFormat(), PageFormat(KvFormat::kQ8), PageFormat(KvFormat::kQ4)}) {
    SCOPED_TRACE(format.Name());
    ASSERT_TRUE(Use("llama", "full", format));
    const SequenceId source = Reader(Joined({before_, text_})), target = Reader(before_);
    const SequenceId without = Reader(before_);
    for (const auto& [from, to] : {std::pair(40, 88), {88, 136}, {136, 140}}) {
      ASSERT_TRUE(engine_->Splice(target, source, from, to, false));
    }
    EXPECT_NEAR(engine_->KeptBytes(target), engine_->KeptBytes(source), 0.05);
    const std::vector<float> expected = Logits(source, edited_), got = Logits(target, edited_),
                             control = Logits(without, edited_);
    double off = 0, missing = 0;
    for (size_t i = 0; i < expected.size(); ++i) {
      off = std::max<double>(off, std::abs(got[i] - expected[i]));
      missing = std::max<double>(missing, std::abs(control[i] - expected[i]));
    }
    // Pages of few bits are cut elsewhere.
    EXPECT_LE(off, format == PageFormat() ? 0 : format == PageFormat(KvFormat::kQ8) ? 0.02 * missing : 0.3 * missing);
    EXPECT_GT(missing, 0.01);
    for (const SequenceId id : {source, target, without}) engine_->Free(id);
  }
}

TEST_F(ModelSplice, WhatASequenceHasDroppedIsNotThere) {
  ASSERT_TRUE(Use("llama", "streamingllm", {}, 80));
  const SequenceId source = Reader(Joined({before_, old_, text_}));
  const SpliceSource holds = engine_->Spliceable(source);
  ASSERT_EQ(holds.ranges.size(), 2U) << "the first tokens and the newest";
  EXPECT_EQ(holds.ranges.front().first, 0);
  EXPECT_EQ(holds.ranges.back().second, 160);
  const auto [from, to] = holds.ranges.back();
  const SequenceId target = Reader(old_);
  EXPECT_FALSE(engine_->Splice(target, source, from - 1, to, false));
  ASSERT_TRUE(engine_->Splice(target, source, from, from + 50, false));
  EXPECT_EQ(engine_->num_tokens(target), 70);
  const Status full = engine_->Splice(target, source, from, to, false);
  ASSERT_FALSE(full);
  EXPECT_NE(full.error().message.find("have to drop"), std::string::npos) << full.error().message;
  (void)Logits(target, text_);
  EXPECT_LE(engine_->EntryPositions(target, 0, 0).size(), 120U) << "it drops as ever";
  engine_->Free(source), engine_->Free(target);
}

TEST_F(ModelSplice, WindowsOfQueriesAreKnownAgainOnceTheyAreRead) {
  ASSERT_TRUE(Use("llama", "snapkv:window=24", {}, 200));
  const SequenceId source = Reader(Joined({before_, old_, text_})), target = Reader(Joined({before_, edited_}));
  EXPECT_EQ(engine_->Spliceable(source).reread, 24);
  ASSERT_TRUE(engine_->Splice(target, source, 60, 160, false));
  EXPECT_FALSE(engine_->Compress(target, *ParseRecipe("snapkv:window=24"), 0.5));
  (void)Logits(target, Tokens(24, 8));
  const auto kept = engine_->Compress(target, *ParseRecipe("snapkv:window=24"), 0.5);
  EXPECT_TRUE(kept) << kept.error().message;
}

TEST_F(ModelSplice, WhatIsPinnedStays) {
  ASSERT_TRUE(Use("llama", "keydiff", {}, 200));
  const SequenceId source = Reader(Joined({before_, old_, text_})), target = Reader(Joined({before_, edited_}));
  ASSERT_TRUE(engine_->Splice(target, source, 60, 100, true));
  ASSERT_TRUE(engine_->Splice(target, source, 100, 160, false));
  EXPECT_EQ(engine_->stats(target).num_pinned, 40);
  ASSERT_TRUE(engine_->Compress(target, *ParseRecipe("keydiff"), 0.4));
  const std::vector<int32_t> left = engine_->EntryPositions(target, 0, 0);
  EXPECT_LT(left.size(), 173U);
  for (int32_t position = 73; position < 113; ++position) EXPECT_TRUE(std::ranges::binary_search(left, position));
}

TEST_F(ModelSplice, WhatCannotBeTakenOverIsRefused) {
  ASSERT_TRUE(Use("llama", "full"));
  ExpectRefused("no part", 60, 161, ErrorCode::kInvalidArgument);
  ExpectRefused("no part", 60, 60, ErrorCode::kInvalidArgument);
  ExpectRefused("no part", -1, 60, ErrorCode::kInvalidArgument);
  EXPECT_FALSE(engine_->Splice(99, 98, 0, 1, false));
  EXPECT_TRUE(engine_->Spliceable(99).ranges.empty());
  const SequenceId source = Reader(Joined({before_, old_, text_}));
  EXPECT_FALSE(engine_->Splice(source, source, 0, 10, false));
  const SequenceId other = Reader(before_);
  while (engine_->num_tokens(other) + 100 <= 400) ASSERT_TRUE(engine_->Splice(other, source, 60, 160, false));
  const Status status = engine_->Splice(other, source, 60, 160, false);
  ASSERT_FALSE(status);
  EXPECT_NE(status.error().message.find("context"), std::string::npos) << status.error().message;
  engine_.reset();
  for (const auto& [recipe, reason] : {std::pair("h2o", "every query"),
                                       {"expectedattention", "every query"},
                                       {"full prefill=criti", "prefill"},
                                       {"keydiff turns=flowkv", "turns"}}) {
    ASSERT_TRUE(Use("llama", recipe));
    ExpectRefused(reason);
  }
  for (const auto& [architecture, reason] :
       {std::pair("gemma3", "sliding"), {"lfm2", "recurrent"}, {"gpt2", "positions"}, {"bloom", "positions"}}) {
    ASSERT_TRUE(Use(architecture, "full"));
    ExpectRefused(reason);
  }
}

TEST_F(ModelSplice, BytesThatAreNotThereChangeNothing) {
  ASSERT_TRUE(Use("llama", "full"));
  const SequenceId source = Reader(Joined({before_, old_, text_})), target = Reader(Joined({before_, edited_}));
  const size_t used = engine_->stats(target).used_bytes;
  ASSERT_TRUE(engine_->SetBudget(target, used, used + 1000));
  const Status status = engine_->Splice(target, source, 60, 160, false);
  ASSERT_FALSE(status);
  EXPECT_EQ(status.error().code, ErrorCode::kOutOfBudget) << status.error().message;
  EXPECT_EQ(engine_->num_tokens(target), 73);
  ASSERT_TRUE(engine_->SetBudget(target, used, used * 4));
  ASSERT_TRUE(engine_->Splice(target, source, 60, 160, false));
  engine_->Free(source);
  EXPECT_EQ(engine_->EntryPositions(target, 0, 0).size(), 173U);
  (void)Logits(target, edited_);
}

// Of a real text with an edit at its front, by a model that takes it over: logits of what follows.
std::vector<float> AfterAnEdit(const std::shared_ptr<HostModel>& model, bool splices) {
  EngineOptions options;
  options.num_ctx = 1024;
  options.num_threads = kThreads;
  options.max_sequences = 2;
  options.recipe = *ParseRecipe("full");
  auto engine = Engine::Create(model, options);
  EXPECT_TRUE(engine) << engine.error().message;
  const std::vector<int32_t> before = Tokenize("Here is the ledger of the old town, as its clerk wrote it.\n");
  const std::vector<int32_t> old = Tokenize("He was tired on that day. ");
  const std::vector<int32_t> edited =
      Tokenize("She was glad of the sun, and took her time, since nobody was in a hurry. ");
  const std::vector<int32_t> text = LedgerTokens(500), tail = Tokenize("In chapter 3 the");
  const SequenceId target = *(*engine)->NewSequence();
  EXPECT_TRUE((*engine)->Prefill(target, Joined({before, edited})));
  if (splices) {
    const SequenceId source = *(*engine)->NewSequence();
    EXPECT_TRUE((*engine)->Prefill(source, Joined({before, old, text})));
    const int from = static_cast<int>(before.size() + old.size());
    const Status status = (*engine)->Splice(target, source, from, from + 500, false);
    EXPECT_TRUE(status) << status.error().message;
  } else {
    EXPECT_TRUE((*engine)->Prefill(target, text));
  }
  return Follow(**engine, target, tail);
}

TEST(SlowSpliceText, LogitsAreNearThoseOfAReadingAndFarFromThoseOfKeysThatWereNotTurned) {
  const std::vector<float> read = AfterAnEdit(DefaultModel(), false), taken = AfterAnEdit(DefaultModel(), true);
  HostModelOptions options;
  options.num_threads = kThreads;
  auto loaded = HostModel::Load(DefaultModelPath(), options);
  ASSERT_TRUE(loaded) << loaded.error().message;
  // A model of which the engine believes that positions turn nothing by any angle.
  for (LayerShape& layer : const_cast<ModelInfo&>((*loaded)->info()).layers) {
    for (RotatedPair& pair : layer.rotation->pairs) pair.angle = 0;
  }
  const std::vector<float> unturned = AfterAnEdit(*loaded, true);
  const double near = MeanKl(read, taken), far = MeanKl(read, unturned);
  RecordProperty("kl_taken", fmt::format("{:.5f}", near));
  RecordProperty("kl_unturned", fmt::format("{:.5f}", far));
  EXPECT_LT(near, 0.1);
  EXPECT_GT(far, 5 * near);
}

}  // namespace
}  // namespace pith::testing
