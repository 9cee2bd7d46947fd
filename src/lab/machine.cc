#include "lab/machine.h"

#include <sched.h>
#include <sys/resource.h>
#include <sys/sysinfo.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <functional>
#include <memory>
#include <new>
#include <set>
#include <sstream>
#include <thread>

#include "base/cores.h"
#include "base/cpu_quota.h"
#include "base/huge_pages.h"
#include "base/stopwatch.h"
#include "base/team.h"
#include "host/model.h"
#include "kernels/attention.h"
#include "kernels/roofline.h"
#include "pith_commit.h"

namespace pith {
namespace {

constexpr std::array<const char*, 12> kFeatures = {"avx2",        "fma",         "f16c",     "avx512f",
                                                   "avx512_vnni", "avx512_bf16", "avx_vnni", "amx_bf16",
                                                   "amx_int8",    "asimddp",     "bf16",     "i8mm"};

std::string FieldOf(const std::string& text, const std::string& name) {
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    if (!line.starts_with(name)) continue;
    const size_t colon = line.find(':');
    if (colon != std::string::npos) return line.substr(std::min(line.size(), colon + 2));
  }
  return {};
}

// Seconds of the best of `passes` passes of `work` on `threads` threads that start together.
double BestSeconds(int threads, int passes, const std::function<void(int)>& work) {
  double best = 1e30;
  Barrier barrier;
  const auto member = [&](int ith) {
    for (int pass = 0; pass < passes; ++pass) {
      barrier.Wait(threads);
      const Stopwatch watch;
      work(ith);
      barrier.Wait(threads);
      if (ith == 0) best = std::min(best, watch.seconds());
    }
  };
  std::vector<std::thread> others;
  for (int ith = 1; ith < threads; ++ith) others.emplace_back(member, ith);
  member(0);
  for (std::thread& other : others) other.join();
  return best;
}

// The processors that this process may use, as /proc/stat names them.
std::set<std::string> AllowedProcessors() {
  std::set<std::string> names;
  cpu_set_t allowed;
  CPU_ZERO(&allowed);
  if (::sched_getaffinity(0, sizeof allowed, &allowed) != 0) return names;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (CPU_ISSET(cpu, &allowed)) names.insert("cpu" + std::to_string(cpu));
  }
  return names;
}

// Seconds since the system's start in which they were not idle, those of a hypervisor's other guests included. 0 where
// the kernel does not say.
double BusySeconds(const std::set<std::string>& processors) {
  std::ifstream file("/proc/stat");
  double ticks = 0;
  for (std::string line; std::getline(file, line);) {
    std::istringstream fields(line);
    std::string name;
    if (!(fields >> name) || !processors.contains(name)) continue;
    double user = 0, nice = 0, system = 0, idle = 0, waiting = 0, interrupts = 0, soft_interrupts = 0, stolen = 0;
    fields >> user >> nice >> system >> idle >> waiting >> interrupts >> soft_interrupts >> stolen;
    ticks += user + nice + system + interrupts + soft_interrupts + stolen;
  }
  return ticks / static_cast<double>(::sysconf(_SC_CLK_TCK));
}

double OwnSeconds() {
  struct rusage usage {};
  ::getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& time) {
    return static_cast<double>(time.tv_sec) + 1e-6 * static_cast<double>(time.tv_usec);
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

}  // namespace

MachineInfo DescribeMachine() {
  MachineInfo machine;
  std::ifstream file("/proc/cpuinfo");
  std::ostringstream text;
  text << file.rdbuf();
  machine.cpu = FieldOf(text.str(), "model name");
  std::string flags = FieldOf(text.str(), "flags");
  if (flags.empty()) flags = FieldOf(text.str(), "Features");
  flags = " " + flags + " ";
  for (const char* feature : kFeatures) {
    if (flags.find(std::string(" ") + feature + " ") != std::string::npos) machine.features.emplace_back(feature);
  }
  machine.cores = PhysicalCores();
  struct sysinfo system {};
  if (::sysinfo(&system) == 0) machine.memory_bytes = static_cast<size_t>(system.totalram) * system.mem_unit;
  machine.simd_target = kernels::UnitsInUse();
  machine.pith_version = PITH_VERSION;
  machine.commit = PITH_COMMIT;
  machine.libllama = std::string(PITH_LLAMA_VERSION) + ", " + HostVersion();
  return machine;
}

Roofline MeasureRoofline(int threads) {
  // All threads together read half a GiB, beyond the caches of almost any machine.
  const size_t bytes =
      std::max<size_t>(size_t{16} << 20, (size_t{512} << 20) / static_cast<size_t>(threads) / 1024 * 1024);
  constexpr int kRounds = 200'000, kPasses = 5;
  Roofline roofline;
  std::vector<HugeMemory> memory(static_cast<size_t>(threads));
  for (HugeMemory& part : memory) {
    part = AllocateHuge(bytes);  // as the cache
    std::memset(part.get(), 0, bytes);
  }
  std::atomic<float> sink = 0;
  const double all = static_cast<double>(threads);
  roofline.read_bytes_per_second = all * static_cast<double>(bytes) / BestSeconds(threads, kPasses, [&](int ith) {
                                     const std::byte* part = memory[static_cast<size_t>(ith)].get();
                                     sink = kernels::ReadMemory(reinterpret_cast<const float*>(part), bytes);
                                   });
  std::atomic<double> flops = 0;
  const double f32 = BestSeconds(threads, kPasses, [&](int) { flops = kernels::MultiplyAddF32(kRounds); });
  roofline.f32_flops = all * flops / f32;
  const double bf16 = BestSeconds(threads, kPasses, [&](int) { flops = kernels::DotBf16(kRounds); });
  roofline.bf16_flops = all * flops / bf16;
  return roofline;
}

ProcessorWatch::ProcessorWatch() : all_seconds_(BusySeconds(AllowedProcessors())), own_seconds_(OwnSeconds()) {}

double ProcessorWatch::FreeShare(int threads) const {
  const std::set<std::string> processors = AllowedProcessors();
  const double others =
      std::max(0.0, BusySeconds(processors) - all_seconds_ - std::max(0.0, OwnSeconds() - own_seconds_));
  const double seconds = std::max(1e-9, watch_.seconds()), quota = CpuQuota();
  double usable = static_cast<double>(std::max<size_t>(1, processors.size())) - others / seconds;
  if (quota > 0) usable = std::min(usable, quota);
  return std::clamp(usable / threads, 0.0, 1.0);
}

size_t PeakRssBytes() {
  struct rusage usage {};
  ::getrusage(RUSAGE_SELF, &usage);
  return static_cast<size_t>(usage.ru_maxrss) * 1024;
}

size_t CurrentRssBytes() {
  std::ifstream file("/proc/self/statm");
  size_t pages = 0;
  size_t resident = 0;
  file >> pages >> resident;
  return resident * static_cast<size_t>(::sysconf(_SC_PAGESIZE));
}

}  // namespace pith
