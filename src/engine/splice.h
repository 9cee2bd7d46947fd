// Text that was read elsewhere: entries of one sequence go on another one's text.
//
//   source  [ system ][ old question ][ documents, 3,000 tokens ][ ... ]
//   target  [ system ][ the new one, longer ][ documents ]
//             shared           read          copied, each key turned on by the difference of its positions
//
// What an entry knows of the text before it stays what it was where it was read, so that this approximates a reading,
// and fails where the changed text matters to what is taken over. Only relative positions reach attention through RoPE
// (arXiv:2104.09864, equation 11), so that an unchanged text before it leaves nothing but rounding.
#ifndef PITH_ENGINE_SPLICE_H_
#define PITH_ENGINE_SPLICE_H_

#include "engine/engine.h"
#include "engine/engine_core.h"
#include "engine/sequence.h"
#include "engine/sequence_table.h"
#include "pith/types.h"

namespace pith {

// Engine::Splice() and Engine::Spliceable() of sequences that can be used.
Status Splice(EngineCore& core, SequenceTable& table, Sequence& target, const Sequence& source, int from, int to,
              bool pin);
SpliceSource Spliceable(const EngineCore& core, const Sequence& sequence);

}  // namespace pith

#endif  // PITH_ENGINE_SPLICE_H_
