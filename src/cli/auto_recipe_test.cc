#include "cli/auto_recipe.h"

#include <gtest/gtest.h>

#include <string>

namespace pith::cli {
namespace {

constexpr const char* kCurve = R"({"pith_recipes": 1, "model": "a model", "compress": "block", "shares": [
  {"keep": 0.1, "recipe": "keydiff format=q4", "kl": 0.4, "accuracy": 0.5, "full_accuracy": 1},
  {"keep": 0.5, "recipe": "snapkv", "kl": 0.1, "accuracy": 1, "full_accuracy": 1}]})";

TEST(AutoRecipe, TakesWhatWasMeasuredAtNoMore) {
  const auto curve = ParseRecipeCurve(kCurve, "x");
  ASSERT_TRUE(curve) << curve.error().message;
  EXPECT_EQ(curve->model, "a model");
  EXPECT_EQ(curve->compress, "block");
  EXPECT_EQ(ChooseRecipe(*curve, 0.9).recipe, "snapkv");
  EXPECT_EQ(ChooseRecipe(*curve, 0.5).recipe, "snapkv");
  EXPECT_EQ(ChooseRecipe(*curve, 0.49).recipe, "keydiff format=q4");
  EXPECT_EQ(ChooseRecipe(*curve, 0.01).recipe, "keydiff format=q4");
}

TEST(AutoRecipe, PithHasItsOwnMeasurement) {
  const auto curve = ReadRecipeCurve("auto");
  ASSERT_TRUE(curve) << curve.error().message;
  EXPECT_EQ(curve->compress, "block");
  for (const MeasuredRecipe& row : curve->rows) EXPECT_GT(row.kl, 0) << row.recipe;
}

TEST(AutoRecipe, ASentenceForEveryFault) {
  EXPECT_EQ(ReadRecipeCurve("auto:/nonexistent").error().code, ErrorCode::kNotFound);
  EXPECT_EQ(ReadRecipeCurve("auto:").error().code, ErrorCode::kInvalidArgument);
  std::string text = kCurve;
  for (const auto& [from, to] :
       {std::pair("\"pith_recipes\": 1", "\"pith_recipes\": 2"), std::pair("\"block\"", "\"never\""),
        std::pair("snapkv", "no_such_recipe"), std::pair("\"kl\": 0.1,", ""), std::pair("\"keep\": 0.5", "\"keep\": 0"),
        std::pair("\"accuracy\": 1", "\"accuracy\": 2"), std::pair("\"a model\"", "7"),
        std::pair("\"shares\"", "\"other\""), std::pair("]", "")}) {
    std::string broken = text;
    broken.replace(broken.find(from), std::string_view(from).size(), to);
    const auto curve = ParseRecipeCurve(broken, "FILE");
    ASSERT_FALSE(curve) << broken;
    EXPECT_EQ(curve.error().code, ErrorCode::kCorrupt);
    EXPECT_TRUE(curve.error().message.starts_with("FILE"));
  }
}

}  // namespace
}  // namespace pith::cli
