#include "base/atomic_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdint>
#include <cstring>

namespace pith {
namespace {

constexpr int kMostLinks = 40;  // as the kernel

tl::unexpected<Error> CannotWrite(const std::string& path, int error) {
  return IoError(fmt::format("{} could not be written: {}", path, std::strerror(error)));
}

// With the slash; empty: the working folder.
std::string FolderOf(const std::string& path) { return path.substr(0, path.rfind('/') + 1); }

// Where the links of `path` lead to, though nothing may be there yet. `by_number`: to an open file of some process.
Result<std::string> FollowLinks(const std::string& path, bool& by_number) {
  std::string target = path;
  for (int i = 0; i < kMostLinks; ++i) {
    by_number = by_number || target.starts_with("/proc/") || target.starts_with("/dev/fd/");
    std::array<char, 4096> link{};
    const ssize_t length = ::readlink(target.c_str(), link.data(), link.size());
    if (length < 0) return target;  // no link, or nothing
    const std::string next(link.data(), static_cast<size_t>(length));
    target = next.starts_with('/') ? next : FolderOf(target) + next;
  }
  return CannotWrite(path, ELOOP);
}

struct Place {
  std::string target;
  bool replaced = false;  // else opened as it is
  mode_t mode = 0;        // of the old file; 0: there is none
};

Result<Place> Find(const std::string& path) {
  if (path.empty()) return InvalidArgument("a file to write has an empty name");
  struct stat info {};
  const bool exists = ::stat(path.c_str(), &info) == 0;
  if (!exists && errno != ENOENT) return CannotWrite(path, errno);
  if (exists && S_ISDIR(info.st_mode)) return InvalidArgument(fmt::format("{} is a folder, not a file", path));
  bool by_number = false;
  PITH_ASSIGN_OR_RETURN(std::string target, FollowLinks(path, by_number));
  if (exists && ::access(path.c_str(), W_OK) != 0) return CannotWrite(path, errno);
  if (exists && (by_number || !S_ISREG(info.st_mode)))
    return Place{.target = path, .replaced = false, .mode = info.st_mode};
  return Place{.target = std::move(target), .replaced = true, .mode = exists ? info.st_mode & 07777 : 0};
}

// A file that did not exist before; its path goes to `fresh`. -1: errno says why not.
int OpenFresh(const std::string& target, std::string& fresh) {
  constexpr int kTries = 16;
  constexpr size_t kLongestName = 200;  // of 255 bytes
  const std::string folder = FolderOf(target);
  const std::string name = target.substr(folder.size(), kLongestName);
  for (int i = 0; i < kTries; ++i) {
    std::array<uint64_t, 2> random{};
    if (::getrandom(random.data(), sizeof random, 0) != static_cast<ssize_t>(sizeof random)) return -1;
    fresh = fmt::format("{}.{}.{:016x}{:016x}", folder, name, random[0], random[1]);
    const int fd = ::open(fresh.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0666);
    if (fd >= 0 || errno != EEXIST) return fd;
  }
  return -1;
}

// So that the new name outlives a loss of power, where the file system has a way.
void SyncFolder(const std::string& target) {
  const std::string folder = FolderOf(target);
  const int fd = ::open(folder.empty() ? "." : folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return;
  ::fsync(fd);
  ::close(fd);
}

}  // namespace

Result<AtomicFile> AtomicFile::Open(const std::string& path) {
  PITH_ASSIGN_OR_RETURN(const Place place, Find(path));
  AtomicFile file;
  file.path_ = path;
  file.target_ = place.target;
  int fd = -1;
  if (place.replaced) {
    std::string fresh;
    fd = OpenFresh(place.target, fresh);
    if (fd < 0) return CannotWrite(path, errno);
    file.fresh_ = std::move(fresh);
    if (place.mode != 0) (void)::fchmod(fd, place.mode);
  } else {
    fd = ::open(place.target.c_str(), O_WRONLY | O_APPEND | O_NOCTTY | O_CLOEXEC);
    if (fd < 0) return CannotWrite(path, errno);
  }
  file.stream_ = ::fdopen(fd, "wb");
  if (file.stream_ != nullptr) return file;
  const int error = errno;
  ::close(fd);
  return CannotWrite(path, error);
}

AtomicFile::~AtomicFile() {
  if (stream_ != nullptr) std::fclose(stream_);
  if (!fresh_.empty()) ::unlink(fresh_.c_str());
}

Status AtomicFile::Commit() {
  errno = 0;
  bool ok = std::fflush(stream_) == 0 && std::ferror(stream_) == 0;
  // Pipes and the like have nothing to bring to a disk.
  if (ok && replaces()) ok = ::fsync(::fileno(stream_)) == 0 || errno == EINVAL || errno == ENOTSUP;
  int error = errno;
  if (std::fclose(stream_) != 0 && ok) {
    ok = false;
    error = errno;
  }
  stream_ = nullptr;
  if (!ok) return CannotWrite(path_, error != 0 ? error : EIO);
  if (!replaces()) return {};
  if (std::rename(fresh_.c_str(), target_.c_str()) != 0) return CannotWrite(path_, errno);
  fresh_.clear();
  SyncFolder(target_);
  return {};
}

Status WriteWholeFile(const std::string& path, std::string_view text) {
  PITH_ASSIGN_OR_RETURN(AtomicFile file, AtomicFile::Open(path));
  std::fwrite(text.data(), 1, text.size(), file.stream());
  return file.Commit();
}

Status CheckWritable(const std::string& path) {
  PITH_ASSIGN_OR_RETURN(const Place place, Find(path));
  if (!place.replaced) return {};
  PITH_ASSIGN_OR_RETURN(const AtomicFile file, AtomicFile::Open(path));
  return {};
}

}  // namespace pith
