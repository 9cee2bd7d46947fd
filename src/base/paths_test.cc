#include "base/paths.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <string>

namespace pith {
namespace {

class PathsTest : public ::testing::Test {
 protected:
  void SetUp() override {
    unsetenv("PITH_CACHE_DIR");
    unsetenv("XDG_CACHE_HOME");
    unsetenv("PITH_DEFAULT_MODEL");
    setenv("HOME", "/home/ada", 1);
  }
};

TEST_F(PathsTest, CacheDirTakesTheFirstThatIsSet) {
  EXPECT_EQ(CacheDir(), "/home/ada/.cache/pith");
  setenv("XDG_CACHE_HOME", "/xdg", 1);
  EXPECT_EQ(CacheDir(), "/xdg/pith");
  setenv("PITH_CACHE_DIR", "/own", 1);
  EXPECT_EQ(CacheDir(), "/own");
}

TEST_F(PathsTest, AnEmptyVariableCountsAsUnset) {
  setenv("PITH_CACHE_DIR", "", 1);
  setenv("XDG_CACHE_HOME", "", 1);
  EXPECT_EQ(CacheDir(), "/home/ada/.cache/pith");
}

TEST_F(PathsTest, DefaultModelCanBeReplaced) {
  setenv("PITH_CACHE_DIR", "/own", 1);
  EXPECT_EQ(DefaultModelPath(), "/own/models/SmolLM2-135M-Instruct.Q4_1.gguf");
  setenv("PITH_DEFAULT_MODEL", "/elsewhere/m.gguf", 1);
  EXPECT_EQ(DefaultModelPath(), "/elsewhere/m.gguf");
}

}  // namespace
}  // namespace pith
