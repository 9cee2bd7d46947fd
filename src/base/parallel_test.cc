#include "base/parallel.h"

#include <atomic>
#include <thread>
#include <vector>

#include <gtest/gtest.h>

namespace pith {
namespace {

// Runs body on a team of so many threads, as its leader.
template <typename Body>
void LeadTeam(int nth, const Body& body) {
  Barrier barrier;
  SharedLoops loops;
  std::vector<std::jthread> threads;
  for (int ith = 0; ith < nth; ++ith) {
    threads.emplace_back([&, ith] { loops.Lead(Team{ith, nth, &barrier}, body); });
  }
}

TEST(ParallelFor, RunsEachOnceWithoutATeam) {
  std::vector<int> runs(7, 0);
  ParallelFor(runs.size(), [&](size_t i) { ++runs[i]; });
  EXPECT_EQ(runs, std::vector<int>(7, 1));
}

TEST(ParallelFor, RunsEachOnceOnATeam) {
  for (const int nth : {1, 2, 3, 5}) {
    std::vector<int> runs(100, 0);
    LeadTeam(nth, [&] {
      for (int round = 0; round < 50; ++round) ParallelFor(runs.size(), [&](size_t i) { ++runs[i]; });
    });
    EXPECT_EQ(runs, std::vector<int>(100, 50)) << nth;
  }
}

TEST(ParallelFor, IsSharedByTheTeam) {
  std::vector<std::thread::id> by(2);
  std::atomic<int> here{0};
  LeadTeam(2, [&] {
    // Each waits for the other, so that one thread alone could never finish.
    ParallelFor(2, [&](size_t i) {
      by[i] = std::this_thread::get_id();
      ++here;
      while (here.load() < 2) std::this_thread::yield();
    });
  });
  EXPECT_NE(by[0], by[1]);
}

TEST(ParallelFor, RunsEachOnceWithinOthers) {
  std::vector<int> runs(120, 0);
  LeadTeam(3, [&] {
    for (int round = 0; round < 50; ++round) {
      ParallelFor(4, [&](size_t i) {
        ParallelFor(6, [&](size_t j) { ParallelFor(5, [&](size_t k) { ++runs[(i * 6 + j) * 5 + k]; }); });
      });
    }
  });
  EXPECT_EQ(runs, std::vector<int>(120, 50));
}

TEST(ParallelFor, IsSharedWithinAnother) {
  std::atomic<int> here{0};
  LeadTeam(2, [&] {
    // The second task of the outer loop is over at once, so that its thread is free for the inner one.
    ParallelFor(2, [&](size_t i) {
      if (i == 1) return;
      ParallelFor(2, [&](size_t) {
        ++here;
        while (here.load() < 2) std::this_thread::yield();
      });
    });
  });
  EXPECT_EQ(here.load(), 2);
}

TEST(ParallelFor, AfterTheLeadIsAPlainLoop) {
  LeadTeam(2, [] { ParallelFor(3, [](size_t) {}); });
  EXPECT_EQ(SharedLoops::current(), nullptr);
}

TEST(ParallelFor, ALeadWithoutLoopsReturns) {
  int calls = 0;
  LeadTeam(4, [&] { ++calls; });
  EXPECT_EQ(calls, 1);
}

TEST(ParallelStretches, CoverEverythingOnce) {
  for (const size_t count : {0U, 1U, 8U, 9U, 100U}) {
    std::vector<int> runs(count, 0);
    LeadTeam(2, [&] {
      ParallelStretches(count, 8, [&](size_t begin, size_t end) {
        EXPECT_LE(end - begin, 8U);
        for (size_t i = begin; i < end; ++i) ++runs[i];
      });
    });
    EXPECT_EQ(runs, std::vector<int>(count, 1));
  }
}

}  // namespace
}  // namespace pith
