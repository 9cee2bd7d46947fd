#include "cli/auto_recipe.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "base/json_text.h"
#include "cli/command.h"
#include "lab/embedded.h"
#include "policy/policy.h"

namespace pith::cli {
namespace {

using nlohmann::ordered_json;

bool IsShare(const ordered_json& json, const char* key) {
  return json.contains(key) && json[key].is_number() && json[key] >= 0 && json[key] <= 1;
}

}  // namespace

Result<RecipeCurve> ParseRecipeCurve(std::string_view text, const std::string& name) {
  const ordered_json json = OrderedJsonOf(text);
  const auto corrupt = [&name](std::string_view what) {
    return Corrupt(fmt::format("{} is no result of pith tune recipe: {}", name, what));
  };
  if (!json.is_object() || json.value("pith_recipes", ordered_json()) != 1)
    return corrupt("\"pith_recipes\": 1 is missing");
  const ordered_json model = json.value("model", ordered_json()), compress = json.value("compress", ordered_json());
  if (!model.is_string() || (compress != "block" && compress != "after"))
    return corrupt("it does not say of which model and how prompts were compressed");
  RecipeCurve curve{model.get<std::string>(), compress.get<std::string>(), {}};
  const ordered_json shares = json.value("shares", ordered_json());
  if (!shares.is_array() || shares.empty()) return corrupt("it holds no shares");
  for (const ordered_json& row : shares) {
    const bool complete = row.is_object() && IsShare(row, "keep") && IsShare(row, "accuracy") &&
                          IsShare(row, "full_accuracy") && row.contains("kl") && row["kl"].is_number() &&
                          row.contains("recipe") && row["recipe"].is_string();
    if (!complete || row["keep"] <= 0) return corrupt("a share lacks its recipe or what that lost");
    const auto recipe = row["recipe"].get<std::string>();
    if (const auto parsed = ParseRecipe(recipe); !parsed)
      return corrupt(fmt::format("the recipe {} ({})", recipe, parsed.error().message));
    curve.rows.push_back({row["keep"], recipe, row["kl"], row["accuracy"], row["full_accuracy"]});
  }
  std::ranges::sort(curve.rows, std::ranges::greater(), &MeasuredRecipe::share);
  return curve;
}

Result<RecipeCurve> ReadRecipeCurve(std::string_view recipe) {
  if (recipe == "auto") return ParseRecipeCurve(OwnRecipes(), "pith's own measurement");
  const std::string path(recipe.substr(recipe.find(':') + 1));
  if (path.empty())
    return InvalidArgument("--recipe auto: names no file; leave the colon out for pith's own measurement");
  PITH_ASSIGN_OR_RETURN(const std::string text, ReadFile(path));
  return ParseRecipeCurve(text, path);
}

const MeasuredRecipe& ChooseRecipe(const RecipeCurve& curve, double share) {
  const auto found =
      std::ranges::find_if(curve.rows, [share](const MeasuredRecipe& row) { return row.share <= share; });
  return found == curve.rows.end() ? curve.rows.back() : *found;
}

}  // namespace pith::cli
