// One-bit paging (Antoniadis et al., Paging with Succinct Predictions, arXiv:2210.02775): each access brings a bit.
//
// Discard bit: 1 if the optimum (LFD: the page asked for farthest in the future goes, of equals the largest id) evicts
// the page before its next request. Phase bit: 1 if the page is not asked for in the next phase, a phase being a
// longest run of accesses to pages that fit together. With eta0 wrong 0s and eta1 wrong 1s, and k pages in the cache,
//   FWA0           faults <= OPT + (k - 1) eta0 + eta1
//   Mark0          E faults <= OPT + 2 H_k eta0 + eta1
//   Mark&Predict   E faults <= 2 OPT + H_k eta0 + eta1, and O(log k) OPT whatever the bits
// where every wrong bit counts, also of pages that are never asked for again. The bounds are the paper's, for pages of
// one size; the pseudocode behind the evictors is ours. Objects of other sizes are evicted until the bytes fit.
#ifndef PITH_EVICT_ONE_BIT_H_
#define PITH_EVICT_ONE_BIT_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "evict/registry.h"

namespace pith::evict {

// By access of the trace. Where sizes differ, belady-size takes LFD's place.
Result<std::vector<uint8_t>> DiscardBits(const Trace& trace, uint64_t capacity);
std::vector<uint8_t> PhaseBits(const Trace& trace, uint64_t capacity);

// `bits` by Access::position.
std::unique_ptr<Evictor> MakeFwa0WithBits(const Setup& setup, std::vector<uint8_t> bits);
std::unique_ptr<Evictor> MakeMark0WithBits(const Setup& setup, std::vector<uint8_t> bits, uint64_t seed);
std::unique_ptr<Evictor> MakeMarkAndPredictWithBits(const Setup& setup, std::vector<uint8_t> bits, uint64_t seed);

// Parameters that all three share: bits=perfect|learned|zero|one (learned: by a model, which says 0 where it is surer
// than p_zero), flip (probability that a bit is turned), seed, guard=off|lru.
struct OneBitParams {
  std::vector<uint8_t> bits;
  uint64_t seed = 1;
  bool guard = false;
};
Result<OneBitParams> ReadOneBitParams(Params& params, const Setup& setup, bool phase_bits);
// The evictor itself, or LRU and it under a guard.
Result<std::unique_ptr<Evictor>> WithGuard(std::unique_ptr<Evictor> evictor, const OneBitParams& params,
                                           const Setup& setup);

}  // namespace pith::evict

#endif  // PITH_EVICT_ONE_BIT_H_
