// Processes that are killed while they write, and what memory the store takes.
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <set>

#include <gtest/gtest.h>

#include "base/turn_test_util.h"
#include "store/store_test_util.h"

namespace pith::store {
namespace {

StoreOptions SmallStore(const std::string& folder, Files* files) {
  return {.ram_bytes = 0,
          .folder = folder,
          .ssd_bytes = 512 * 1024,
          .evictor = "lru",
          .segment_bytes = 64 * 1024,
          .files = files};
}

constexpr size_t kTokens = 40;
size_t BytesOf(uint32_t seed) { return 100 + 997 * seed % 20000; }

// Puts, removes and compacts until change `kill_at` of the disk; tells through the pipe what is safe.
[[noreturn]] void LiveUntilKilled(const std::string& folder, int kill_at, bool half, int told) {
  int count = 0;
  FaultyFiles files([&](const char* what, uint64_t) {
    if (count++ != kill_at) return FaultyFiles::Fault::kNone;
    return half && std::string_view(what) == "write" ? FaultyFiles::Fault::kKilledHalf : FaultyFiles::Fault::kKilled;
  });
  const auto store = Store::Open(SmallStore(folder, &files));
  const auto tell = [told](char what, uint32_t seed) {
    const uint32_t message[2] = {static_cast<uint32_t>(what), seed};
    if (::write(told, message, sizeof message) != sizeof message) ::_exit(3);
  };
  for (uint32_t i = 0; store && i < 400; ++i) {
    const uint32_t seed = i * 7 % 60;
    if (i % 5 == 4) {
      const uint32_t gone = (i - 2) * 7 % 60;
      tell('?', gone);  // being removed: either way is right
      if ((*store)->Remove(TestKey(gone, kTokens))) tell('-', gone);
    }
    tell('?', seed);
    if (PutTest(**store, seed, kTokens, BytesOf(seed))) tell('+', seed);
  }
  ::_exit(2);  // it was never killed
}

// With ASan, where a life takes ten times as long, each commit tries a quarter of them: every kind of four that follow
// each other.
bool IsTried([[maybe_unused]] int kill_at) {
#ifdef __SANITIZE_ADDRESS__
  return IsMyTurn(static_cast<size_t>(kill_at / 4));
#else
  return true;
#endif
}

// A hit is what was put, whatever was going on; what was removed for good stays away.
TEST(StoreKill, AtEveryWriteBoundary) {
  size_t hits = 0, tries = 0;
  for (int kill_at = 0; kill_at < 200; ++kill_at) {
    if (!IsTried(kill_at)) continue;
    const TestFolder folder(true);
    for (int life = 0; life < (kill_at % 4 == 0 ? 2 : 1);
         ++life) {  // the second one begins with what the first one left
      int ends[2];
      ASSERT_EQ(::pipe(ends), 0);
      const pid_t child = ::fork();
      ASSERT_GE(child, 0);
      if (child == 0) {
        ::close(ends[0]);
        LiveUntilKilled(folder.path(), kill_at * (life + 1), kill_at % 2 == 0, ends[1]);
      }
      ::close(ends[1]);
      std::set<uint32_t> removed;
      uint32_t message[2];
      while (::read(ends[0], message, sizeof message) == sizeof message) {
        if (message[0] == '-') removed.insert(message[1]);
        else removed.erase(message[1]);
      }
      ::close(ends[0]);
      int status = 0;
      ASSERT_EQ(::waitpid(child, &status, 0), child);
      ASSERT_TRUE(WIFSIGNALED(status)) << WEXITSTATUS(status);
      ++tries;
      const auto store = Store::Open(SmallStore(folder.path(), &Files::Real()));
      ASSERT_TRUE(store);
      for (uint32_t seed = 0; seed < 60; ++seed) {
        const auto loaded = (*store)->Load(TestKey(seed, kTokens));
        if (!loaded) continue;
        ++hits;
        ASSERT_EQ(loaded->payload->bytes().size(), BytesOf(seed));
        ASSERT_TRUE(IsWhole(*loaded)) << kill_at;
        ASSERT_FALSE(removed.contains(seed)) << kill_at << " " << seed;
      }
      ASSERT_EQ((*store)->stats().errors["corrupt"], 0U);
    }
  }
  EXPECT_GE(tries, 60U);
  EXPECT_GT(hits, 4 * tries);
}

// Acknowledged puts are there, as long as nothing had to go for others.
TEST(StoreKill, AcknowledgedPutsStay) {
  for (int kill_at = 10; kill_at < 60; ++kill_at) {
    const TestFolder folder(true);
    int ends[2];
    ASSERT_EQ(::pipe(ends), 0);
    const pid_t child = ::fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      int count = 0;
      FaultyFiles files([&](const char*, uint64_t) {
        return count++ == kill_at ? FaultyFiles::Fault::kKilledHalf : FaultyFiles::Fault::kNone;
      });
      const auto store = Store::Open(SmallStore(folder.path(), &files));
      for (uint32_t i = 0; store && i < 16; ++i) {
        if (PutTest(**store, i, kTokens, 5000) && ::write(ends[1], &i, sizeof i) != sizeof i) ::_exit(3);
      }
      ::_exit(2);
    }
    ::close(ends[1]);
    const auto store = Store::Open(SmallStore(folder.path(), &Files::Real()));
    uint32_t seed = 0;
    std::vector<uint32_t> kept;
    while (::read(ends[0], &seed, sizeof seed) == sizeof seed) kept.push_back(seed);
    ::close(ends[0]);
    ASSERT_EQ(::waitpid(child, nullptr, 0), child);
    const auto reopened = Store::Open(SmallStore(folder.path(), &Files::Real()));
    ASSERT_TRUE(reopened);
    for (const uint32_t one : kept) {
      const auto loaded = (*reopened)->Load(TestKey(one, kTokens));
      ASSERT_TRUE(loaded) << one;
      EXPECT_TRUE(IsWhole(*loaded));
    }
  }
}

size_t ResidentBytes() {
  std::FILE* const file = std::fopen("/proc/self/statm", "r");
  if (file == nullptr) return 0;
  long all = 0, resident = 0;
  const int read = std::fscanf(file, "%ld %ld", &all, &resident);
  std::fclose(file);
  return read == 2 ? static_cast<size_t>(resident) * static_cast<size_t>(::sysconf(_SC_PAGESIZE)) : 0;
}

TEST(StoreMemory, ResidentBytesStayWithinTheLimitUnderChurn) {
  constexpr size_t kLimit = size_t{64} << 20;
  const std::vector<std::byte> bytes(size_t{6} << 20, std::byte{5});
  for (const bool has_ssd : {false, true}) {
    const TestFolder folder;
    const size_t before = ResidentBytes();
    size_t most = 0;
    {
      const auto store = Store::Open({.ram_bytes = kLimit,
                                      .folder = has_ssd ? folder.path() : "",
                                      .ssd_bytes = size_t{100} << 20});
      ASSERT_TRUE(store);
      std::mt19937 random(1);  // NOLINT
      for (int i = 0; i < (has_ssd ? 120 : 500); ++i) {
        const auto seed = static_cast<uint32_t>(random() % 60);
        const size_t size = 300000 + random() % 5000000;
        if (!(*store)->Load(TestKey(seed, 2000))) {
          (void)(*store)->Put(TestInfo(TestTokens(seed, 2000)), std::span(bytes).first(size));
        }
        most = std::max(most, ResidentBytes());
      }
    }
    ASSERT_GT(before, 0U);
    EXPECT_GT(most - before, kLimit / 2);
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
    EXPECT_LE(most - before, kLimit + kLimit / 20) << has_ssd;
#endif
  }
}

}  // namespace
}  // namespace pith::store
