#include "host/tried_files.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

namespace pith {
namespace {

class TriedFiles : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = std::filesystem::temp_directory_path() / ("pith_tried_" + std::to_string(::getpid()));
    std::filesystem::create_directories(folder_);
    if (const char* before = std::getenv("PITH_CACHE_DIR")) before_ = before;
    setenv("PITH_CACHE_DIR", (folder_ / "cache").c_str(), 1);
  }
  void TearDown() override {
    std::filesystem::remove_all(folder_);
    if (before_.empty()) {
      unsetenv("PITH_CACHE_DIR");
    } else {
      setenv("PITH_CACHE_DIR", before_.c_str(), 1);
    }
  }
  std::string Write(const std::string& name, const std::string& text) const {
    const std::string path = (folder_ / name).string();
    std::ofstream(path) << text;
    return path;
  }

  std::filesystem::path folder_;
  std::string before_;
};

TEST_F(TriedFiles, RemembersAFileUntilItChanges) {
  const std::vector<std::string> paths = {Write("a", "one"), Write("b", "two")};
  const std::string key = FilesKey(paths);
  EXPECT_FALSE(WasTried(key));
  RememberTried(key);
  EXPECT_TRUE(WasTried(key));
  EXPECT_TRUE(WasTried(FilesKey(paths)));
  EXPECT_FALSE(WasTried(FilesKey(std::vector<std::string>{paths[0]})));
  Write("b", "three");
  EXPECT_FALSE(WasTried(FilesKey(paths)));
  EXPECT_TRUE(FilesKey(std::vector<std::string>{"/no/such/file"}).empty());
  EXPECT_FALSE(WasTried(""));
}

TEST_F(TriedFiles, ForgetsTheOldest) {
  for (int i = 0; i < 300; ++i) RememberTried("key " + std::to_string(i));
  EXPECT_FALSE(WasTried("key 0"));
  EXPECT_TRUE(WasTried("key 299"));
  EXPECT_TRUE(WasTried("key 100"));
}

TEST_F(TriedFiles, NoFolderIsNoHarm) {
  Write("cache", "a file where the folder should be");
  RememberTried("key");
  EXPECT_FALSE(WasTried("key"));
}

}  // namespace
}  // namespace pith
