// Files that are written whole or not at all.
#ifndef PITH_BASE_ATOMIC_FILE_H_
#define PITH_BASE_ATOMIC_FILE_H_

#include <cstdio>
#include <string>
#include <string_view>
#include <utility>

#include "pith/types.h"

namespace pith {

// What a path leads to is written so:
//   a regular file, or nothing yet   a new file in the same folder, under a name that nobody can foresee, takes its
//   place
//                                    once it is on the disk; until then the old one stays whole. Links are followed.
//   a device, a pipe, a socket       it is opened and written: nothing takes its place
//   an open file (/dev/stdout, ...)  likewise, behind what is there: others may write it, too
class AtomicFile {
 public:
  // kIo, kInvalidArgument (a folder): one sentence that begins with the path. Waits for the reader of a named pipe.
  static Result<AtomicFile> Open(const std::string& path);
  AtomicFile(AtomicFile&& other) noexcept { Swap(other); }
  AtomicFile& operator=(AtomicFile&& other) noexcept {
    Swap(other);
    return *this;
  }
  // Without Commit(): a new file is removed, and the old one stays.
  ~AtomicFile();

  // For fwrite and the like; Commit() sees their errors. Seekable where replaces().
  std::FILE* stream() { return stream_; }
  bool replaces() const { return !fresh_.empty(); }
  // Closes the file. kIo: not all of it could be written; the old one stays.
  Status Commit();

 private:
  AtomicFile() = default;
  void Swap(AtomicFile& other) {
    std::swap(stream_, other.stream_);
    std::swap(path_, other.path_);
    std::swap(target_, other.target_);
    std::swap(fresh_, other.fresh_);
  }

  std::FILE* stream_ = nullptr;
  std::string path_;    // as given
  std::string target_;  // where its links lead to
  std::string fresh_;   // the new file's path; empty: written in place
};

// All of `text`, as above.
Status WriteWholeFile(const std::string& path, std::string_view text);

// What Open() would say now, without waiting and without a trace: for commands that write long after they began.
Status CheckWritable(const std::string& path);

}  // namespace pith

#endif  // PITH_BASE_ATOMIC_FILE_H_
