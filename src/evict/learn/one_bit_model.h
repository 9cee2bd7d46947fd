// Predicts the bits of one-bit paging (evict/one_bit.h) from what is known of an object's requests.
#ifndef PITH_EVICT_LEARN_ONE_BIT_MODEL_H_
#define PITH_EVICT_LEARN_ONE_BIT_MODEL_H_

#include <cstdint>
#include <vector>

#include "evict/learn/fit.h"
#include "evict/learn/history.h"
#include "evict/learn/model_file.h"
#include "evict/registry.h"

namespace pith::evict {

// History's features, and how many objects of the mean size the cache holds.
inline constexpr size_t kOneBitInputs = History::kFeatures + 1;

// By access, each from the past alone. 0 only where its probability is above p_zero: a wrong 0 costs more than a
// wrong 1.
std::vector<uint8_t> PredictBits(const Model& model, const Trace& trace, uint64_t capacity, double p_zero);

// kind: kDiscardBit or kPhaseBit. Learns the right bits of each trace at each capacity.
Result<Model> TrainOneBit(ModelKind kind, const std::vector<Trace>& traces, const std::vector<uint64_t>& capacities,
                          const FitOptions& options, const TrainHooks& hooks);

}  // namespace pith::evict

#endif  // PITH_EVICT_LEARN_ONE_BIT_MODEL_H_
