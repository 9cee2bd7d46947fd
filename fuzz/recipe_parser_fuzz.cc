// Any bytes as a recipe: no crash, and what parses also parses in its normalised form, to the same
// normalised form.
#include <cstdint>
#include <string_view>

#include "base/check.h"
#include "policy/policy.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const pith::Result<pith::Recipe> recipe = pith::ParseRecipe(text);
  if (!recipe) {
    PITH_CHECK(!recipe.error().message.empty());
    return 0;
  }
  const pith::Result<pith::Recipe> again = pith::ParseRecipe(recipe->text);
  PITH_CHECK(again.has_value());
  PITH_CHECK(again->text == recipe->text);
  PITH_CHECK(again->num_sinks == recipe->num_sinks);
  PITH_CHECK(again->policy->needs() == recipe->policy->needs());
  PITH_CHECK(again->policy->window() == recipe->policy->window());
  return 0;
}
