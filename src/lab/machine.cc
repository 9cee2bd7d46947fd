#include "lab/machine.h"

#include <sys/resource.h>
#include <sys/sysinfo.h>
#include <time.h>
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
#include <sstream>
#include <thread>

#include "base/cores.h"
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

double MeasureFreeShare(int threads, int milliseconds) {
  std::this_thread::sleep_for(std::chrono::milliseconds(kOwnSpinMilliseconds));
  std::vector<double> shares(static_cast<size_t>(threads), 0);
  const auto spin = [&](size_t ith) {
    const auto cpu_seconds = [] {
      timespec now{};
      ::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
      return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
    };
    const Stopwatch watch;
    const double before = cpu_seconds();
    while (watch.seconds() * 1000 < milliseconds) {
    }
    shares[ith] = (cpu_seconds() - before) / watch.seconds();
  };
  std::vector<std::thread> members;
  for (size_t ith = 0; ith < shares.size(); ++ith) members.emplace_back(spin, ith);
  for (std::thread& member : members) member.join();
  return std::min(1.0, *std::min_element(shares.begin(), shares.end()));
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
