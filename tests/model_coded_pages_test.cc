// format=comp on the default model: pages of Huffman-coded integers in the live cache.
#include <gtest/gtest.h>

#include <cstdio>
#include <string>
#include <vector>

#include "tests/support/default_engine.h"

namespace pith {
namespace {

using testing::CompressedAfter;
using testing::Follow;
using testing::FollowFork;
using testing::LedgerTokens;
using testing::MakeDefaultEngine;
using testing::MeanKl;

class ModelCodedPages : public ::testing::Test {
 protected:
  void SetUp() override {
    if (testing::DefaultModel() == nullptr) GTEST_SKIP() << "there is no default model";
    context_ = LedgerTokens(32 * 16 + 40);
    tail_.assign(context_.end() - 40, context_.end());
    context_.resize(32 * 16);
  }

  std::vector<int32_t> context_, tail_;
};

TEST_F(ModelCodedPages, FinerStepsTakeMoreBytesAndLoseLess) {
  const EngineOptions options = CompressedAfter({"full format=comp:ek=1/40,ev=1/40", "full format=comp",
                                                 "full format=comp:ek=1/6,ev=1/6", "full format=comp:ek=1/2,ev=1/2"});
  auto engine = MakeDefaultEngine(options);
  const SequenceId base = *engine->NewSequence();
  ASSERT_TRUE(engine->Prefill(base, context_));
  const std::vector<float> expected = FollowFork(*engine, base, tail_);
  std::vector<double> bytes, kl;
  for (const Recipe& recipe : options.later_recipes) {
    SCOPED_TRACE(recipe.text);
    const SequenceId fork = *engine->Fork(base);
    ASSERT_TRUE(engine->Compress(fork, recipe, 1.0));
    bytes.push_back(engine->KeptBytes(fork));
    // Another fork reads the same pages and goes its own way.
    const SequenceId other = *engine->Fork(fork);
    const std::vector<float> logits = Follow(*engine, fork, tail_);
    EXPECT_EQ(Follow(*engine, other, tail_), logits);
    kl.push_back(MeanKl(expected, logits));
    std::printf("%s: %.4f of the bytes, KL %.5f\n", recipe.text.c_str(), bytes.back(), kl.back());
    engine->Free(fork);
    engine->Free(other);
  }
  for (size_t i = 1; i < bytes.size(); ++i) EXPECT_LT(bytes[i], bytes[i - 1]);
  EXPECT_LT(bytes[1], 0.33);
  EXPECT_LT(kl[0], 0.01);
  EXPECT_GT(kl.back(), 4 * kl[0]) << "control: the measure sees errors";
}

// The recipe kvcomp and the cache types of keys and values are the same cache, which takes a third of the bytes; both
// while text is read, and of a prompt that is whole.
TEST_F(ModelCodedPages, HaveANameAmongRecipesAndCacheTypes) {
  EngineOptions options = CompressedAfter({"kvcomp"});
  options.compress = CompressMode::kBlock;
  options.later_recipes.clear();
  std::vector<double> bytes;
  std::vector<std::vector<float>> logits;
  const PageFormat coded(CodedFormat(20), CodedFormat(10));
  for (const auto& [recipe, format] : {std::pair("full", PageFormat()), {"kvcomp", PageFormat()}, {"full", coded}}) {
    options.recipe = *ParseRecipe(recipe);
    options.format = format;
    auto engine = MakeDefaultEngine(options);
    const SequenceId id = *engine->NewSequence();
    ASSERT_TRUE(engine->Prefill(id, context_));
    bytes.push_back(engine->KeptBytes(id));
    logits.push_back(Follow(*engine, id, tail_));
  }
  EXPECT_GT(bytes[0], 0.95);
  EXPECT_LT(bytes[1], 0.32);
  EXPECT_EQ(bytes[1], bytes[2]);
  EXPECT_EQ(logits[1], logits[2]);
  EXPECT_NE(logits[0], logits[1]);
  EXPECT_LT(MeanKl(logits[0], logits[1]), 0.05);

  const EngineOptions later = CompressedAfter({"kvcomp"});
  auto engine = MakeDefaultEngine(later);
  const SequenceId id = *engine->NewSequence();
  ASSERT_TRUE(engine->Prefill(id, context_));
  ASSERT_TRUE(engine->Compress(id, later.later_recipes[0], 1.0));
  EXPECT_LT(engine->KeptBytes(id), 0.32);
}

TEST_F(ModelCodedPages, AreRefusedWhereChannelsOrOtherTypesAreAskedFor) {
  const auto expect_refused = [](const char* recipe, PageFormat format, const char* says) {
    EngineOptions options;
    options.num_ctx = 512;
    options.compress = CompressMode::kAfter;
    options.recipe = *ParseRecipe(recipe);
    options.format = format;
    const auto engine = Engine::Create(testing::DefaultModel(), options);
    ASSERT_FALSE(engine) << recipe;
    EXPECT_NE(engine.error().message.find(says), std::string::npos) << engine.error().message;
  };
  const PageFormat coded(CodedFormat(20), CodedFormat(10));
  expect_refused("snapkv act=prune", coded, "too tightly packed");
  expect_refused("d2o", coded, "act=merge rewrites keys");
  expect_refused("kvcomp", PageFormat(KvFormat::kQ4), "give one of the two");
}

// Evictions again and again, of which each packs pages anew, within a budget; and what is left comes back from memory.
TEST_F(ModelCodedPages, SurvivorsOfEvictionsAreCodedOnce) {
  EngineOptions options = CompressedAfter({});
  options.compress = CompressMode::kBlock;
  options.budget_bytes = size_t{8} << 20;
  options.recipe = *ParseRecipe("keydiff format=comp");
  auto engine = MakeDefaultEngine(options);
  const SequenceId id = *engine->NewSequence();
  ASSERT_TRUE(engine->Prefill(id, context_));
  for (int i = 0; i < 150; ++i) ASSERT_TRUE(engine->Decode(id, context_[static_cast<size_t>(i)]));
  EXPECT_LT(engine->stats().kept_fraction, 0.9);
  EXPECT_LE(engine->stats().peak_bytes, engine->stats().budget_bytes);
  const auto saved = engine->SaveToMemory(id, {});
  ASSERT_TRUE(saved) << saved.error().message;
  const std::vector<float> expected = Follow(*engine, id, tail_);
  engine->Free(id);
  const auto restored = engine->RestoreFromMemory(*saved, options);
  ASSERT_TRUE(restored) << restored.error().message;
  EXPECT_EQ(Follow(*engine, restored->sequence, tail_), expected);
}

}  // namespace
}  // namespace pith
