// Objects whose bytes follow from their tokens, so that a hit can be judged, and file systems that fail.
#ifndef PITH_STORE_STORE_TEST_UTIL_H_
#define PITH_STORE_STORE_TEST_UTIL_H_

#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <filesystem>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include "store/store.h"

namespace pith::store {

// Removed with this object.
class TestFolder {
 public:
  // in_memory: of thousands of small files that are brought to the disk each, where there is such a folder.
  explicit TestFolder(bool in_memory = false) {
    const std::filesystem::path memory = "/dev/shm", disk = std::filesystem::temp_directory_path();
    const bool has_memory = in_memory && ::access(memory.c_str(), W_OK) == 0;
    std::string name = ((has_memory ? memory : disk) / "pith_store_XXXXXX").string();
    path_ = ::mkdtemp(name.data());
  }
  ~TestFolder() {
    std::error_code error;
    std::filesystem::remove_all(path_, error);
  }
  TestFolder(const TestFolder&) = delete;
  TestFolder& operator=(const TestFolder&) = delete;
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

inline const Sha256Digest kTestRoot = KeySpace{.model = "test", .format = "f16", .salt = ""}.Root();

inline std::vector<int32_t> TestTokens(uint32_t seed, size_t count) {
  std::mt19937 random(seed);  // NOLINT
  std::vector<int32_t> tokens(count);
  for (int32_t& token : tokens) token = static_cast<int32_t>(random() % 50000);
  return tokens;
}

inline std::vector<std::byte> TestPayload(const std::vector<int32_t>& tokens, size_t bytes) {
  uint32_t seed = static_cast<uint32_t>(bytes);
  for (const int32_t token : tokens) seed = seed * 31 + static_cast<uint32_t>(token);
  std::mt19937 random(seed);  // NOLINT
  std::vector<std::byte> payload(bytes);
  for (std::byte& b : payload) b = static_cast<std::byte>(random());
  return payload;
}

inline ObjectInfo TestInfo(std::vector<int32_t> tokens) {
  ObjectInfo info;
  info.root = kTestRoot;
  info.tokens = std::move(tokens);
  info.label = "test";
  return info;
}

inline Key TestKey(uint32_t seed, size_t count) { return MakeChain(kTestRoot, TestTokens(seed, count)).whole; }

inline bool PutTest(Store& store, uint32_t seed, size_t count, size_t bytes) {
  const std::vector<int32_t> tokens = TestTokens(seed, count);
  return store.Put(TestInfo(tokens), TestPayload(tokens, bytes));
}

// The bytes are those that Put() got.
inline bool IsWhole(const Loaded& loaded) {
  return std::ranges::equal(loaded.payload->bytes(), TestPayload(loaded.info->tokens, loaded.payload->bytes().size()));
}

// Real files, but `before_write` is asked before each change of the disk and says what happens.
class FaultyFiles final : public Files {
 public:
  // kHalf: half is written, then it fails; kKilled, kKilledHalf: the process is, before it or half-way.
  enum class Fault : uint8_t { kNone, kFails, kHalf, kKilled, kKilledHalf };
  using Decide = std::function<Fault(const char* what, uint64_t bytes)>;
  explicit FaultyFiles(Decide decide)
      : decide_([decide = std::move(decide)](const char* what, uint64_t bytes) {
          const Fault fault = decide(what, bytes);
          if (fault == Fault::kKilled) ::kill(::getpid(), SIGKILL);
          return fault;
        }) {}

  Result<std::unique_ptr<File>> Open(const std::string& path, Mode mode) override {
    if (mode == Mode::kCreate && decide_("create", 0) != Fault::kNone) return Full();
    PITH_ASSIGN_OR_RETURN(std::unique_ptr<File> file, Real().Open(path, mode));
    return std::unique_ptr<File>(new FaultyFile(*this, std::move(file)));
  }
  Status Remove(const std::string& path) override {
    return decide_("remove", 0) == Fault::kNone ? Real().Remove(path) : Status(Full());
  }
  Result<std::vector<std::string>> List(const std::string& folder) override { return Real().List(folder); }
  Status MakeFolder(const std::string& folder) override { return Real().MakeFolder(folder); }
  Status SyncFolder(const std::string& folder) override { return Real().SyncFolder(folder); }

 private:
  static tl::unexpected<Error> Full() { return IoError("no space left on device"); }

  class FaultyFile final : public File {
   public:
    FaultyFile(FaultyFiles& files, std::unique_ptr<File> file) : files_(files), file_(std::move(file)) {}
    Status WriteAt(uint64_t offset, std::span<const std::byte> bytes) override {
      const Fault fault = files_.decide_("write", bytes.size());
      if (fault == Fault::kNone) return file_->WriteAt(offset, bytes);
      if (fault == Fault::kHalf || fault == Fault::kKilledHalf) {
        (void)file_->WriteAt(offset, bytes.first(bytes.size() / 2));
      }
      if (fault == Fault::kKilledHalf) ::kill(::getpid(), SIGKILL);
      return Full();
    }
    Status ReadAt(uint64_t offset, std::span<std::byte> to) override { return file_->ReadAt(offset, to); }
    Status Sync() override { return files_.decide_("sync", 0) == Fault::kNone ? file_->Sync() : Status(Full()); }
    Status Truncate(uint64_t bytes) override {
      return files_.decide_("truncate", 0) == Fault::kNone ? file_->Truncate(bytes) : Status(Full());
    }
    Result<uint64_t> Size() override { return file_->Size(); }
    bool TryLock() override { return file_->TryLock(); }

   private:
    FaultyFiles& files_;
    std::unique_ptr<File> file_;
  };

  Decide decide_;
};

}  // namespace pith::store

#endif  // PITH_STORE_STORE_TEST_UTIL_H_
