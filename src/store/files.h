// The few things that the store asks of a file system, so that tests can let each of them fail.
#ifndef PITH_STORE_FILES_H_
#define PITH_STORE_FILES_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "pith/types.h"

namespace pith::store {

class File {
 public:
  virtual ~File() = default;
  virtual Status WriteAt(uint64_t offset, std::span<const std::byte> bytes) = 0;
  // These bytes will be read soon: what brings them from the disk may begin.
  virtual void WillRead(uint64_t /*offset*/, uint64_t /*bytes*/) {}
  // All of `to`. kCorrupt: the file ends before.
  virtual Status ReadAt(uint64_t offset, std::span<std::byte> to) = 0;
  virtual Status Sync() = 0;
  virtual Status Truncate(uint64_t bytes) = 0;
  virtual Result<uint64_t> Size() = 0;
  // Until the file is closed, against other processes and other File objects. False: somebody else has it.
  virtual bool TryLock() = 0;
};

class Files {
 public:
  virtual ~Files() = default;
  enum class Mode : uint8_t { kRead, kWrite, kCreate };  // kCreate: it must not be there yet
  virtual Result<std::unique_ptr<File>> Open(const std::string& path, Mode mode) = 0;
  virtual Status Remove(const std::string& path) = 0;
  // Names of what lies in a folder.
  virtual Result<std::vector<std::string>> List(const std::string& folder) = 0;
  // With those above it; it may be there.
  virtual Status MakeFolder(const std::string& folder) = 0;
  // New and removed names outlive a loss of power.
  virtual Status SyncFolder(const std::string& folder) = 0;

  static Files& Real();
};

}  // namespace pith::store

#endif  // PITH_STORE_FILES_H_
