#include "host/fingerprint.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

namespace pith {
namespace {

class FingerprintTest : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = std::filesystem::temp_directory_path() / ("pith_fingerprint_" + std::to_string(::getpid()));
    std::filesystem::create_directories(folder_);
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }
  std::string At(const std::string& name) const { return (folder_ / name).string(); }
  std::string Write(const std::string& name, const std::string& bytes) const {
    std::ofstream(At(name), std::ios::binary) << bytes;
    return At(name);
  }
  // A hole but for what Change() writes: no disk is filled.
  std::string Sparse(const std::string& name, off_t size) const {
    Write(name, "GGUF");
    EXPECT_EQ(::truncate(At(name).c_str(), size), 0);
    return At(name);
  }
  static void Change(const std::string& path, off_t at, const std::string& bytes) {
    const int fd = ::open(path.c_str(), O_WRONLY);
    EXPECT_EQ(::pwrite(fd, bytes.data(), bytes.size(), at), static_cast<ssize_t>(bytes.size()));
    ::close(fd);
  }
  static uint64_t Of(const std::vector<std::string>& paths) {
    const auto value = ContentFingerprint(paths);
    EXPECT_TRUE(value);
    return value ? *value : 0;
  }

  std::filesystem::path folder_;
};

TEST_F(FingerprintTest, EveryByteOfSmallFilesCounts) {
  std::string bytes(100'003, 'x');
  const uint64_t first = Of({Write("a", bytes)});
  EXPECT_EQ(Of({Write("b", bytes)}), first);
  for (const size_t at : {size_t{0}, size_t{8}, size_t{40}, size_t{50'001}, bytes.size() - 1}) {
    std::string other = bytes;
    other[at] ^= 1;
    EXPECT_NE(Of({Write("c", other)}), first) << at;
  }
  EXPECT_NE(Of({Write("c", bytes + std::string(1, '\0'))}), first);
}

TEST_F(FingerprintTest, OrderAndBordersCount) {
  const std::string a = Write("a", "one"), b = Write("b", "two"), ab = Write("ab", "onetwo"), none = Write("none", "");
  EXPECT_NE(Of({a, b}), Of({b, a}));
  EXPECT_NE(Of({a, b}), Of({ab}));
  EXPECT_NE(Of({a, b}), Of({ab, none}));
}

TEST_F(FingerprintTest, LargeFilesAreSampled) {
  const off_t size = off_t{1} << 30;
  const std::string path = Sparse("large", size);
  const uint64_t first = Of({path});
  // As much as the smallest matrix of a large model.
  Change(path, size / 3, std::string(200'000, 'w'));
  const uint64_t second = Of({path});
  EXPECT_NE(second, first);
  Change(path, 700'000, "m");
  EXPECT_NE(Of({path}), second);
}

TEST_F(FingerprintTest, AFileThatIsGoneIsNamed) {
  const auto value = ContentFingerprint(std::vector<std::string>{At("none")});
  ASSERT_FALSE(value);
  EXPECT_NE(value.error().message.find(At("none")), std::string::npos);
}

}  // namespace
}  // namespace pith
