#ifndef PITH_STOP_REASON_H_
#define PITH_STOP_REASON_H_

#include <cstddef>

namespace pith {

// Why a generation ended.
enum class StopReason {
  kEnd,          // the model ended it
  kLength,       // as many tokens as were asked for
  kContext,      // no position is left
  kInterrupted,  // the user or another thread stopped it
  kStopString,   // one of the stop strings, which is not in the text
  kCallback,     // the receiver of the text wants no more
  kBudget,       // the KV budget is full and the recipe drops nothing
};

// "end", "length", "context", "interrupted", "stop", "callback", "budget"
inline const char* StopReasonName(StopReason reason) {
  constexpr const char* kNames[] = {"end", "length", "context", "interrupted", "stop", "callback", "budget"};
  return kNames[static_cast<size_t>(reason)];
}

}  // namespace pith

#endif  // PITH_STOP_REASON_H_
