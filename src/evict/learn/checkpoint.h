// The state of a training between two of its steps, from which it goes on with the same result.
//
//   "PITHTRN1", u64 fingerprint, u32 counters, u64 counters[], u32 arrays, per array u64 size and f32 values[];
//   u64 FNV-1a of all before. Little-endian.
#ifndef PITH_EVICT_LEARN_CHECKPOINT_H_
#define PITH_EVICT_LEARN_CHECKPOINT_H_

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "pith/types.h"

namespace pith::evict {

struct Checkpoint {
  uint64_t fingerprint = 0;  // of what is trained, from what, and how
  std::vector<uint64_t> counters;
  std::vector<std::vector<float>> arrays;
};

inline constexpr size_t kMostCheckpointBytes = 64 << 20;

std::string SerializeCheckpoint(const Checkpoint& checkpoint);
// kCorrupt: damaged.
Result<Checkpoint> ParseCheckpoint(std::string_view bytes, std::string_view name);

struct TrainProgress {
  uint64_t step = 0;
  uint64_t steps = 0;
  double loss = 0;       // mean since the last time
  double hit_ratio = 0;  // on what is kept aside; 0: not measured
};

// How a training talks to whoever started it; each may be empty.
struct TrainHooks {
  // false ends it with kCancelled; what was saved last stays.
  std::function<bool(const TrainProgress&)> progress;
  // Now and then. An error ends the training.
  std::function<Status(const Checkpoint&)> save;
  // Where it goes on; null: from the start.
  const Checkpoint* from = nullptr;
};

}  // namespace pith::evict

#endif  // PITH_EVICT_LEARN_CHECKPOINT_H_
