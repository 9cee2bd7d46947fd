// Trains the network behind the evictor "learned" (evict/learn/survival.h) from traces.
#ifndef PITH_EVICT_LEARN_TRAIN_SURVIVAL_H_
#define PITH_EVICT_LEARN_TRAIN_SURVIVAL_H_

#include <cstdint>
#include <vector>

#include "evict/learn/fit.h"
#include "evict/trace.h"

namespace pith::evict {

// Every trace counts the same, whatever its length. What happens after a request is censored at the trace's end.
// kUnsupported: a trace of prompts (see evict/learn/prompt_learner.h).
Result<Model> TrainSurvival(const std::vector<Trace>& traces, const FitOptions& options, const TrainHooks& hooks);

}  // namespace pith::evict

#endif  // PITH_EVICT_LEARN_TRAIN_SURVIVAL_H_
