#include "host/trial.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "ggml.h"

namespace pith {
namespace {

constexpr TrialLimits kLimits{.memory_bytes = size_t{64} << 20, .cpu_seconds = 1};

Status Try(const std::function<Status()>& work) { return TryInChild("the trial", kLimits, work, {}); }

TEST(Trial, PassesOnWhatTheWorkReturns) {
  EXPECT_TRUE(Try([]() -> Status { return {}; }));
  const Status failed = Try([]() -> Status { return Unsupported("a reason"); });
  ASSERT_FALSE(failed);
  EXPECT_EQ(failed.error().code, ErrorCode::kUnsupported);
  EXPECT_EQ(failed.error().message, "a reason");
}

void ExpectCorrupt(const std::function<Status()>& work, const std::string& part) {
  const Status status = Try(work);
  ASSERT_FALSE(status) << part;
  EXPECT_EQ(status.error().code, ErrorCode::kCorrupt);
  EXPECT_NE(status.error().message.find("the trial: libllama "), std::string::npos) << status.error().message;
  EXPECT_NE(status.error().message.find(part), std::string::npos) << status.error().message;
  EXPECT_EQ(status.error().message.find('\n'), std::string::npos);
}

TEST(Trial, SurvivesEveryEnd) {
  ExpectCorrupt([]() -> Status { GGML_ABORT("too many %s", "cooks"); }, "aborts (trial_test.cc:");
  ExpectCorrupt([]() -> Status { std::abort(); }, "crashes (Aborted)");
  ExpectCorrupt(
      []() -> Status {
        std::raise(SIGSEGV);
        return {};
      },
      "");
  ExpectCorrupt([]() -> Status { std::_Exit(7); }, "exit code 7");
}

TEST(Trial, EndsWhatNeverEnds) {
  ExpectCorrupt(
      []() -> Status {
        for (std::atomic<int> i = 0;; ++i) {
        }
      },
      "more than 1 s of processor time");
}

TEST(Trial, MemoryIsLimited) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "sanitizers need memory without limit";
#endif
  // volatile: the compiler may leave out an allocation that nobody uses.
  const auto allocate = [](size_t bytes) -> Status {
    void* volatile memory = std::malloc(bytes);
    const bool got = memory != nullptr;
    std::free(memory);
    return got ? Status() : Status(IoError("no memory"));
  };
  EXPECT_TRUE(Try([&] { return allocate(size_t{32} << 20); }));
  EXPECT_FALSE(Try([&] { return allocate(size_t{128} << 20); }));
}

// A lock that another thread holds at the fork is never given back in the child.
TEST(Trial, AChildThatWaitsForEverIsEnded) {
  std::timed_mutex lock;
  std::atomic<bool> held = false, done = false;
  std::thread other([&] {
    const std::scoped_lock hold(lock);
    held = true;
    while (!done) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  });
  while (!held) std::this_thread::yield();
  TrialLimits limits = kLimits;
  limits.wall_seconds = 1;
  const Status status = TryInChild(
      "the trial", limits,
      [&lock]() -> Status {
        lock.lock();
        return {};
      },
      {});
  done = true;
  other.join();
  ASSERT_FALSE(status);
  EXPECT_EQ(status.error().code, ErrorCode::kIo);
  EXPECT_NE(status.error().message.find("within 1 s"), std::string::npos) << status.error().message;
}

TEST(Trial, CanBeCancelled) {
  int asked = 0;
  const Status status = TryInChild(
      "the trial", kLimits,
      []() -> Status {
        std::this_thread::sleep_for(std::chrono::seconds(60));
        return {};
      },
      [&asked] { return ++asked < 3; });
  ASSERT_FALSE(status);
  EXPECT_EQ(status.error().code, ErrorCode::kCancelled);
}

}  // namespace
}  // namespace pith
