// A sequence that goes back is what it was: the bits of one that never read more, or a refusal that says why.
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "engine/engine.h"
#include "host/model.h"
#include "tests/support/random_model.h"

namespace pith::testing {
namespace {

std::vector<int32_t> Tokens(size_t count, unsigned seed) {
  std::vector<int32_t> tokens;
  for (unsigned i = 0; i < count; ++i)
    tokens.push_back(static_cast<int32_t>((i * 37 + i * i / 7 * seed + seed * 11) % 97 + 3));
  return tokens;
}

struct Case {
  const char* recipe;
  PageFormat format = {};
  int keep_entries = 200;
};

class ModelRewind : public ::testing::Test {
 protected:
  void TearDown() override {
    if (!path_.empty()) std::filesystem::remove(path_);
  }

  // llama: two global layers; gemma3: layers that slide over 32 tokens; lfm2: a recurrent one.
  std::shared_ptr<HostModel> Model(const std::string& architecture) {
    path_ = ::testing::TempDir() + fmt::format("pith_rewind_{}_{}.gguf", architecture, getpid());
    const Status made = MakeRandomModel(architecture, NeedsExperts(architecture), path_, 3);
    EXPECT_TRUE(made) << made.error().message;
    auto model = HostModel::Load(path_, HostModelOptions{});
    EXPECT_TRUE(model) << model.error().message;
    return model ? *model : nullptr;
  }

  void Use(const std::shared_ptr<HostModel>& model, const Case& how, CompressMode compress = CompressMode::kBlock) {
    EngineOptions options;
    options.num_ctx = 600;
    options.block_tokens = 48;
    options.num_threads = 1;
    options.max_sequences = 4;
    options.format = how.format;
    options.keep_entries = how.keep_entries;
    options.compress = compress;
    options.recipe = *ParseRecipe(how.recipe);
    auto engine = Engine::Create(model, options);
    ASSERT_TRUE(engine) << engine.error().message;
    engine_ = std::move(*engine);
  }

  SequenceId New() {
    const auto made = engine_->NewSequence();
    EXPECT_TRUE(made) << made.error().message;
    return made ? *made : -1;
  }

  std::vector<float> Read(SequenceId id, std::span<const int32_t> tokens) {
    std::vector<float> logits;
    const Status status = engine_->Prefill(id, tokens, false, &logits);
    EXPECT_TRUE(status) << status.error().message;
    return logits;
  }

  // Blocks and single tokens, enough of them that recipes which drop have dropped.
  std::vector<float> GoOn(SequenceId id) {
    std::vector<float> all = Read(id, Tokens(150, 9));
    for (const int32_t token : Tokens(40, 4)) {
      EXPECT_TRUE(engine_->Decode(id, token));
      all.insert(all.end(), engine_->logits(id).begin(), engine_->logits(id).end());
    }
    return all;
  }

  // Back to what a reader of `stays` tokens is, after all of text_.
  void ExpectAsIfNeverRead(int stays) {
    const SequenceId fresh = New(), back = New();
    const size_t target = static_cast<size_t>(stays);
    (void)Read(fresh, std::span(text_).first(target));
    (void)Read(back, std::span(text_).first(target));
    (void)Read(back, std::span(text_).subspan(target));
    const SequenceId other = *engine_->Fork(back);
    const size_t used = engine_->stats(fresh).used_bytes;
    const Status status = engine_->Rewind(back, stays);
    ASSERT_TRUE(status) << status.error().message;
    EXPECT_EQ(engine_->num_tokens(back), stays);
    EXPECT_EQ(engine_->stats(back).entries, engine_->stats(fresh).entries);
    EXPECT_EQ(engine_->stats(back).entries_seen, engine_->stats(fresh).entries_seen);
    EXPECT_LE(engine_->stats(back).used_bytes, used + 4096) << "but for tables that have grown";
    EXPECT_TRUE(engine_->logits(back).empty());
    EXPECT_TRUE(GoOn(fresh) == GoOn(back));
    EXPECT_EQ(engine_->EntryPositions(fresh, 0, 1), engine_->EntryPositions(back, 0, 1));
    EXPECT_EQ(engine_->num_tokens(other), static_cast<int>(text_.size())) << "a fork stays where it is";
    for (const SequenceId id : {fresh, back, other}) engine_->Free(id);
  }

  // All of text_ is read, and `stays` is refused; nothing changes but by going back to the beginning.
  void ExpectRefused(int stays, const std::string& reason) {
    const SequenceId id = New(), fresh = New();
    (void)Read(id, text_);
    ExpectRefused(id, stays, reason);
    const Status emptied = engine_->Rewind(id, 0);
    ASSERT_TRUE(emptied) << emptied.error().message;
    EXPECT_EQ(engine_->stats(id).entries, 0);
    EXPECT_TRUE(GoOn(fresh) == GoOn(id)) << "as a new one";
    engine_->Free(id), engine_->Free(fresh);
  }

  void ExpectRefused(SequenceId id, int stays, const std::string& reason) {
    const int end = engine_->num_tokens(id);
    const SequenceStats before = engine_->stats(id);
    const Status status = engine_->Rewind(id, stays);
    ASSERT_FALSE(status);
    EXPECT_EQ(status.error().code, ErrorCode::kUnsupported);
    EXPECT_NE(status.error().message.find(reason), std::string::npos) << status.error().message;
    EXPECT_EQ(engine_->num_tokens(id), end);
    EXPECT_EQ(engine_->stats(id).entries, before.entries);
    EXPECT_EQ(engine_->RewindTarget(id, end), end);
    EXPECT_LT(engine_->RewindTarget(id, stays), stays);
    EXPECT_TRUE(engine_->Rewind(id, end)) << "it is there already";
  }

  std::string path_;
  const std::vector<int32_t> text_ = Tokens(170, 1);
  std::unique_ptr<Engine> engine_;
};

TEST_F(ModelRewind, ASequenceIsAsIfItHadNeverReadMore) {
  const std::shared_ptr<HostModel> model = Model("llama");
  for (const Case& how : {Case{"full"}, Case{"full", KvFormat::kQ8}, Case{"full", KvFormat::kQ4}, Case{"keydiff"},
                          Case{"snapkv:window=24"}, Case{"adakv:window=24", KvFormat::kQ8}, Case{"streamingllm"}}) {
    SCOPED_TRACE(std::string(how.recipe) + " " + how.format.Name());
    Use(model, how);
    for (const int stays : {96, 32, 160}) {
      SCOPED_TRACE(stays);
      ExpectAsIfNeverRead(stays);
    }
  }
  const SequenceId id = New();
  EXPECT_FALSE(engine_->Rewind(id, 1));
  EXPECT_FALSE(engine_->Rewind(id, -1));
  EXPECT_FALSE(engine_->Rewind(99, 0));
  EXPECT_EQ(engine_->RewindTarget(99, 5), 0);
  EXPECT_EQ(engine_->RewindTarget(id, 5), 0);
}

// Where a window of queries was overwritten, it is read once more; where a page is kept whole, so is its beginning.
TEST_F(ModelRewind, TheTargetLeavesRoomForWhatMustBeReadAgain) {
  const std::shared_ptr<HostModel> model = Model("llama");
  const auto target = [&](const Case& how, int num_tokens) {
    Use(model, how);
    const SequenceId id = New();
    (void)Read(id, text_);
    return engine_->RewindTarget(id, num_tokens);
  };
  EXPECT_EQ(target({"full"}, 100), 100);
  EXPECT_EQ(target({"full"}, 900), 170);
  EXPECT_EQ(target({"full"}, 0), 0);
  EXPECT_EQ(target({"full", KvFormat::kQ4}, 100), 96);
  EXPECT_EQ(target({"full", KvFormat::kQ4}, 165), 165) << "not converted yet";
  EXPECT_EQ(target({"snapkv:window=24"}, 100), 76);
  EXPECT_EQ(target({"snapkv:window=24", KvFormat::kQ4}, 100), 64);
  EXPECT_EQ(target({"snapkv:window=24"}, 20), 0);
  EXPECT_EQ(target({"snapkv:window=200", {}, 300}, 100), 100) << "nothing was overwritten";
}

TEST_F(ModelRewind, WhatCannotBeHadBackIsRefused) {
  const std::shared_ptr<HostModel> model = Model("llama");
  const struct {
    Case how;
    const char* reason;
  } kCases[] = {{{"h2o"}, "statistics"},
                {{"expectedattention"}, "statistics"},
                {{"keydiff", {}, 60}, "dropped"},
                {{"snapkv:window=24", {}, 60}, "dropped"},
                {{"full prefill=criti"}, "end of a prompt"},
                {{"full", KvFormat::kQ4}, "kept whole"},
                {{"score=keydiff act=merge", {}, 60}, "merged"}};
  for (const auto& [how, reason] : kCases) {
    SCOPED_TRACE(how.recipe);
    Use(model, how);
    ExpectRefused(90, reason);
  }
}

// Compression later on: what it dropped or converted is gone, what lies before a part that it dropped is not.
TEST_F(ModelRewind, CompressionIsSeen) {
  const std::shared_ptr<HostModel> model = Model("llama");
  Use(model, {"full"});
  const SequenceId id = New(), part = New(), converted = New();
  for (const SequenceId each : {id, part, converted}) (void)Read(each, text_);
  ASSERT_TRUE(engine_->Compress(id, *ParseRecipe("keydiff"), 0.5));
  ExpectRefused(id, 120, "dropped");
  ASSERT_TRUE(engine_->CompressPart(part, *ParseRecipe("keydiff"), 0.2, 100, 160));
  ExpectRefused(part, 140, "dropped");
  EXPECT_EQ(engine_->RewindTarget(part, 100), 100);
  ASSERT_TRUE(engine_->Rewind(part, 100));
  EXPECT_EQ(engine_->EntryPositions(part, 1, 1).size(), 100U);
  ASSERT_TRUE(engine_->Compress(converted, *ParseRecipe("full format=q4"), 0.3));
  ExpectRefused(converted, 120, "converted");
  ASSERT_TRUE(engine_->Rewind(converted, 0));
  engine_->Free(id);
  const SequenceId fresh = New();
  EXPECT_TRUE(GoOn(fresh) == GoOn(converted));
}

// Entries that stand in for others stand where they stood: positions alone don't tell.
TEST_F(ModelRewind, WhatStandsInForOthersIsSeen) {
  const std::shared_ptr<HostModel> model = Model("llama");
  for (const char* recipe :
       {"kvzip:chunk=64 act=residue", "kvzip:chunk=64 act=match", "score=keydiff act=residue:r=32"}) {
    SCOPED_TRACE(recipe);
    Use(model, {recipe, {}, 0}, CompressMode::kAfter);
    const SequenceId id = New();
    (void)Read(id, text_);
    ASSERT_TRUE(engine_->Compress(id, *ParseRecipe(recipe), 0.9));
    const auto saved = engine_->SaveToMemory(id, {});
    ASSERT_TRUE(saved);
    const auto restored = engine_->RestoreFromMemory(*saved, engine_->options());
    ASSERT_TRUE(restored) << restored.error().message;
    for (const SequenceId each : {id, restored->sequence}) {
      for (int stays = 1; stays < 170; ++stays) {
        const int target = engine_->RewindTarget(each, stays);
        if (target == 0) continue;
        const SequenceId fresh = New(), fork = *engine_->Fork(each);
        (void)Read(fresh, std::span(text_).first(static_cast<size_t>(target)));
        ASSERT_TRUE(engine_->Rewind(fork, target));
        for (const int layer : {0, 1}) {
          for (const bool values : {false, true}) {
            ASSERT_EQ(engine_->EntryRows(fork, layer, values), engine_->EntryRows(fresh, layer, values)) << target;
          }
        }
        engine_->Free(fresh), engine_->Free(fork);
      }
      ExpectRefused(each, 120, "stand in");
    }
    engine_->Free(id), engine_->Free(restored->sequence);
  }
}

// A window of queries that is not whole is not judged by.
TEST_F(ModelRewind, AWindowThatWasOverwrittenMustBeReadBeforeItIsUsed) {
  Use(Model("llama"), {"snapkv:window=24"}, CompressMode::kAfter);
  const SequenceId back = New(), fresh = New();
  (void)Read(back, text_);
  ASSERT_TRUE(engine_->Rewind(back, 96));
  const auto refused = engine_->Compress(back, *ParseRecipe("snapkv:window=24"), 0.5);
  ASSERT_FALSE(refused);
  EXPECT_NE(refused.error().message.find("went back"), std::string::npos) << refused.error().message;
  const auto saved = engine_->SaveToMemory(back, {});
  ASSERT_TRUE(saved);
  (void)Read(fresh, std::span(text_).first(96));
  for (const SequenceId id : {fresh, back}) (void)Read(id, Tokens(24, 8));
  for (const SequenceId id : {fresh, back}) ASSERT_TRUE(engine_->Compress(id, *ParseRecipe("snapkv:window=24"), 0.5));
  for (const int head : {0, 1})
    EXPECT_EQ(engine_->EntryPositions(fresh, 1, head), engine_->EntryPositions(back, 1, head));
  EngineOptions options;
  options.compress = CompressMode::kAfter;
  options.recipe = *ParseRecipe("snapkv:window=24");
  options.keep_entries = 200;
  const auto restored = engine_->RestoreFromMemory(*saved, options);
  ASSERT_TRUE(restored) << restored.error().message;
  EXPECT_FALSE(engine_->Compress(restored->sequence, options.recipe, 0.5)) << "its queries are not known there, either";
}

TEST_F(ModelRewind, SlidingWindowsGoBackAsFarAsTheirEntriesReach) {
  const std::shared_ptr<HostModel> model = Model("gemma3");
  for (const KvFormat format : {KvFormat::kF16, KvFormat::kQ8, KvFormat::kQ4}) {
    Use(model, {"full", format});
    const SequenceId id = New();
    (void)Read(id, text_);
    // Pages from position 128 on are there.
    EXPECT_EQ(engine_->RewindTarget(id, 100), 0);
    EXPECT_EQ(engine_->RewindTarget(id, 160), 160);
    ExpectRefused(id, 140, "sliding windows");
    engine_->Free(id);
    ExpectAsIfNeverRead(160);
  }
}

TEST_F(ModelRewind, ARecurrentStateGoesBackToTheBeginningAlone) {
  Use(Model("lfm2"), {"full"});
  ExpectRefused(120, "recurrent");
}

TEST_F(ModelRewind, PinsAndTokensEndWithIt) {
  Use(Model("llama"), {"keydiff", {}, 100});
  const SequenceId id = New();
  ASSERT_TRUE(engine_->Prefill(id, std::span(text_).first(20), true));
  (void)Read(id, std::span(text_).subspan(20, 20));
  ASSERT_TRUE(engine_->Prefill(id, std::span(text_).subspan(40, 20), true));
  ASSERT_TRUE(engine_->Rewind(id, 50));
  (void)GoOn(id);
  const std::vector<int32_t> kept = engine_->EntryPositions(id, 0, 0);
  for (int32_t position = 0; position < 50; ++position) {
    if (position >= 20 && position < 40) continue;
    EXPECT_TRUE(std::ranges::binary_search(kept, position)) << position;
  }
  EXPECT_FALSE(std::ranges::includes(kept, std::vector<int32_t>{50, 51, 52, 53, 54, 55, 56, 57, 58, 59}))
      << "no longer pinned";
}

}  // namespace
}  // namespace pith::testing
