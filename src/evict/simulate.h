// Replays of one trace against many evictors and sizes.
#ifndef PITH_EVICT_SIMULATE_H_
#define PITH_EVICT_SIMULATE_H_

#include <atomic>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "evict/evictor.h"
#include "pith/types.h"

namespace pith::evict {

struct SimulateOptions {
  std::vector<std::string> policies;  // as MakeEvictor takes them
  std::vector<uint64_t> capacities;   // bytes, or blocks
  bool with_ttl = false;
  int num_threads = 1;
  // Asked between replays; true ends with kCancelled. May be empty. From any thread.
  std::function<bool()> stop;
};

struct SimulatedRow {
  std::string policy;
  uint64_t capacity = 0;
  Tally tally;
  double hit_ratio = 0;
  double byte_hit_ratio = 0;
  double ns_per_request = 0;  // of the replay alone, the trace being in memory
  uint64_t asked = 0;         // questions to another process (sidecar.h), ...
  uint64_t unanswered = 0;    // ... and those of them that were decided by age
};

// Policies in their order, and for each the capacities in theirs. Results do not depend on num_threads.
Result<std::vector<SimulatedRow>> Simulate(const Trace& trace, const SimulateOptions& options);

// `count` capacities between a thousandth of what all objects of the trace take together and all of it, evenly spaced
// by their logarithm.
std::vector<uint64_t> CurveCapacities(const Trace& trace, int count);

}  // namespace pith::evict

#endif  // PITH_EVICT_SIMULATE_H_
