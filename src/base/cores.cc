#include "base/cores.h"

#include <sched.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <set>
#include <string>
#include <thread>

#include <fmt/format.h>

#include "base/cpu_quota.h"

namespace pith {

int PhysicalCores() {
  cpu_set_t allowed;
  CPU_ZERO(&allowed);
  if (::sched_getaffinity(0, sizeof allowed, &allowed) != 0) {
    return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  }
  std::set<std::string> cores;  // the list of siblings names a core
  int num_cpus = 0;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (!CPU_ISSET(cpu, &allowed)) continue;
    ++num_cpus;
    std::ifstream file(fmt::format("/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list", cpu));
    std::string siblings;
    if (file && std::getline(file, siblings)) cores.insert(siblings);
  }
  const int present = std::max(1, cores.empty() ? num_cpus : static_cast<int>(cores.size()));
  const double quota = CpuQuota();
  return quota > 0 ? std::min(present, static_cast<int>(std::ceil(quota))) : present;
}

}  // namespace pith
