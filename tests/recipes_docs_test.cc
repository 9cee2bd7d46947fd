// docs/recipes/README.md is what the registry says. PITH_UPDATE_DOCS=1 writes it anew.
#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>
#include <iterator>

#include "policy/policy.h"

namespace pith {
namespace {

TEST(RecipesDocs, TheTableIsUpToDate) {
  const std::string path = std::string(PITH_SOURCE_DIR) + "/docs/recipes/README.md";
  const std::string expected = RecipesMarkdown();
  if (std::getenv("PITH_UPDATE_DOCS") != nullptr) {
    std::ofstream(path, std::ios::binary) << expected;
  }
  std::ifstream in(path, std::ios::binary);
  ASSERT_TRUE(in) << "no " << path << "; run with PITH_UPDATE_DOCS=1";
  const std::string text((std::istreambuf_iterator<char>(in)), {});
  EXPECT_TRUE(text == expected) << path << " is out of date; run with PITH_UPDATE_DOCS=1";
}

}  // namespace
}  // namespace pith
