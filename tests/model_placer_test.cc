// Contexts that are placed anew: as their uses change, and by the texts that go on behind them.
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <memory>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "engine/engine.h"
#include "host/model.h"
#include "session/context_placer.h"
#include "tests/support/random_model.h"

namespace pith {
namespace {

constexpr size_t kTokens = 256;
constexpr TierSpeeds kSpeeds{.ram = 1e9, .ssd = 1e8};

class ModelPlacer : public ::testing::Test {
 protected:
  void SetUp() override {
    const std::string stem = ::testing::TempDir() + "pith_model_placer_" + std::to_string(::getpid());
    path_ = stem + ".gguf";
    folder_ = stem + "_folder";
    const Status made = testing::MakeRandomModel("llama", false, path_, 3);
    ASSERT_TRUE(made) << made.error().message;
    model_ = *HostModel::Load(path_, HostModelOptions{});
    EngineOptions options;
    options.num_ctx = 400;
    options.num_threads = 1;
    options.max_sequences = 1 + kPlacerSequences;
    options.recipe = *ParseRecipe("full");
    auto engine = Engine::Create(model_, options);
    ASSERT_TRUE(engine) << engine.error().message;
    engine_ = std::move(*engine);
    for (uint32_t i = 0; i < 3; ++i) contexts_.push_back(Read(i));
  }
  void TearDown() override {
    std::filesystem::remove(path_);
    std::filesystem::remove_all(folder_);
  }

  struct Context {
    store::ObjectInfo info;
    store::Key key;
    std::vector<std::byte> saved;
  };

  std::vector<int32_t> Text(size_t count, uint32_t seed) const {
    std::mt19937 random(seed);  // NOLINT
    std::vector<int32_t> tokens(count);
    const auto vocab = static_cast<uint32_t>(model_->info().num_vocab);
    for (int32_t& token : tokens) token = static_cast<int32_t>(random() % vocab);
    return tokens;
  }

  SequenceOptions Beside() const {
    SequenceOptions options = engine_->options();
    options.floor_bytes = 1;
    options.ceiling_bytes = engine_->stats().budget_bytes;
    return options;
  }

  Context Read(uint32_t seed) {
    Context context;
    context.info.tokens = Text(kTokens, seed);
    context.info.config = kContextMark;
    context.info.compute_seconds = 10;
    context.key = store::MakeChain(context.info.root, context.info.tokens).whole;
    const SequenceId id = *engine_->NewSequence(Beside());
    EXPECT_TRUE(engine_->Prefill(id, context.info.tokens));
    context.saved = *engine_->SaveToMemory(id, {.tokens = context.info.tokens, .text = {}});
    engine_->Free(id);
    return context;
  }

  // Memory for one and a half of three contexts, all of them placed.
  std::unique_ptr<ContextPlacer> Place(const PlacerOptions& options) {
    const size_t bytes = contexts_[0].saved.size();
    auto store = store::Store::Open(
        {.ram_bytes = bytes * 2, .folder = folder_, .ssd_bytes = 64 * bytes + (64 << 20), .places = true});
    EXPECT_TRUE(store) << store.error().message;
    store_ = *store;
    auto placer = ContextPlacer::Make(store_, options);
    EXPECT_TRUE(placer) << placer.error().message;
    for (const Context& context : contexts_) {
      EXPECT_TRUE(store_->Put(context.info, context.saved));
      EXPECT_TRUE((*placer)->PlaceNext(*engine_, kSpeeds));
    }
    EXPECT_FALSE((*placer)->PlaceNext(*engine_, kSpeeds));
    EXPECT_TRUE(store_->stats().errors.empty());
    return std::move(*placer);
  }

  // Which one is in memory; -1: another number of them.
  int InRam() const {
    int found = -1, count = 0;
    for (int i = 0; i < 3; ++i) {
      const auto loaded = store_->Load(contexts_[static_cast<size_t>(i)].key);
      if (!loaded || loaded->tier != store::Tier::kRam) continue;
      ++count;
      found = i;
    }
    return count == 1 ? found : -1;
  }

  std::string path_, folder_;
  std::shared_ptr<HostModel> model_;
  std::unique_ptr<Engine> engine_;
  std::vector<Context> contexts_;
  std::shared_ptr<store::Store> store_;
};

TEST_F(ModelPlacer, UsesThatChangeMoveContexts) {
  PlacerOptions options;
  options.ratios = {0};
  const auto placer = Place(options);
  const int before = InRam();
  ASSERT_GE(before, 0);
  // All alike: nothing moves.
  for (int i = 0; i < 12; ++i) placer->NoteUse(contexts_[static_cast<size_t>(i % 3)].key, {});
  EXPECT_FALSE(placer->PlaceNext(*engine_, kSpeeds));
  EXPECT_EQ(InRam(), before);
  const int other = (before + 1) % 3;
  for (int i = 0; i < 40; ++i) placer->NoteUse(contexts_[static_cast<size_t>(other)].key, {});
  EXPECT_TRUE(placer->PlaceNext(*engine_, kSpeeds));
  EXPECT_EQ(placer->num_rearranged(), 1U);
  EXPECT_EQ(InRam(), other);
  EXPECT_FALSE(placer->PlaceNext(*engine_, kSpeeds));
  const auto loaded = store_->Load(contexts_[static_cast<size_t>(other)].key);
  ASSERT_TRUE(loaded);
  EXPECT_EQ(loaded->tier, store::Tier::kRam);
  EXPECT_TRUE(std::ranges::equal(loaded->payload->bytes(), contexts_[static_cast<size_t>(other)].saved));
}

TEST_F(ModelPlacer, TextsThatGoOnBecomeProbes) {
  PlacerOptions options;
  options.ratios = {0, 0.5};
  options.quality_loss = 1e-6;  // nothing is compressed
  const auto placer = Place(options);
  for (uint32_t i = 0; i < options.num_probes; ++i) {
    placer->NoteUse(contexts_[0].key, Text(options.probe_tokens - 1, 10 + i));  // too short to be asked
    placer->NoteUse(contexts_[1].key, Text(options.probe_tokens + 5, 20 + i));
  }
  EXPECT_TRUE(placer->PlaceNext(*engine_, kSpeeds));
  EXPECT_EQ(placer->num_refreshed(), 1U);
  while (placer->PlaceNext(*engine_, kSpeeds)) {
  }
  EXPECT_EQ(placer->num_refreshed(), 1U) << "they were asked once";
  EXPECT_TRUE(store_->stats().errors.empty());
}

// Of a cache in eight bits what would lower it to four is not asked for; other methods are.
TEST_F(ModelPlacer, MethodsThatDoNotFitAreNeverChosen) {
  EngineOptions options;
  options.num_ctx = 400;
  options.num_threads = 1;
  options.max_sequences = 1 + kPlacerSequences;
  options.recipe = *ParseRecipe("full");
  options.format = KvFormat::kQ8;
  engine_ = std::move(*Engine::Create(model_, options));
  contexts_.assign(1, Read(5));
  PlacerOptions placing;
  placing.ratios = {0, 0.5};
  placing.quality_loss = 1e6;  // anything for less to load
  const auto placer = Place(placing);
  const std::vector<store::ObjectInfoPtr> listed = store_->List();
  ASSERT_EQ(listed.size(), 1U);
  const std::string& config = listed[0]->config;
  EXPECT_NE(config.find("0.0"), std::string::npos) << config;
  EXPECT_EQ(config.find("\"method\":2"), std::string::npos) << config;
  EXPECT_LT(listed[0]->payload_bytes, contexts_[0].saved.size() * 3 / 4) << "another one was";
}

// What was lowered to four bits gives up entries later, and its share is one of the whole cache.
TEST_F(ModelPlacer, LoweredContextsShrinkFurther) {
  const PlacerOptions options;
  const Recipe recipe = *ParseRecipe(options.methods.back());
  const auto restored = engine_->RestoreFromMemory(contexts_[0].saved, Beside());
  ASSERT_TRUE(restored) << restored.error().message;
  ASSERT_TRUE(engine_->Compress(restored->sequence, recipe, 0.4));
  EXPECT_LT(engine_->KeptBytes(restored->sequence), 0.4);
  const SequenceStats first = engine_->stats(restored->sequence);
  EXPECT_EQ(first.entries, first.entries_seen) << "four bits hold all of them";
  const auto saved = engine_->SaveToMemory(restored->sequence, restored->note);
  ASSERT_TRUE(saved);
  EXPECT_LT(saved->size(), contexts_[0].saved.size() / 2);
  engine_->Free(restored->sequence);
  const auto again = engine_->RestoreFromMemory(*saved, Beside());
  ASSERT_TRUE(again) << again.error().message;
  const auto kept = engine_->Compress(again->sequence, recipe, 0.2);
  ASSERT_TRUE(kept) << kept.error().message;
  EXPECT_LT(*kept, 0.9);
  EXPECT_NEAR(engine_->KeptBytes(again->sequence), 0.2, 0.06);
  engine_->Free(again->sequence);
}

}  // namespace
}  // namespace pith
