// --recipe auto[:FILE]: what loses least in the bytes at hand, of the recipes that `pith tune recipe` has measured.
#ifndef PITH_CLI_AUTO_RECIPE_H_
#define PITH_CLI_AUTO_RECIPE_H_

#include <string>
#include <string_view>
#include <vector>

#include "pith/types.h"

namespace pith::cli {

inline bool IsAutoRecipe(std::string_view recipe) { return recipe == "auto" || recipe.starts_with("auto:"); }

// The best recipe at one share of the full f16 cache's bytes, and what it lost on the tasks it was measured on.
struct MeasuredRecipe {
  double share = 1;
  std::string recipe;
  double kl = 0;             // mean KL(full cache || compressed), nats
  double accuracy = 0;       // share of answers that are right
  double full_accuracy = 0;  // with the full cache
};

struct RecipeCurve {
  std::string model;     // that it was measured on
  std::string compress;  // "block" or "after"
  std::vector<MeasuredRecipe> rows;  // largest share first, at least one
};

// What `pith tune recipe` writes. kCorrupt with one sentence that begins with `name`.
Result<RecipeCurve> ParseRecipeCurve(std::string_view text, const std::string& name);
// Of --recipe auto:FILE, or pith's own for auto. kNotFound, kIo, kCorrupt.
Result<RecipeCurve> ReadRecipeCurve(std::string_view recipe);
// The row for a share below 1: measured at it or at less, so that what it lost is no promise too much; the smallest
// where all are larger.
const MeasuredRecipe& ChooseRecipe(const RecipeCurve& curve, double share);

}  // namespace pith::cli

#endif  // PITH_CLI_AUTO_RECIPE_H_
