// Files of maps: what comes back is what was written, and what cannot be used is refused.
#include "policy/act/less.h"

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdio>
#include <fstream>
#include <limits>
#include <string>
#include <vector>

#include "base/gguf_file.h"
#include "policy/policy.h"

namespace pith {
namespace {

std::vector<float> Numbers(size_t count, float first) {
  std::vector<float> numbers(count);
  for (size_t i = 0; i < count; ++i) numbers[i] = first + 0.25F * static_cast<float>(i);
  return numbers;
}

LessLayer SmallLayer(float first) {
  return {.num_heads = 4,
          .num_kv_heads = 2,
          .dim = 3,
          .hidden = 5,
          .query_w1 = Numbers(4 * 3 * 5, first),
          .query_w2 = Numbers(4 * 5 * 2, first + 1),
          .key_w1 = Numbers(2 * 3 * 5, first + 2),
          .key_w2 = Numbers(2 * 5 * 2, first + 3),
          .key_w3 = Numbers(2 * 2 * 2, first + 4),
          .key_s1 = Numbers(2 * 2, first + 5),
          .key_s2 = Numbers(2 * 2, first + 6)};
}

class LessFile : public ::testing::Test {
 protected:
  void TearDown() override { std::remove(path_.c_str()); }
  Result<std::shared_ptr<const LessMaps>> Load(const std::string& bytes) const {
    std::ofstream(path_, std::ios::binary) << bytes;
    return LessMaps::Load(path_);
  }
  void ExpectRefused(const std::string& bytes, const std::string& part) const {
    const auto maps = Load(bytes);
    ASSERT_FALSE(maps) << part;
    EXPECT_NE(maps.error().message.find(part), std::string::npos) << maps.error().message;
    EXPECT_NE(maps.error().message.find(path_), std::string::npos) << maps.error().message;
  }
  static std::string Written(const LessLayer& layer, const std::string& without = {}, uint32_t rank = 2) {
    GgufWriter writer;
    if (without != "architecture") writer.Add("general.architecture", "pith-less");
    writer.Add("pith.less.layers", uint32_t{1});
    writer.Add("pith.less.rank", rank);
    const auto add = [&](const std::string& name, std::vector<size_t> shape, const std::vector<float>& numbers) {
      if (name != without) writer.Add("0." + name, std::move(shape), numbers);
    };
    add("phi.w1", {4, 3, 5}, layer.query_w1);
    add("phi.w2", {4, 5, 2}, layer.query_w2);
    add("psi.w1", {2, 3, 5}, layer.key_w1);
    add("psi.w2", {2, 5, 2}, layer.key_w2);
    add("psi.w3", {2, 2, 2}, layer.key_w3);
    add("psi.s1", {2, 2}, layer.key_s1);
    add("psi.s2", {2, 2}, layer.key_s2);
    return writer.Bytes();
  }

  const std::string path_ = ::testing::TempDir() + fmt::format("pith_less_{}.gguf", getpid());
};

TEST_F(LessFile, ComesBackAsItWas) {
  const auto maps = LessMaps::Make(2, {SmallLayer(0), SmallLayer(100)});
  ASSERT_TRUE(maps) << maps.error().message;
  const auto read = Load((*maps)->Bytes());
  ASSERT_TRUE(read) << read.error().message;
  EXPECT_EQ((*read)->rank(), 2);
  EXPECT_EQ((*read)->num_layers(), 2);
  EXPECT_EQ((*read)->fingerprint(), (*maps)->fingerprint());
  const kernels::FeatureMap query = (*read)->QueryMap(1, 3), key = (*read)->KeyMap(1, 1);
  EXPECT_EQ(query.w1[0], 100 + 0.25F * 3 * 15);
  EXPECT_EQ(query.w2[0], 101 + 0.25F * 3 * 10);
  EXPECT_EQ(key.w1[0], 102 + 0.25F * 15);
  EXPECT_EQ(key.w2[0], 103 + 0.25F * 10);
  EXPECT_EQ(key.w3[0], 104 + 0.25F * 4);
  EXPECT_EQ(key.s1[0], 105 + 0.25F * 2);
  EXPECT_EQ(key.s2[0], 106 + 0.25F * 2);
  EXPECT_EQ(query.w3, nullptr);
  const auto other = LessMaps::Make(2, {SmallLayer(0), SmallLayer(101)});
  EXPECT_NE((*other)->fingerprint(), (*maps)->fingerprint());
}

TEST_F(LessFile, WhatCannotBeUsedIsRefused) {
  const LessLayer layer = SmallLayer(0);
  ASSERT_TRUE(Load(Written(layer))) << "the control";
  ExpectRefused("GG", "not a GGUF file");
  ExpectRefused(Written(layer, "architecture"), "holds no maps of act=less");
  for (const char* const part : {"phi.w1", "psi.w1"}) ExpectRefused(Written(layer, part), "layer 0");
  for (const char* const part : {"phi.w2", "psi.w2", "psi.w3", "psi.s1", "psi.s2"}) {
    ExpectRefused(Written(layer, part), fmt::format("0.{} is not of float32 in the shape", part));
  }
  ExpectRefused(Written(layer, {}, 3), "shape 4 x 5 x 3");
  ExpectRefused(Written(layer, {}, 0), "0 features");
  ExpectRefused(Written(layer, {}, 65), "65 features");
  LessLayer bad = layer;
  bad.key_w2[3] = std::numeric_limits<float>::quiet_NaN();
  ExpectRefused(Written(bad), "0.psi.w2 holds what is no number");
  const std::string whole = Written(layer);
  for (size_t length = 0; length < whole.size(); ++length) ASSERT_FALSE(Load(whole.substr(0, length))) << length;
}

TEST_F(LessFile, RecipesNameIt) {
  std::ofstream(path_, std::ios::binary) << Written(SmallLayer(0));
  const auto recipe = ParseRecipe("snapkv act=less:" + path_);
  ASSERT_TRUE(recipe) << recipe.error().message;
  ASSERT_NE(recipe->policy->less(), nullptr);
  EXPECT_EQ(recipe->policy->less()->rank(), 2);
  EXPECT_EQ(recipe->text, "snapkv act=less:path=" + path_);
  EXPECT_TRUE(ParseRecipe(recipe->text));
  const std::vector<std::string> refusals = {"snapkv act=less", "snapkv act=less:/nowhere.gguf",
                                             "snapkv turns=flowkv act=less:" + path_};
  for (const std::string& text : refusals) {
    const auto refused = ParseRecipe(text);
    ASSERT_FALSE(refused) << text;
    EXPECT_NE(refused.error().message.find(text.find("nowhere") == std::string::npos ? "act=less" : "/nowhere.gguf"),
              std::string::npos)
        << refused.error().message;
  }
}

}  // namespace
}  // namespace pith
