#include "policy/act/delta_maps.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdio>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/text.h"
#include "cache/latents.h"
#include "policy/act/demote.h"
#include "policy/policy.h"
#include "policy/registry.h"

namespace pith {
namespace {

constexpr uint8_t kLatents = 64;  // a quarter of 12 + 20 numbers
constexpr size_t kColumns = 8 * 32;

std::vector<uint16_t> Numbers(size_t count, float first) {
  std::vector<float> numbers(count);
  for (size_t i = 0; i < count; ++i) numbers[i] = first + 0.25F * static_cast<float>(i % 7);
  return ToMapNumbers(numbers);
}

// A layer of two heads; rows of F follow, or a weight.
DeltaLayer Layer(bool pair, float first) {
  const size_t count = pair ? 2 * kColumns : kColumns + 1;
  return {.key_dim = 12, .value_dim = 20, .heads = {Numbers(count, first), Numbers(count, first + 1)}};
}

class DeltaFile : public ::testing::Test {
 protected:
  void TearDown() override { std::remove(path_.c_str()); }
  // Of these bytes.
  Result<std::shared_ptr<const DeltaMaps>> Load(const std::string& bytes) {
    EXPECT_TRUE(WriteFile(path_, bytes));
    return DeltaMaps::Load(path_);
  }
  const std::string path_ = ::testing::TempDir() + "pith_delta_maps_" + std::to_string(getpid()) + ".gguf";
};

TEST_F(DeltaFile, ComesBackInBothForms) {
  const auto maps = *DeltaMaps::Make(kLatents, {Layer(false, 1), Layer(true, -3)});
  const auto loaded = Load(maps->Bytes());
  ASSERT_TRUE(loaded) << loaded.error().message;
  ASSERT_EQ((*loaded)->num_layers(), 2);
  EXPECT_EQ((*loaded)->latents(), kLatents);
  for (int layer = 0; layer < 2; ++layer) {
    EXPECT_EQ((*loaded)->layer(layer).key_dim, 12);
    EXPECT_EQ((*loaded)->layer(layer).value_dim, 20);
    EXPECT_EQ((*loaded)->layer(layer).heads, maps->layer(layer).heads);
  }
  EXPECT_NE((*loaded)->layer(0).heads, (*loaded)->layer(1).heads) << "the control";
  // And into a recipe, whose latents are then those of the file.
  const auto recipe = ParseRecipe("snapkv act=delta:" + path_ + ",latent=0.9,k=2,share=0.05");
  ASSERT_TRUE(recipe) << recipe.error().message;
  const DemoteOptions& options = *recipe->policy->demote();
  EXPECT_EQ(options.low, PageFormat::Latents(kLatents, 2));
  ASSERT_NE(options.maps, nullptr);
  EXPECT_EQ(options.maps->Bytes(), maps->Bytes());
  EXPECT_EQ(ParseRecipe("snapkv act=delta:latent=0.9")->policy->demote()->maps, nullptr);
}

TEST_F(DeltaFile, WhatIsNoneIsRefused) {
  const std::string bytes = (*DeltaMaps::Make(kLatents, {Layer(false, 1)}))->Bytes();
  ASSERT_TRUE(Load(bytes)) << "the control";
  for (const auto& [from, to] : {std::pair("pith-delta", "pith-lotto"), std::pair("0.key_weight", "0.key_weighs"),
                                 std::pair("pith.delta.0.key_dim", "pith.delta.0.key_dum"),
                                 std::pair("pith.delta.latent", "pith.delta.patent"), std::pair("0.up", "0.up_")}) {
    std::string damaged = bytes;
    const size_t at = damaged.find(from);
    ASSERT_NE(at, std::string::npos) << from;
    damaged.replace(at, std::string(to).size(), to);
    const auto loaded = Load(damaged);
    ASSERT_FALSE(loaded) << to;
    EXPECT_NE(loaded.error().message.find(path_), std::string::npos) << loaded.error().message;
  }
  EXPECT_FALSE(Load(bytes.substr(0, bytes.size() / 2)));
  DeltaLayer other = Layer(false, 1);
  other.heads[1].pop_back();
  EXPECT_FALSE(DeltaMaps::Make(kLatents, {other})) << "a number is missing";
  other = Layer(false, 1);
  other.heads[0][5] = 0x7c00;
  EXPECT_FALSE(DeltaMaps::Make(kLatents, {other})) << "one is infinite";
  EXPECT_FALSE(DeltaMaps::Load("/nowhere/at/all.gguf"));
}

}  // namespace
}  // namespace pith
