// How much of the processors a container may use.
#ifndef PITH_BASE_CPU_QUOTA_H_
#define PITH_BASE_CPU_QUOTA_H_

#include <string>

namespace pith {

// Processors' worth of time that this process's control groups, and those around them, allow it: 1.5 is half of three.
// 0: without a limit. `root`: where /proc and /sys are looked for, for tests.
double CpuQuota(const std::string& root = "");

}  // namespace pith

#endif  // PITH_BASE_CPU_QUOTA_H_
