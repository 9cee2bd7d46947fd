// The machine that a measurement was taken on: what it is, what it could reach,
// and whether it had anything else to do.
#ifndef PITH_LAB_MACHINE_H_
#define PITH_LAB_MACHINE_H_

#include <cstddef>
#include <string>
#include <vector>

#include "base/stopwatch.h"

namespace pith {

struct MachineInfo {
  std::string cpu;                    // model name
  std::vector<std::string> features;  // SIMD extensions that matter here
  int cores = 0;                      // physical, that this process may use
  size_t memory_bytes = 0;
  std::string simd_target;  // of pith's kernels
  std::string pith_version;
  std::string commit;    // of pith's source, empty: not built from a repository
  std::string libllama;  // version of llama-cpp-python, and what its build says of the CPU
};
MachineInfo DescribeMachine();

// Limits of `threads` threads together, each the best of a few passes.
struct Roofline {
  double read_bytes_per_second = 0;  // from memory beyond the caches
  double f32_flops = 0;              // multiply-adds count two
  double bf16_flops = 0;             // dot products; 0: the CPU or the SIMD target has none
  double peak_flops() const { return bf16_flops > f32_flops ? bf16_flops : f32_flops; }
};
Roofline MeasureRoofline(int threads);

// Whether other processes took what ours would have used, by the kernel's accounts (proc_stat(5), getrusage(2)).
// Threads that spin and see what they get say less: a slice of the scheduler, 4 ms, is a tenth of 40 ms, two of them
// may share a processor while another idles, and OpenMP's threads, which spin behind their last loop, look like
// somebody else's.
class ProcessorWatch {
 public:
  ProcessorWatch();
  // The share of its time that each of `threads` threads had since then, or could have had: 1 where the processors that
  // this process may use (at most its control group's quota) were left to it. Counts in steps of 10 ms: of 100 or less
  // it says little.
  double FreeShare(int threads) const;

 private:
  Stopwatch watch_;
  double all_seconds_, own_seconds_;  // of processors, by all processes and by this one
};
// Below this the machine has something else to do, and measurements say little.
inline constexpr double kBusyBelow = 0.9;

// Memory of this process that is in RAM: the most so far, and now.
size_t PeakRssBytes();
size_t CurrentRssBytes();

}  // namespace pith

#endif  // PITH_LAB_MACHINE_H_
