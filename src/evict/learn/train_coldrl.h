// Trains Cold-RL's network offline (evict/learn/coldrl.h): caches are replayed, others than LRU decide now and then,
// and what became of every candidate is told exactly by the trace.
#ifndef PITH_EVICT_LEARN_TRAIN_COLDRL_H_
#define PITH_EVICT_LEARN_TRAIN_COLDRL_H_

#include <cstdint>
#include <vector>

#include "evict/learn/checkpoint.h"
#include "evict/learn/coldrl_cache.h"

namespace pith::evict {

struct ColdRlOptions {
  uint64_t seed = 1;
  uint32_t epochs = 40;    // each replays all caches and learns from what it saw
  uint32_t steps = 500;    // of learning, in an epoch
  uint32_t batch = 256;
  uint32_t hidden = 32;    // width of the two inner layers
  ColdRlCacheOptions cache;
  uint32_t memory = 1 << 18;  // transitions of an epoch
  uint32_t patience = 10;  // epochs without a better result that end the training
  float gamma = 0.97f;     // discount over the time that the hand takes for a round
  float rate = 1e-3f;      // Adam, falling to 0 along a cosine
  float decay = 1e-5f;
  float tau = 0.005f;      // how fast the target network follows
  bool with_ttl = false;   // a request that comes too late for the stored object is none
};

// Each trace at each capacity is a cache: its first 70% are learned from, on the rest the epochs are compared, and the
// best one's network is the result. kInvalidArgument: no cache ever evicts.
Result<Model> TrainColdRl(const std::vector<Trace>& traces, const std::vector<uint64_t>& capacities,
                          const ColdRlOptions& options, const TrainHooks& hooks);

}  // namespace pith::evict

#endif  // PITH_EVICT_LEARN_TRAIN_COLDRL_H_
