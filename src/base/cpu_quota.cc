#include "base/cpu_quota.h"

#include <algorithm>
#include <fstream>
#include <sstream>

namespace pith {
namespace {

// The smaller of two limits, of which 0 is none.
double Smaller(double a, double b) { return a <= 0 ? b : b <= 0 ? a : std::min(a, b); }

// Version 2: "QUOTA PERIOD" in microseconds, or "max PERIOD".
double ReadMax(const std::string& folder) {
  std::ifstream file(folder + "/cpu.max");
  double quota = 0, period = 0;
  return file >> quota >> period && period > 0 ? quota / period : 0;
}

// Version 1; -1 is no limit.
double ReadCfs(const std::string& folder) {
  std::ifstream quota_file(folder + "/cpu.cfs_quota_us"), period_file(folder + "/cpu.cfs_period_us");
  double quota = 0, period = 0;
  return quota_file >> quota && period_file >> period && quota > 0 && period > 0 ? quota / period : 0;
}

// Of a group and all around it, up to the mount.
template <typename Read>
double Tightest(const std::string& mount, std::string path, Read read) {
  double limit = 0;
  for (;;) {
    while (path.ends_with('/')) path.pop_back();
    limit = Smaller(limit, read(mount + path));
    const size_t slash = path.rfind('/');
    if (slash == std::string::npos) return limit;
    path.resize(slash);
  }
}

bool NamesCpu(const std::string& controllers) {
  std::istringstream names(controllers);
  for (std::string name; std::getline(names, name, ',');) {
    if (name == "cpu") return true;
  }
  return false;
}

}  // namespace

double CpuQuota(const std::string& root) {
  std::ifstream groups(root + "/proc/self/cgroup");
  double limit = 0;
  for (std::string line; std::getline(groups, line);) {  // "0::/path" or "4:cpu,cpuacct:/path"
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1), path = line.substr(second + 1);
    if (controllers.empty()) {
      limit = Smaller(limit, Tightest(root + "/sys/fs/cgroup", path, ReadMax));
    } else if (NamesCpu(controllers)) {
      for (const char* mount : {"/sys/fs/cgroup/cpu", "/sys/fs/cgroup/cpu,cpuacct"}) {
        limit = Smaller(limit, Tightest(root + mount, path, ReadCfs));
      }
    }
  }
  return limit;
}

}  // namespace pith
