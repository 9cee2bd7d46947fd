// A cache that does as the best of several evictors does, which it runs beside it on the same requests without
// contents.
#ifndef PITH_EVICT_FOLLOW_H_
#define PITH_EVICT_FOLLOW_H_

#include <memory>
#include <vector>

#include "evict/registry.h"

namespace pith::evict {

struct FollowOptions {
  // Another is followed when the followed one has so many times its misses ...
  double factor = 1.1;
  // ... and at least so many more; 0: as many as objects are stored.
  double slack = 0;
  // Accesses after which a miss counts half; 0: they count for ever, which bounds the loss: about `factor` times the
  // best one's misses, and a cacheful for each switch.
  double half_life = 0;
};

// `evictor` until gdsf or lru has missed half a percent and 64 requests less.
Result<std::unique_ptr<Evictor>> Guarded(std::unique_ptr<Evictor> evictor, const Setup& setup);

// At least one expert, followed from the start. What the followed one does not store is evicted as room is needed.
std::unique_ptr<Evictor> MakeFollow(const Setup& setup, std::vector<std::unique_ptr<Evictor>> experts,
                                    const FollowOptions& options);

}  // namespace pith::evict

#endif  // PITH_EVICT_FOLLOW_H_
