#include "base/crowd.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <string>

#include "base/thread_governor.h"

namespace pith {
namespace {

class Proc {
 public:
  explicit Proc(const std::string& loadavg) {
    std::filesystem::create_directories(root + "/proc/self/task/12");
    std::filesystem::create_directories(root + "/proc/self/task/13");
    std::ofstream(root + "/proc/loadavg") << loadavg;
    std::ofstream(root + "/proc/self/task/12/stat") << "12 (a) R name) R 1 2\n";
    std::ofstream(root + "/proc/self/task/13/stat") << "13 (R R) S 1 2\n";
  }
  ~Proc() { std::filesystem::remove_all(root); }
  const std::string root = ::testing::TempDir() + "pith_crowd";
};

TEST(Crowd, CountsWhoRunsElsewhere) {
  EXPECT_EQ(RunningInTheWay(2, 2, Proc("1.00 2.00 3.00 5/120 77\n").root), 4);
  EXPECT_EQ(RunningInTheWay(2, 2, Proc("1.00 2.00 3.00 2/120 77\n").root), 1);
  EXPECT_EQ(RunningInTheWay(2, 2, Proc("9.00 9.00 9.00 1/120 77\n").root), 0) << "what was is past";
  EXPECT_EQ(RunningInTheWay(2, 4, Proc("1.00 2.00 3.00 3/120 77\n").root), 0) << "there are processors for all";
  EXPECT_EQ(RunningInTheWay(4, 4, Proc("1.00 2.00 3.00 3/120 77\n").root), 2);
  EXPECT_EQ(RunningInTheWay(2, 2, Proc("nothing").root), 0);
  EXPECT_EQ(RunningInTheWay(2, 2, "/nosuch"), 0);
}

class FakeClock final : public StepClock {
 public:
  double Wall() override { return now; }
  double Cpu() override { return now; }
  double now = 100;
};

TEST(Crowd, ALookCountsForHalfAndExperienceForAll) {
  int looks = 0;
  FakeClock clock;
  Crowd crowd([&looks](int) { return ++looks, 7; }, clock);
  EXPECT_EQ(crowd.Advise(2).fewer, 1);
  EXPECT_EQ(crowd.Advise(8).fewer, 4);
  EXPECT_EQ(crowd.Advise(8).vain, -1);
  EXPECT_EQ(crowd.Advise(1).fewer, 0);
  EXPECT_EQ(looks, 3);
  crowd.Settle(6, false);
  EXPECT_EQ(crowd.Advise(8).fewer, 6);
  EXPECT_EQ(crowd.Advise(8).vain, 0);
  crowd.Settle(6, true);
  crowd.Settle(6, true);
  EXPECT_EQ(crowd.Advise(8).vain, 2);
  EXPECT_EQ(looks, 3);
  clock.now += Crowd::kMemory + 1;
  EXPECT_EQ(crowd.Advise(8).fewer, 4) << "others may be gone";
  EXPECT_EQ(looks, 4);
}

// A prompt of one block beside four busy processes: 2 threads take four times as long as one.
class CrowdedGovernors : public ::testing::Test {
 protected:
  void TearDown() override { Crowd::OfProcess().Settle(0, false); }

  // So many steps; how many were on two threads.
  static int StepsOnTwo(ThreadGovernor& governor, int steps) {
    int two = 0;
    for (int i = 0; i < steps; ++i) {
      const bool both = governor.threads() == 2;
      two += both;
      const double wall = both ? 4.0 : 1.0;
      governor.Step(wall, both ? 0.5 * wall * 2 : wall);
    }
    return two;
  }
};

TEST_F(CrowdedGovernors, BeginWhereTheLastOneHasSettled) {
  Crowd::OfProcess().Settle(0, false);  // no look at this machine
  ThreadGovernor first(2, 1, kBlockPace);
  EXPECT_EQ(first.threads(), 2);
  EXPECT_EQ(StepsOnTwo(first, 4), 2) << "it learns in the first window";
  ThreadGovernor second(2, 1, kTokenPace);
  EXPECT_EQ(second.threads(), 1);
  EXPECT_EQ(StepsOnTwo(second, 30), 0);
}

TEST_F(CrowdedGovernors, TryOneMoreAsRarelyAsTheLastOne) {
  Crowd::OfProcess().Settle(0, false);
  ThreadGovernor first(2, 1, kBlockPace);
  StepsOnTwo(first, 200);  // pauses of 8, 16, 32, 64 blocks
  EXPECT_GE(Crowd::OfProcess().Advise(2).vain, 3);
  ThreadGovernor second(2, 1, kBlockPace);
  EXPECT_EQ(StepsOnTwo(second, 50), 0);
  Crowd::OfProcess().Settle(1, false);
  ThreadGovernor control(2, 1, kBlockPace);
  EXPECT_GT(StepsOnTwo(control, 50), 0);
}

TEST_F(CrowdedGovernors, ComeBackAndTellTheNext) {
  Crowd::OfProcess().Settle(1, false);
  ThreadGovernor first(2, 1, kBlockPace);
  EXPECT_EQ(first.threads(), 1);
  for (int i = 0; i < 12; ++i) first.Step(first.threads() == 2 ? 0.5 : 1.0, 1.0);
  EXPECT_EQ(first.threads(), 2);
  EXPECT_EQ(ThreadGovernor(2, 1, kBlockPace).threads(), 2);
}

TEST_F(CrowdedGovernors, OneThatIsOffKeepsItsThreads) {
  Crowd::OfProcess().Settle(1, false);
  EXPECT_EQ(ThreadGovernor(2, 2, kTokenPace).threads(), 2);
  EXPECT_EQ(ThreadGovernor(8, 8, kTokenPace).threads(), 8);
  Crowd::OfProcess().Settle(7, false);
  EXPECT_EQ(ThreadGovernor(8, 3, kTokenPace).threads(), 3);
}

}  // namespace
}  // namespace pith
