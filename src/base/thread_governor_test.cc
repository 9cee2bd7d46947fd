#include "base/thread_governor.h"

#include <gtest/gtest.h>

#include <random>

#include "base/crowd.h"

namespace pith {
namespace {

// Governors that know nothing of this process's machine.
class ThreadGovernors : public ::testing::Test {
 protected:
  void SetUp() override { Crowd::OfProcess().Settle(0, false); }
};

// A machine with `cores` cores on which `others` processes are busy. A step is `work` seconds of one thread, split
// evenly, and threads wait for the last one; a thread that shares its core loses time slices.
class Machine {
 public:
  int cores = 2;
  int others = 0;
  double work = 0.016;

  // Runs one step and tells the governor, as an engine would.
  double Step(ThreadGovernor& governor) {
    const int threads = governor.threads();
    double wall = work / threads + 0.001;
    const double alone = wall;
    if (threads + others > cores && others > 0) wall *= 3 + std::uniform_real_distribution<double>(0, 2)(random_);
    // Threads spin while they wait for the one that lost its core.
    const double lost = (wall - alone) * 0.7;
    governor.Step(wall, wall * threads - lost);
    ++steps_on_[threads];
    return wall;
  }
  double Run(ThreadGovernor& governor, int steps) {
    double time = 0;
    for (int i = 0; i < steps; ++i) time += Step(governor);
    return time;
  }
  int steps_on(int threads) const { return steps_on_[threads]; }

 private:
  std::mt19937 random_{1};
  int steps_on_[65] = {};
};

TEST_F(ThreadGovernors, ChangesNothingWhereNothingDisturbs) {
  for (const int threads : {1, 2, 16}) {
    ThreadGovernor governor(threads, 1, kTokenPace);
    Machine machine;
    machine.cores = 16;
    machine.Run(governor, 2000);
    EXPECT_EQ(machine.steps_on(threads), 2000);
  }
}

TEST_F(ThreadGovernors, LeavesACoreToABusyProcess) {
  ThreadGovernor governor(2, 1, kTokenPace), fixed(2, 2, kTokenPace);
  Machine machine, same;
  machine.others = same.others = 1;
  const double adaptive = machine.Run(governor, 1000), steady = same.Run(fixed, 1000);
  EXPECT_EQ(same.steps_on(2), 1000);  // the control never switches
  EXPECT_GT(machine.steps_on(1), 950);
  EXPECT_LT(adaptive, 0.6 * steady);
  // Within a few windows.
  ThreadGovernor fresh(2, 1, kTokenPace);
  Machine first;
  first.others = 1;
  first.Run(fresh, 20);
  EXPECT_EQ(fresh.threads(), 1);
}

TEST_F(ThreadGovernors, ComesBackWhenTheProcessIsGone) {
  ThreadGovernor governor(2, 1, kTokenPace);
  Machine machine;
  machine.others = 1;
  machine.Run(governor, 3000);  // pauses have become long
  EXPECT_EQ(governor.threads(), 1);
  machine.others = 0;
  machine.Run(governor, 600);
  EXPECT_EQ(governor.threads(), 2);
  machine.Run(governor, 1000);
  EXPECT_EQ(governor.threads(), 2);
  machine.others = 1;
  machine.Run(governor, 30);
  EXPECT_EQ(governor.threads(), 1);
}

TEST_F(ThreadGovernors, GivesUpMoreThanOneThread) {
  ThreadGovernor governor(8, 1, kTokenPace);
  Machine machine;
  machine.cores = 8;
  machine.others = 3;
  machine.Run(governor, 3000);
  EXPECT_EQ(governor.threads(), 5);
}

// Threads that sleep while they wait look crowded, and fewer of them are slower.
TEST_F(ThreadGovernors, LosesLittleWhereFewerThreadsDoNotHelp) {
  ThreadGovernor governor(2, 1, kTokenPace);
  int fewer = 0;
  for (int i = 0; i < 5000; ++i) {
    const int threads = governor.threads();
    fewer += threads < 2;
    const double wall = 0.016 / threads;
    governor.Step(wall, wall * threads * 0.6);
  }
  EXPECT_LT(fewer, 250);
  EXPECT_GT(fewer, 0);
}

// One slow step, as an eviction is, changes nothing.
TEST_F(ThreadGovernors, ASlowStepIsNoReason) {
  ThreadGovernor governor(2, 1, kTokenPace);
  for (int i = 0; i < 500; ++i) {
    ASSERT_EQ(governor.threads(), 2);
    const double wall = i % 50 == 0 ? 0.08 : 0.008;
    governor.Step(wall, wall * 2);
  }
}

// Blocks of a prompt among short ones, of which each row costs more: only a busy process makes them fewer.
TEST_F(ThreadGovernors, ComparesBlocksBySize) {
  std::mt19937 random(3);
  const auto fewer = [&random](double share_of_cpu) {
    ThreadGovernor governor(2, 1, kBlockPace);
    int count = 0;
    for (int i = 0; i < 400; ++i) {
      const size_t rows = random() % 3 == 0 ? 512 : 1 + random() % 40;
      const int threads = governor.threads();
      count += threads == 1;
      const double alone = 1e-3 * WorkOf(rows) / threads;
      const double wall = threads == 2 && share_of_cpu < 1 ? 4 * alone : alone;
      governor.Step(wall, wall * threads * (threads == 2 ? share_of_cpu : 1), WorkOf(rows));
    }
    return count;
  };
  EXPECT_EQ(fewer(1), 0);
  EXPECT_GT(fewer(0.5), 350);
}

}  // namespace
}  // namespace pith
