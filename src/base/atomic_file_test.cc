#include "base/atomic_file.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <thread>

namespace pith {
namespace {

namespace fs = std::filesystem;

class AtomicFileTest : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = fs::temp_directory_path() / ("pith_atomic_" + std::to_string(::getpid()));
    fs::remove_all(folder_);
    fs::create_directories(folder_);
  }
  void TearDown() override { fs::remove_all(folder_); }

  std::string At(const std::string& name) const { return (folder_ / name).string(); }
  static std::string Read(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
  }
  size_t NumFiles() const {
    return static_cast<size_t>(std::distance(fs::directory_iterator(folder_), fs::directory_iterator{}));
  }

  fs::path folder_;
};

TEST_F(AtomicFileTest, ReplacesAFileWholeOrNotAtAll) {
  ASSERT_TRUE(WriteWholeFile(At("a"), "one"));
  EXPECT_EQ(Read(At("a")), "one");
  ASSERT_EQ(::chmod(At("a").c_str(), 0640), 0);
  {
    auto file = AtomicFile::Open(At("a"));
    ASSERT_TRUE(file);
    EXPECT_TRUE(file->replaces());
    std::fputs("half", file->stream());
    EXPECT_EQ(Read(At("a")), "one");
  }  // no Commit()
  EXPECT_EQ(Read(At("a")), "one");
  ASSERT_TRUE(WriteWholeFile(At("a"), "two"));
  EXPECT_EQ(Read(At("a")), "two");
  struct stat info {};
  ASSERT_EQ(::stat(At("a").c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 07777, 0640U);
  EXPECT_EQ(NumFiles(), 1U);
}

TEST_F(AtomicFileTest, FollowsLinks) {
  fs::create_directory(folder_ / "sub");
  ASSERT_TRUE(WriteWholeFile(At("sub/real"), "old"));
  fs::create_symlink("sub/second", At("first"));
  fs::create_symlink("real", At("sub/second"));
  ASSERT_TRUE(WriteWholeFile(At("first"), "new"));
  EXPECT_TRUE(fs::is_symlink(At("first")));
  EXPECT_TRUE(fs::is_symlink(At("sub/second")));
  EXPECT_EQ(Read(At("sub/real")), "new");
  fs::create_symlink("sub/none", At("dangling"));
  ASSERT_TRUE(WriteWholeFile(At("dangling"), "made"));
  EXPECT_EQ(Read(At("sub/none")), "made");
  fs::create_symlink("round", At("round"));
  EXPECT_FALSE(WriteWholeFile(At("round"), "x"));
}

TEST_F(AtomicFileTest, WritesWhatIsNoRegularFileInPlace) {
  ASSERT_EQ(::mkfifo(At("pipe").c_str(), 0600), 0);
  std::string got;
  std::thread reader([&] { got = Read(At("pipe")); });
  EXPECT_TRUE(WriteWholeFile(At("pipe"), "through"));
  reader.join();
  EXPECT_EQ(got, "through");
  EXPECT_TRUE(fs::is_fifo(At("pipe")));
  EXPECT_TRUE(CheckWritable(At("pipe")));
  fs::create_symlink("/dev/null", At("null"));
  EXPECT_TRUE(WriteWholeFile(At("null"), "x"));
  EXPECT_TRUE(fs::is_symlink(At("null")));
  EXPECT_TRUE(fs::is_character_file("/dev/null"));
  const Status full = WriteWholeFile("/dev/full", "x");
  ASSERT_FALSE(full);
  EXPECT_EQ(full.error().message, "/dev/full could not be written: No space left on device");
}

// A file that others write to, too.
TEST_F(AtomicFileTest, GoesOnBehindWhatAProcFileHolds) {
  const int fd = ::open(At("out").c_str(), O_WRONLY | O_CREAT, 0600);
  ASSERT_EQ(::write(fd, "first ", 6), 6);
  ASSERT_TRUE(WriteWholeFile("/proc/self/fd/" + std::to_string(fd), "second"));
  ::close(fd);
  EXPECT_EQ(Read(At("out")), "first second");
}

TEST_F(AtomicFileTest, SaysWhyItCannotWrite) {
  EXPECT_EQ(WriteWholeFile(At("none/x"), "x").error().message,
            At("none/x") + " could not be written: No such file or directory");
  EXPECT_EQ(WriteWholeFile(folder_.string(), "x").error().message, folder_.string() + " is a folder, not a file");
  EXPECT_FALSE(WriteWholeFile("", "x"));
  EXPECT_FALSE(CheckWritable(At("none/x")));
  EXPECT_TRUE(CheckWritable(At("new")));
  EXPECT_EQ(NumFiles(), 0U);
}

// Names that somebody has foreseen are not followed.
TEST_F(AtomicFileTest, TouchesNothingElse) {
  const std::string trap = At("a") + "." + std::to_string(::getpid());
  ASSERT_TRUE(WriteWholeFile(At("victim"), "safe"));
  fs::create_symlink("victim", trap);
  fs::create_symlink("victim", At("a.part"));
  ASSERT_TRUE(WriteWholeFile(At("a"), "new"));
  EXPECT_EQ(Read(At("victim")), "safe");
}

}  // namespace
}  // namespace pith
