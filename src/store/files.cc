#include "store/files.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <system_error>

namespace pith::store {
namespace {

tl::unexpected<Error> Failed(const std::string& path, const char* what) {
  const ErrorCode code = errno == ENOENT ? ErrorCode::kNotFound : ErrorCode::kIo;
  return MakeError(code, fmt::format("{} could not be {}: {}", path, what, std::strerror(errno)));
}

class RealFile final : public File {
 public:
  RealFile(std::string path, int fd) : path_(std::move(path)), fd_(fd) {}
  ~RealFile() override { ::close(fd_); }

  Status WriteAt(uint64_t offset, std::span<const std::byte> bytes) override {
    while (!bytes.empty()) {
      const ssize_t count = ::pwrite(fd_, bytes.data(), bytes.size(), static_cast<off_t>(offset));
      if (count < 0 && errno == EINTR) continue;
      if (count <= 0) return Failed(path_, "written");
      bytes = bytes.subspan(static_cast<size_t>(count));
      offset += static_cast<uint64_t>(count);
    }
    return {};
  }

  Status ReadAt(uint64_t offset, std::span<std::byte> to) override {
    while (!to.empty()) {
      const ssize_t count = ::pread(fd_, to.data(), to.size(), static_cast<off_t>(offset));
      if (count < 0 && errno == EINTR) continue;
      if (count < 0) return Failed(path_, "read");
      if (count == 0) return Corrupt(fmt::format("{} ends too early", path_));
      to = to.subspan(static_cast<size_t>(count));
      offset += static_cast<uint64_t>(count);
    }
    return {};
  }

  void WillRead(uint64_t offset, uint64_t bytes) override {
    (void)::posix_fadvise(fd_, static_cast<off_t>(offset), static_cast<off_t>(bytes), POSIX_FADV_WILLNEED);
  }

  Status Sync() override { return ::fdatasync(fd_) == 0 ? Status() : Status(Failed(path_, "brought to the disk")); }

  Status Truncate(uint64_t bytes) override {
    return ::ftruncate(fd_, static_cast<off_t>(bytes)) == 0 ? Status() : Status(Failed(path_, "cut"));
  }

  Result<uint64_t> Size() override {
    struct stat info {};
    if (::fstat(fd_, &info) != 0) return Failed(path_, "looked at");
    return static_cast<uint64_t>(info.st_size);
  }

  bool TryLock() override { return ::flock(fd_, LOCK_EX | LOCK_NB) == 0; }

 private:
  std::string path_;
  int fd_;
};

class RealFiles final : public Files {
 public:
  Result<std::unique_ptr<File>> Open(const std::string& path, Mode mode) override {
    const int flags = mode == Mode::kRead ? O_RDONLY : mode == Mode::kWrite ? O_RDWR : O_RDWR | O_CREAT | O_EXCL;
    // A pipe of that name would keep whoever opens it waiting.
    const int fd = ::open(path.c_str(), flags | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0600);
    if (fd < 0) return Failed(path, "opened");
    auto file = std::unique_ptr<File>(new RealFile(path, fd));
    struct stat info {};
    if (::fstat(fd, &info) != 0 || !S_ISREG(info.st_mode)) return IoError(fmt::format("{} is no file", path));
    return file;
  }

  Status Remove(const std::string& path) override {
    return ::unlink(path.c_str()) == 0 ? Status() : Status(Failed(path, "removed"));
  }

  Result<std::vector<std::string>> List(const std::string& folder) override {
    std::error_code error;
    std::vector<std::string> names;
    std::filesystem::directory_iterator at(folder, error);
    for (; !error && at != std::filesystem::directory_iterator(); at.increment(error)) {
      names.push_back(at->path().filename().string());
    }
    if (error) return IoError(fmt::format("{} could not be listed: {}", folder, error.message()));
    return names;
  }

  Status MakeFolder(const std::string& folder) override {
    std::error_code error;
    std::filesystem::create_directories(folder, error);
    if (error) return IoError(fmt::format("the folder {} could not be made: {}", folder, error.message()));
    if (!std::filesystem::is_directory(folder, error)) return InvalidArgument(fmt::format("{} is no folder", folder));
    return {};
  }

  Status SyncFolder(const std::string& folder) override {
    const int fd = ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) return Failed(folder, "opened");
    (void)::fsync(fd);  // not every file system has a way
    ::close(fd);
    return {};
  }
};

}  // namespace

Files& Files::Real() {
  static RealFiles files;
  return files;
}

}  // namespace pith::store
