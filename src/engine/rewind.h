// Going back: a sequence drops the last tokens that it has read, where that leaves it as if it had never read them.
//
// What stands in the way depends on what it has: entries that were dropped, merged or converted since; statistics to
// which later queries have added; queries that later ones have overwritten; pages of sliding windows that are gone; a
// recurrent state, which has moved on.
#ifndef PITH_ENGINE_REWIND_H_
#define PITH_ENGINE_REWIND_H_

#include "engine/engine_core.h"
#include "engine/sequence.h"
#include "pith/types.h"

namespace pith {

// Engine::Rewind() and Engine::RewindTarget() of a sequence that can be used.
Status Rewind(EngineCore& core, Sequence& sequence, int num_tokens);
int RewindTarget(const EngineCore& core, const Sequence& sequence, int num_tokens);

}  // namespace pith

#endif  // PITH_ENGINE_REWIND_H_
