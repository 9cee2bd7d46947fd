#include "base/cpu_quota.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <string>

namespace pith {
namespace {

class CpuQuotaTest : public ::testing::Test {
 protected:
  void SetUp() override {
    root_ = std::filesystem::temp_directory_path() / ("pith_quota_" + std::to_string(::getpid()));
    std::filesystem::remove_all(root_);
  }
  void TearDown() override { std::filesystem::remove_all(root_); }
  void Write(const std::string& path, const std::string& text) const {
    const std::filesystem::path whole = root_.string() + path;
    std::filesystem::create_directories(whole.parent_path());
    std::ofstream(whole) << text;
  }
  double Quota() const { return CpuQuota(root_.string()); }

  std::filesystem::path root_;
};

TEST_F(CpuQuotaTest, NoneWhereNothingSaysSo) {
  EXPECT_EQ(Quota(), 0);
  Write("/proc/self/cgroup", "0::/\n");
  EXPECT_EQ(Quota(), 0);
  Write("/sys/fs/cgroup/cpu.max", "max 100000\n");
  EXPECT_EQ(Quota(), 0);
}

TEST_F(CpuQuotaTest, TheTightestGroupAroundCounts) {
  Write("/proc/self/cgroup", "0::/a/b\n");
  Write("/sys/fs/cgroup/a/b/cpu.max", "max 100000\n");
  Write("/sys/fs/cgroup/a/cpu.max", "150000 100000\n");
  EXPECT_EQ(Quota(), 1.5);
  Write("/sys/fs/cgroup/a/b/cpu.max", "50000 100000\n");
  EXPECT_EQ(Quota(), 0.5);
  Write("/sys/fs/cgroup/cpu.max", "20000 100000\n");  // as a container sees its own group
  EXPECT_EQ(Quota(), 0.2);
}

TEST_F(CpuQuotaTest, TheFirstVersionToo) {
  Write("/proc/self/cgroup", "12:cpuset:/x\n4:cpu,cpuacct:/docker/1\n0::/\n");
  Write("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1\n");
  Write("/sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n");
  EXPECT_EQ(Quota(), 0);
  Write("/sys/fs/cgroup/cpu/docker/1/cpu.cfs_quota_us", "300000\n");
  Write("/sys/fs/cgroup/cpu/docker/1/cpu.cfs_period_us", "100000\n");
  EXPECT_EQ(Quota(), 3);
}

}  // namespace
}  // namespace pith
