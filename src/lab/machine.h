// The machine that a measurement was taken on: what it is, what it could reach,
// and whether it had anything else to do.
#ifndef PITH_LAB_MACHINE_H_
#define PITH_LAB_MACHINE_H_

#include <cstddef>
#include <string>
#include <vector>

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

// What share of its time each of `threads` spinning threads gets from the system, the smallest; 1 on an idle machine.
// Takes `milliseconds`, and kOwnSpinMilliseconds before, in which the process must do nothing: threads of OpenMP spin
// for up to 300,000 pauses behind their last loop (GOMP_SPINCOUNT), and would count as somebody else's.
inline constexpr int kOwnSpinMilliseconds = 30;
double MeasureFreeShare(int threads, int milliseconds);
// Below this the machine has something else to do, and measurements say little.
inline constexpr double kBusyBelow = 0.9;

// Memory of this process that is in RAM: the most so far, and now.
size_t PeakRssBytes();
size_t CurrentRssBytes();

}  // namespace pith

#endif  // PITH_LAB_MACHINE_H_
