// pith recipes: every recipe and every stage.
#include <algorithm>
#include <cctype>
#include <memory>
#include <string>
#include <vector>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "base/escaped.h"
#include "base/json_text.h"
#include "cli/arguments.h"
#include "cli/command.h"

namespace pith::cli {
namespace {

constexpr const char* kRecipesExamples = R"(
A recipe is a name, a name with parameters, or stages; a stage beside a name takes the place of the recipe's own.

Examples:
  pith run --recipe snapkv ...
  pith run --recipe snapkv:window=64,pool=7 ...
  pith run --recipe "score=snapkv agg=max alloc=ada:alpha=0.2" ...
  pith recipes snapkv
  pith recipes --long
  pith recipes --json
)";

struct RecipesFlags {
  std::string name;
  bool all = false;
  bool json = false;
  bool markdown = false;
};

nlohmann::ordered_json ToJson() {
  auto recipes = nlohmann::ordered_json::array();
  for (const RecipeInfo& recipe : ListRecipes()) {
    recipes.push_back({{"name", recipe.name},
                       {"paper", recipe.paper},
                       {"summary", recipe.summary},
                       {"stages", recipe.stages},
                       {"needs", recipe.needs},
                       {"cost", recipe.cost},
                       {"when", recipe.when},
                       {"good_for", recipe.good_for},
                       {"parameters", recipe.parameters}});
  }
  auto stages = nlohmann::ordered_json::array();
  for (const StageListing& stage : ListStages()) {
    stages.push_back({{"kind", stage.kind},
                      {"name", stage.name},
                      {"paper", stage.paper},
                      {"summary", stage.summary},
                      {"parameters", stage.parameters}});
  }
  return {{"recipes", recipes}, {"stages", stages}, {"default", kDefaultRecipe}};
}

void PrintField(const char* name, const std::string& value) {
  if (!value.empty()) fmt::print("    {:<11}{}\n", name, value);
}

void PrintOne(const RecipeInfo& recipe) {
  fmt::print("{}{}\n", recipe.name, recipe.summary.empty() ? "" : ": " + recipe.summary);
  PrintField("paper", recipe.paper);
  PrintField("stages", recipe.stages);
  PrintField("needs", recipe.needs);
  PrintField("cost", recipe.cost);
  PrintField("when", recipe.when);
  PrintField("good for", recipe.good_for);
  PrintField("parameters", recipe.parameters);
}

void PrintShort() {
  const std::vector<RecipeInfo> recipes = ListRecipes();
  size_t width = 0;
  for (const RecipeInfo& recipe : recipes) width = std::max(width, recipe.name.size());
  for (const RecipeInfo& recipe : recipes) fmt::print("{:<{}}  {}\n", recipe.name, width, recipe.summary);
  fmt::print(
      "\nWithout --recipe it is {}. \"pith recipes NAME\" says more of one, \"pith recipes --long\" of all and their "
      "stages.\n",
      kDefaultRecipe);
}

void PrintLong() {
  for (const RecipeInfo& recipe : ListRecipes()) PrintOne(recipe);
  fmt::print("\nStages, to mix freely:\n");
  for (const StageListing& stage : ListStages()) {
    fmt::print("  {:<28}{}{}\n", stage.kind + "=" + stage.name, stage.summary,
               stage.parameters.empty() ? "" : fmt::format(" [{}]", stage.parameters));
  }
}

Result<int> RunRecipes(const RecipesFlags& flags) {
  if (flags.json) {
    PrintJson(JsonText(ToJson(), 2));
  } else if (flags.markdown) {
    fmt::print("{}", RecipesMarkdown());
  } else if (flags.all) {
    PrintLong();
  } else if (!flags.name.empty()) {
    for (const RecipeInfo& recipe : ListRecipes()) {
      if (recipe.name == flags.name) PrintOne(recipe);
    }
  } else {
    PrintShort();
  }
  return kExitOk;
}

}  // namespace

void AddRecipes(CLI::App& app, Command& chosen) {
  auto flags = std::make_shared<RecipesFlags>();
  CLI::App* command = AddCommand(app, "recipes", "List what may decide which entries stay", kRecipesExamples);
  AddOption(*command, "NAME", flags->name, "Say all of this one", "TEXT");
  AddFlag(*command, "--long", flags->all, "Say all of every recipe and stage");
  AddFlag(*command, "--json", flags->json, "Print one JSON object");
  AddFlag(*command, "--markdown", flags->markdown, "Print the page docs/recipes/README.md");
  OnCommand(*command, [flags, &chosen] {
    chosen.check = [flags]() -> Status {
      if (flags->json + flags->markdown + flags->all + !flags->name.empty() > 1) {
        return InvalidArgument("choose one of NAME, --long, --json and --markdown");
      }
      const std::vector<RecipeInfo> known = ListRecipes();
      const auto is_named = [&](const RecipeInfo& recipe) { return recipe.name == flags->name; };
      if (!flags->name.empty() && std::ranges::none_of(known, is_named)) {
        std::vector<std::string> names;
        for (const RecipeInfo& recipe : known) names.emplace_back(recipe.name);
        return InvalidArgument(fmt::format("there is no recipe \"{}\"; {}\"pith recipes\" lists them",
                                           Escaped(flags->name), MayBeMeant(flags->name, names, "; ")));
      }
      return {};
    };
    chosen.run = [flags] { return RunRecipes(*flags); };
  });
}

}  // namespace pith::cli
