#include "base/paths.h"

#include <gtest/gtest.h>

#include <pwd.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <memory>
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

// A folder that everybody can write is no place for models.
TEST_F(PathsTest, WithoutHomeThePasswordDatabaseSays) {
  for (const bool empty : {false, true}) {
    unsetenv("HOME");
    if (empty) setenv("HOME", "", 1);
    const passwd* entry = getpwuid(getuid());
    EXPECT_EQ(CacheDir(), std::string(entry != nullptr ? entry->pw_dir : "/nonexistent") + "/.cache/pith");
    EXPECT_FALSE(CacheDir().starts_with("/tmp"));
    // As the scripts have it.
    const std::unique_ptr<std::FILE, int (*)(std::FILE*)> script(
        popen("bash -c '. " PITH_SOURCE_DIR "/scripts/common.sh; pith_cache_dir'", "r"), &pclose);
    char line[4096] = "";
    ASSERT_NE(script, nullptr);
    ASSERT_NE(std::fgets(line, sizeof line, script.get()), nullptr);
    EXPECT_EQ(CacheDir(), line);
  }
}

TEST_F(PathsTest, DefaultModelCanBeReplaced) {
  setenv("PITH_CACHE_DIR", "/own", 1);
  EXPECT_EQ(DefaultModelPath(), "/own/models/SmolLM2-135M-Instruct.Q4_1.gguf");
  setenv("PITH_DEFAULT_MODEL", "/elsewhere/m.gguf", 1);
  EXPECT_EQ(DefaultModelPath(), "/elsewhere/m.gguf");
}

}  // namespace
}  // namespace pith
