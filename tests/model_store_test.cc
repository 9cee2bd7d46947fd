// Prefixes that leave an engine and come back into another one, over a folder: the same bits, or a miss.
#include <gtest/gtest.h>
#include <unistd.h>

#include <cctype>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <memory>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "engine/engine.h"
#include "host/model.h"
#include "session/stored_prefixes.h"
#include "session/token_sequence.h"
#include "tests/support/random_model.h"

namespace pith {
namespace {

struct Case {
  // llama: global layers; gemma3: layers that slide; lfm2: a recurrent one; mamba: nothing else
  std::string architecture;
  std::string recipe;
  PageFormat format;
  bool drops = false;
};

class ModelStore : public ::testing::TestWithParam<Case> {
 protected:
  static std::string TestPath(const std::string& name) {
    return ::testing::TempDir() + "pith_model_store_" + std::to_string(::getpid()) + "_" + name;
  }

  void SetUp() override {
    path_ = TestPath(GetParam().architecture + ".gguf");
    folder_ = TestPath("folder");
    const Status made = testing::MakeRandomModel(GetParam().architecture, false, path_, 3);
    ASSERT_TRUE(made) << made.error().message;
    auto model = HostModel::Load(path_, HostModelOptions{});
    ASSERT_TRUE(model) << model.error().message;
    model_ = *model;
  }
  void TearDown() override {
    std::filesystem::remove(path_);
    std::filesystem::remove_all(folder_);
  }

  // A process's own: an engine with one sequence, and the store.
  struct Life {
    std::shared_ptr<Engine> engine;
    std::unique_ptr<EngineSequence> sequence;
    std::unique_ptr<StoredPrefixes> prefixes;
    ReadingKey key;

    void Feed(std::span<const int32_t> tokens) const { EXPECT_TRUE(sequence->Feed(tokens, false, {})); }
    bool Keep(std::span<const int32_t> tokens, double seconds = 100) const {
      const bool kept = prefixes->Keep(*engine, sequence->id(), key, tokens, 0, seconds);
      EXPECT_TRUE(prefixes->store().Sync());
      return kept;
    }
    size_t Take(std::span<const int32_t> text) const {
      const auto taken = prefixes->TakeInto(*sequence, key, text, 0);
      EXPECT_EQ(sequence->num_tokens(), taken ? static_cast<int>(taken->tokens) : 0);
      return taken ? taken->tokens : 0;
    }
    std::vector<float> Logits() const {
      const std::span<const float> logits = sequence->logits();
      return {logits.begin(), logits.end()};
    }
  };

  Life Live(const std::string& evictor = "lru") {
    EngineOptions options;
    options.num_ctx = 600;
    options.block_tokens = 48;
    options.num_threads = 1;
    options.format = GetParam().format;
    options.keep_entries = GetParam().drops ? 150 : 0;
    options.recipe = *ParseRecipe(GetParam().recipe);
    Life life;
    auto engine = Engine::Create(model_, options);
    EXPECT_TRUE(engine) << engine.error().message;
    life.engine = std::move(*engine);
    life.sequence = *EngineSequence::Create(life.engine);
    auto store = store::Store::Open(
        {.ram_bytes = size_t{16} << 20, .folder = folder_, .ssd_bytes = size_t{256} << 20, .evictor = evictor});
    EXPECT_TRUE(store);
    life.prefixes = std::make_unique<StoredPrefixes>(*store, *model_);
    life.key = KeyOfEngine(*life.engine);
    return life;
  }

  std::vector<int32_t> Text(size_t count, uint32_t seed) const {
    std::mt19937 random(seed);  // NOLINT
    std::vector<int32_t> tokens(count);
    const auto vocab = static_cast<uint32_t>(model_->info().num_vocab);
    for (int32_t& token : tokens) token = static_cast<int32_t>(random() % vocab);
    return tokens;
  }

  std::string path_, folder_;
  std::shared_ptr<HostModel> model_;
};

void ExpectSameBits(const std::vector<float>& a, const std::vector<float>& b) {
  ASSERT_EQ(a.size(), b.size());
  ASSERT_FALSE(a.empty());
  EXPECT_EQ(std::memcmp(a.data(), b.data(), a.size() * sizeof(float)), 0);
}

TEST_P(ModelStore, GoesOnWithTheSameBitsInAnotherEngine) {
  const std::vector<int32_t> text = Text(400, 1);
  const std::span<const int32_t> all(text);
  std::vector<float> at_end, behind;
  {
    const Life first = Live();
    EXPECT_EQ(first.Take(all), 0U);
    first.Feed(all.first(300));
    at_end = first.Logits();
    EXPECT_TRUE(first.Keep(all.first(300)));
    EXPECT_FALSE(first.Keep(all.first(300)));  // it is there
    first.Feed(all.subspan(300));
    behind = first.Logits();
  }
  const Life second = Live();
  EXPECT_EQ(second.Take(all), 300U);
  second.Feed(all.subspan(300));
  ExpectSameBits(second.Logits(), behind);
  EXPECT_EQ(second.Take(all.first(300)), 300U);  // whole, with its logits
  ExpectSameBits(second.Logits(), at_end);
  const store::StoreStats stats = second.prefixes->store().stats();
  EXPECT_EQ(stats.hit_tokens, 600U);
  EXPECT_EQ(stats.tiers[1].hits, 1U);
  EXPECT_EQ(stats.tiers[0].hits, 1U);  // promoted
  EXPECT_GT(stats.saved_seconds, 0);
}

TEST_P(ModelStore, TextsThatPartGoBackOrMeetAtTheCut) {
  const std::vector<int32_t> text = Text(400, 1);
  std::vector<int32_t> other(text.begin(), text.begin() + 200);
  const std::vector<int32_t> rest = Text(150, 2);
  other.insert(other.end(), rest.begin(), rest.end());
  const bool rewinds = CanAlwaysGoBack(model_->info(), *ParseRecipe(GetParam().recipe));
  {
    const Life first = Live();
    first.Feed(text);
    EXPECT_TRUE(first.Keep(text));
  }
  {
    const Life second = Live();
    const size_t taken = second.Take(other);
    EXPECT_EQ(taken > 0, rewinds);
    EXPECT_LE(taken, 200U);
    EXPECT_GE(taken, rewinds ? 160U : 0U);
    if (!rewinds) {
      const size_t cut = second.prefixes->NextCut(second.key, other, 0, 0);
      EXPECT_EQ(cut, 192U);
      second.Feed(std::span(other).first(cut));
      EXPECT_TRUE(second.Keep(std::span(other).first(cut)));
      EXPECT_EQ(second.prefixes->NextCut(second.key, other, 0, cut), 0U);
    }
  }
  std::vector<int32_t> third(text.begin(), text.begin() + 195);
  third.insert(third.end(), rest.rbegin(), rest.rend());
  const Life last = Live();
  EXPECT_GE(last.Take(third), rewinds ? 160U : 192U);
}

TEST_P(ModelStore, NothingIsSharedBetweenTenantsAndBudgets) {
  const std::vector<int32_t> text = Text(300, 1);
  const Life life = Live();
  life.Feed(text);
  EXPECT_TRUE(life.Keep(text));
  Life other = Live();
  other.key.tenant = "somebody";
  EXPECT_EQ(other.Take(text), 0U);
  other.key = life.key;
  other.key.recipe += " ";
  EXPECT_EQ(other.Take(text), 0U);
  other.key = life.key;
  other.key.budget_bytes += 1;
  EXPECT_EQ(other.Take(text) > 0, !GetParam().drops);  // where nothing was lost, budgets do not matter
}

// One that is pinned as a whole stays in its tiers, there and where it is found again.
TEST_P(ModelStore, SystemPromptsArePinned) {
  const std::vector<int32_t> rules = Text(200, 1), other = Text(200, 2);
  const auto pinned_bytes = [](const Life& life) {
    const store::StoreStats stats = life.prefixes->store().stats();
    return std::pair(stats.tiers[0].pinned_bytes, stats.tiers[1].pinned_bytes);
  };
  {
    const Life first = Live();
    first.Feed(other);
    EXPECT_TRUE(first.Keep(other));
    EXPECT_EQ(pinned_bytes(first), std::pair(uint64_t{0}, uint64_t{0}));
    ASSERT_TRUE(first.sequence->Reset());
    first.Feed(rules);
    EXPECT_TRUE(first.prefixes->Keep(*first.engine, first.sequence->id(), first.key, rules, rules.size(), 100));
    EXPECT_TRUE(first.prefixes->store().Sync());
    EXPECT_GT(pinned_bytes(first).first, 0U);
    EXPECT_GT(pinned_bytes(first).second, 0U);
  }
  const Life second = Live();
  EXPECT_EQ(pinned_bytes(second), std::pair(uint64_t{0}, uint64_t{0}));
  EXPECT_TRUE(second.prefixes->TakeInto(*second.sequence, second.key, rules, rules.size()));
  EXPECT_GT(pinned_bytes(second).first, 0U);
  EXPECT_GT(pinned_bytes(second).second, 0U);
}

TEST_P(ModelStore, WhatComputesFasterIsNotLoaded) {
  const std::vector<int32_t> text = Text(300, 1);
  const Life life = Live();
  life.Feed(text);
  EXPECT_TRUE(life.Keep(text, 1e-9));
  const Life other = Live();
  EXPECT_EQ(other.Take(text), 0U);
  EXPECT_EQ(other.prefixes->store().stats().too_slow, 1U);
}

TEST_P(ModelStore, DamagedFilesAreMisses) {
  const std::vector<int32_t> text = Text(300, 1);
  {
    const Life life = Live();
    life.Feed(text);
    EXPECT_TRUE(life.Keep(text));
  }
  for (const auto& entry : std::filesystem::directory_iterator(folder_)) {
    std::fstream file(entry.path(), std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(static_cast<std::streamoff>(std::filesystem::file_size(entry.path()) / 2));
    file.write("damaged", 7);
  }
  const Life life = Live();
  EXPECT_EQ(life.Take(text), 0U);
  EXPECT_EQ(life.prefixes->store().stats().errors["corrupt"], 1U);
  EXPECT_EQ(life.prefixes->store().stats().misses, 1U);
  life.Feed(text);  // and it goes on
}

INSTANTIATE_TEST_SUITE_P(Kinds, ModelStore,
                         ::testing::Values(Case{"llama", "full", {}}, Case{"llama", "full", KvFormat::kQ8},
                                           Case{"llama", "keydiff", {}, true}, Case{"llama", "snapkv", {}, true},
                                           Case{"gemma3", "full", {}}, Case{"lfm2", "full", {}},
                                           Case{"mamba", "full", {}}),
                         [](const auto& kind) {
                           std::string name = kind.param.architecture + "_" + kind.param.recipe + "_" +
                                              kind.param.format.Name();
                           std::erase_if(name, [](char c) { return std::isalnum(c) == 0 && c != '_'; });
                           return name;
                         });

}  // namespace
}  // namespace pith
