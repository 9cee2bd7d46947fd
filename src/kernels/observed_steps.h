// What entries received of attention, out of the weights that attention computes anyway.
//
// A step's weights are relative to the row maxima so far, and what makes them probabilities is known at the
// end of the row. So they stay where the softmax wrote them until then:
//
//   step 0   [rows][kStepEntries] weights   [rows] maxima   first entries of its pages
//   step 1   ...
//
// and are then added up in one pass: a multiplication and an addition per weight, where attention itself
// has D + Dv of them.
#ifndef PITH_KERNELS_OBSERVED_STEPS_H_
#define PITH_KERNELS_OBSERVED_STEPS_H_

#include <cmath>
#include <cstring>
#include <limits>

#include "kernels/attention.h"
#include "kernels/page_kernels.h"

namespace pith::kernels {

// The steps of one tile, or of a thread's stretch of it, in memory that somebody else owns.
struct ObservedSteps {
  struct Step {
    int num_pages;
    int first_entries[kStepPages];
  };

  size_t tile_rows = 0;
  float* weights = nullptr;  // [steps][tile_rows][kStepEntries]
  float* maxima = nullptr;   // [steps][tile_rows]
  Step* steps = nullptr;     // [steps]
  int* num_steps = nullptr;  // [1]

  float* WeightsOf(int step) const { return weights + static_cast<size_t>(step) * tile_rows * kStepEntries; }
  float* MaximaOf(int step) const { return maxima + static_cast<size_t>(step) * tile_rows; }

  // Adds all steps up. max, factors: [rows], of the finished rows: probability = factor * 2^(score - max).
  // scratch: [rows]. `to` has room for whole pages.
  void AddTo(const EntryAttention& to, const PageKernels& kernels, int rows, int group, const float* max,
             const float* factors, float* scratch) const {
    for (int s = 0; s < *num_steps; ++s) {
      const float* former = MaximaOf(s);
      for (int r = 0; r < rows; ++r) {
        const bool nothing = factors[r] == 0.0f || former[r] == -std::numeric_limits<float>::infinity();
        scratch[r] = nothing ? 0.0f : former[r] == max[r] ? factors[r] : factors[r] * std::exp2(former[r] - max[r]);
      }
      for (int p = 0; p < steps[s].num_pages; ++p) {
        const auto entry = static_cast<size_t>(steps[s].first_entries[p]);
        kernels.observe({WeightsOf(s) + p * kPageEntries, scratch, rows / group, group, to.sum + entry,
                         to.squares == nullptr ? nullptr : to.squares + entry,
                         to.squares == nullptr ? nullptr : to.largest + entry});
      }
    }
  }
};

// One thread's sums of all heads, and how they become the task's.
class ObservedSums {
 public:
  // base: Bytes(task) of one thread, or null.
  ObservedSums(const AttentionTask& task, float* base) : task_(task), base_(base), stats_(NumStats(task)) {}

  static size_t Floats(const AttentionTask& task) {
    if (task.observed == nullptr) return 0;
    size_t total = 0;
    for (int h = 0; h < task.num_kv_heads; ++h) total += Padded(task.heads[h].num_entries());
    return total * NumStats(task);
  }

  void Clear() const {
    if (task_.observed != nullptr) std::memset(base_, 0, Floats(task_) * sizeof(float));
  }

  EntryAttention Head(int head) const {
    float* at = base_;
    for (int h = 0; h < head; ++h) at += Padded(task_.heads[h].num_entries()) * stats_;
    const size_t n = Padded(task_.heads[head].num_entries());
    return {at, stats_ == 1 ? nullptr : at + n, stats_ == 1 ? nullptr : at + 2 * n};
  }

 private:
  // Sums are added for whole pages, wherever they begin.
  static size_t Padded(int entries) { return static_cast<size_t>(entries + kPageEntries + 15) / 16 * 16; }
  static size_t NumStats(const AttentionTask& task) {
    for (int h = 0; task.observed != nullptr && h < task.num_kv_heads; ++h) {
      if (task.observed[h].squares != nullptr || task.observed[h].largest != nullptr) return 3;
    }
    return 1;
  }

  const AttentionTask& task_;
  float* base_;
  size_t stats_;
};

}  // namespace pith::kernels

#endif  // PITH_KERNELS_OBSERVED_STEPS_H_
