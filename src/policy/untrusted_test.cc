#include "policy/untrusted.h"

#include <gtest/gtest.h>

namespace pith {
namespace {

TEST(Untrusted, NoFileIsNamedOrLookedAt) {
  for (const char* text : {"score=keydiff alloc=file:/etc/passwd act=drop", "score=keydiff alloc=file:path=x act=drop",
                           "keydiff alloc=epicache:path=/etc/passwd", "keydiff turns=epicache:minilm.gguf",
                           "epicache:embedder=minilm.gguf", "kvzip or keydiff alloc=file:x"}) {
    SCOPED_TRACE(text);
    const Result<Recipe> recipe = ParseUntrustedRecipe(text);
    ASSERT_FALSE(recipe);
    EXPECT_EQ(recipe.error().code, ErrorCode::kInvalidArgument);
    EXPECT_NE(recipe.error().message.find("names a file"), std::string::npos) << recipe.error().message;
  }
  EXPECT_TRUE(ParseRecipe("keydiff turns=epicache:minilm.gguf")) << "control: others may";
}

TEST(Untrusted, AllElseIsTheSame) {
  for (const char* text : {"pith", "snapkv:window=64", "epicache:episodes=2", "kvzip or keydiff"}) {
    ASSERT_TRUE(ParseUntrustedRecipe(text)) << text;
    EXPECT_EQ(ParseUntrustedRecipe(text)->text, ParseRecipe(text)->text);
  }
  EXPECT_EQ(ParseUntrustedRecipe("nonsense").error().message, ParseRecipe("nonsense").error().message);
}

}  // namespace
}  // namespace pith
