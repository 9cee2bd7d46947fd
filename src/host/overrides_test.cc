#include "host/overrides.h"

#include <gtest/gtest.h>

#include <string>

namespace pith {
namespace {

std::string ErrorOf(const std::string& text) {
  const auto parsed = ParseMetadataOverrides(text);
  return parsed ? "" : parsed.error().message;
}

std::string RopeError(const std::string& text) {
  const auto parsed = ParseRope(text);
  return parsed ? "" : parsed.error().message;
}

TEST(Overrides, MetadataIsWrittenAsInLlamaCpp) {
  const auto all = ParseMetadataOverrides(
      "a=int:-7,b.c=float:2.5,d=bool:true,e=str:x=y:z,\"f=str:one, \"\"two\"\"\",g=str:,a=int:9");
  ASSERT_TRUE(all) << all.error().message;
  ASSERT_EQ(all->size(), 7U);
  EXPECT_EQ(std::get<int64_t>((*all)[0].value), -7);
  EXPECT_EQ((*all)[1].key, "b.c");
  EXPECT_EQ(std::get<double>((*all)[1].value), 2.5);
  EXPECT_EQ(std::get<bool>((*all)[2].value), true);
  EXPECT_EQ(std::get<std::string>((*all)[3].value), "x=y:z");
  EXPECT_EQ(std::get<std::string>((*all)[4].value), "one, \"two\"");
  EXPECT_EQ(std::get<std::string>((*all)[5].value), "");
  EXPECT_EQ(std::get<int64_t>(ModelOverrides{.metadata = *all, .rope = {}}.Find("a")->value), -7) << "the first counts";
}

TEST(Overrides, MetadataThatIsNoneIsRefused) {
  const std::string begin = "override-kv takes KEY=TYPE:VALUE, and \"";
  EXPECT_EQ(ErrorOf("a"), begin + "a\" is none of that");
  EXPECT_EQ(ErrorOf("a:b=3"), begin + "a:b=3\" is none of that");
  EXPECT_EQ(ErrorOf("=int:3"), begin + "=int:3\" is none of that");
  EXPECT_EQ(ErrorOf("a=int:3,"), begin + "\" is none of that");
  EXPECT_EQ(ErrorOf("a=int:3.5"), begin + "a=int:3.5\" has no whole number");
  EXPECT_EQ(ErrorOf("a=int:"), begin + "a=int:\" has no whole number");
  EXPECT_EQ(ErrorOf("a=int:99999999999999999999"), begin + "a=int:99999999999999999999\" has no whole number");
  EXPECT_EQ(ErrorOf("a=float:x"), begin + "a=float:x\" has no number");
  EXPECT_EQ(ErrorOf("a=float:nan"), begin + "a=float:nan\" has no number");
  EXPECT_EQ(ErrorOf("a=bool:1"), begin + "a=bool:1\" has neither true nor false");
  EXPECT_EQ(ErrorOf("a=u32:1"), begin + "a=u32:1\" has the type u32: there are int, float, bool and str");
  EXPECT_EQ(ErrorOf("a=str:" + std::string(127, 'x')), "");
  EXPECT_NE(ErrorOf("a=str:" + std::string(128, 'x')), "");
  EXPECT_NE(ErrorOf(std::string(128, 'x') + "=int:1"), "");
}

TEST(Overrides, RopeIsWrittenAsInLlamaCpp) {
  const auto rope =
      ParseRope("rope-scaling=yarn,rope-scale=4,rope-freq-base=1e6,yarn-orig-ctx=32768,yarn-ext-factor=0");
  ASSERT_TRUE(rope) << rope.error().message;
  EXPECT_EQ(*rope, (RopeOptions{.scaling = RopeScaling::kYarn,
                                .freq_base = 1e6f,
                                .freq_scale = 0.25f,
                                .yarn_orig_ctx = 32768,
                                .yarn_ext_factor = 0}));
  EXPECT_EQ(*ParseRope("rope-freq-scale=0.25,rope-scale=4"), *ParseRope("rope-scale=4"));
  EXPECT_EQ(*ParseRope(""), RopeOptions());
  EXPECT_EQ(*ParseRope("yarn-ext-factor=-1,yarn-attn-factor=-2,rope-freq-base=0,rope-freq-scale=0,yarn-orig-ctx=0"),
            RopeOptions());
}

TEST(Overrides, RopeThatIsNoneIsRefused) {
  EXPECT_EQ(RopeError("rope-scaling=ntk"), "rope-scaling takes none, linear or yarn, not \"ntk\"");
  EXPECT_EQ(RopeError("rope-scale=4,rope-freq-scale=0.5"),
            "rope-scale N is rope-freq-scale 1/N: one of them is enough");
  for (const char* wrong : {"0", "-1", "x", "", "nan", "inf", "1e9"}) {
    EXPECT_EQ(RopeError(std::string("rope-scale=") + wrong), "rope-scale takes a number from 0.0001 to 10000");
  }
  for (const char* wrong : {"1", "-5", "x", "inf"}) {
    EXPECT_EQ(RopeError(std::string("rope-freq-base=") + wrong),
              "rope-freq-base takes a number above 1, up to 1e+12, or 0 for the file's");
  }
  EXPECT_EQ(RopeError("yarn-orig-ctx=-1"), "yarn-orig-ctx takes a whole number of tokens, 0 for the file's");
  EXPECT_EQ(RopeError("yarn-ext-factor=x"), "yarn-ext-factor takes a number from 0 to 10000, or -1 for the file's");
  EXPECT_EQ(RopeError("yarn-beta-fast=0"), "yarn-beta-fast takes a number above 0, up to 10000, or -1 for the file's");
  EXPECT_EQ(RopeError("scale=4").substr(0, 39), "RoPE has no setting \"scale\": there are ");
}

TEST(Overrides, WhatComputesTheSameHasTheSameIdentity) {
  const auto identity = [](const std::string& metadata, const std::string& rope = {}) {
    return IdentityOf({.metadata = *ParseMetadataOverrides(metadata), .rope = *ParseRope(rope)});
  };
  EXPECT_EQ(identity("general.name=str:x,tokenizer.ggml.add_bos_token=bool:true"), "");
  EXPECT_NE(identity("general.architecture=str:qwen2"), "");
  EXPECT_EQ(identity("a=int:1,b=int:2"), identity("b=int:2,a=int:1,b=int:3"));
  EXPECT_NE(identity("a=int:1"), identity("a=float:1"));
  EXPECT_NE(identity("a=str:1|5:b=c:d"), identity("a=str:1,b=str:d"));
  EXPECT_EQ(identity("tokenizer.x=int:1", "rope-scale=4"), identity("general.x=int:1", "rope-freq-scale=0.25"));
  EXPECT_NE(identity("general.x=int:1", "rope-scale=4"), identity("general.x=int:1", "rope-scale=8"));
}

}  // namespace
}  // namespace pith
