// Sequences that are saved in error-bounded codes and go on from what comes back.
#include <gtest/gtest.h>

#include <cstdio>
#include <filesystem>
#include <string>
#include <vector>

#include "session/stored_prefixes.h"
#include "tests/support/default_engine.h"

namespace pith::testing {
namespace {

EngineOptions Saving(const std::string& form, const std::string& recipe = "full") {
  EngineOptions options = CompressedAfter({recipe});
  options.saved = *ParseCodedForm(form);
  return options;
}

class ModelSavedForm : public ::testing::Test {
 protected:
  static constexpr size_t kTokens = 600;

  void SetUp() override {
    if (DefaultModel() == nullptr) GTEST_SKIP() << "there is no default model";
    tokens_ = LedgerTokens(kTokens + 40);
    tail_.assign(tokens_.begin() + kTokens, tokens_.end());
    tokens_.resize(kTokens);
  }
  SequenceId Read(Engine& engine) {
    const SequenceId id = *engine.NewSequence();
    EXPECT_TRUE(engine.Prefill(id, tokens_));
    return id;
  }
  // KL of what a sequence that comes back says of the tail, from what `expected` says.
  double KlOf(Engine& engine, std::span<const std::byte> saved, const std::vector<float>& expected) {
    const auto restored = engine.RestoreFromMemory(saved, engine.options());
    EXPECT_TRUE(restored) << restored.error().message;
    if (!restored) return -1;
    const double kl = MeanKl(expected, Follow(engine, restored->sequence, tail_));
    engine.Free(restored->sequence);
    return kl;
  }

  std::vector<int32_t> tokens_, tail_;
};

TEST_F(ModelSavedForm, FewerBytesSayAlmostTheSame) {
  const auto exact_engine = MakeDefaultEngine(Saving("exact"));
  const SequenceId id = Read(*exact_engine);
  const auto exact = exact_engine->SaveToMemory(id, {});
  ASSERT_TRUE(exact);
  const std::vector<float> expected = Follow(*exact_engine, id, tail_);
  EXPECT_EQ(KlOf(*exact_engine, *exact, expected), 0);
  double kl[2] = {};
  for (const bool coarse : {false, true}) {
    const auto engine = MakeDefaultEngine(Saving(coarse ? "comp:ek=0.5,ev=0.5" : "comp"));
    const SequenceId source = Read(*engine);
    const auto coded = engine->SaveToMemory(source, {});
    ASSERT_TRUE(coded);
    EXPECT_LT(static_cast<double>(coded->size()), 0.45 * static_cast<double>(exact->size()));
    // Whoever restores it needs no options of saving.
    kl[coarse ? 1 : 0] = KlOf(*exact_engine, *coded, expected);
    const auto on_demand = engine->SaveToMemory(source, {}, SavedForm::kExact);
    ASSERT_TRUE(on_demand);
    EXPECT_EQ(*on_demand, *exact);
  }
  EXPECT_GT(kl[0], 0) << "nothing was coded";
  EXPECT_LT(kl[0], 0.02);
  EXPECT_GT(kl[1], 4 * kl[0]) << "the measure does not see errors";
}

// After an eviction, in formats of fewer bits, and through a file.
TEST_F(ModelSavedForm, WhatRecipesLeaveComesBack) {
  const std::string path = ::testing::TempDir() + "/model_saved_form.session";
  for (const char* recipe : {"keydiff:recent=16", "keydiff format=q8", "keydiff format=q4", "h2o act=demote",
                             "snapkv act=prune", "deltakv:recent=32,share=0.3", "keydiff format=comp"}) {
    const auto engine = MakeDefaultEngine(Saving("comp", recipe));
    const SequenceId id = Read(*engine);
    const auto kept = engine->Compress(id, *ParseRecipe(recipe), 0.5);
    ASSERT_TRUE(kept) << recipe << ": " << kept.error().message;
    const auto exact = engine->SaveToMemory(id, {}, SavedForm::kExact);
    ASSERT_TRUE(exact);
    ASSERT_TRUE(engine->Save(id, path, {.tokens = tokens_, .text = "note"}));
    // Pages of 4 bits stay as they are, as coded ones do, and the layers' codes stand beside them.
    const bool stays = std::string(recipe).ends_with("q4") || std::string(recipe).ends_with("comp");
    const auto bytes = static_cast<double>(std::filesystem::file_size(path));
    EXPECT_LT(bytes, (stays ? 1.01 : 0.9) * static_cast<double>(exact->size())) << recipe;
    const auto restored = engine->Restore(path);
    ASSERT_TRUE(restored) << recipe << ": " << restored.error().message;
    EXPECT_EQ(restored->note.tokens, tokens_);
    EXPECT_EQ(engine->KeptBytes(restored->sequence), engine->KeptBytes(id)) << recipe;
    for (int layer = 0; layer < 2; ++layer) {
      EXPECT_EQ(engine->EntryPositions(restored->sequence, layer, 0), engine->EntryPositions(id, layer, 0)) << recipe;
    }
    const std::vector<float> expected = Follow(*engine, id, tail_);
    EXPECT_LT(MeanKl(expected, Follow(*engine, restored->sequence, tail_)), 0.02) << recipe;
  }
  std::remove(path.c_str());
}

TEST_F(ModelSavedForm, StoresTellFormsApart) {
  std::vector<std::string> formats;
  for (const char* form : {"exact", "comp", "comp:ek=0.1"}) {
    formats.push_back(KeyOfEngine(*MakeDefaultEngine(Saving(form))).format);
  }
  EXPECT_EQ(formats[0], "f16");
  EXPECT_NE(formats[1], formats[2]);
  EXPECT_NE(formats[0], formats[1]);
}

}  // namespace
}  // namespace pith::testing
