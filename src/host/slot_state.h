// The recurrent state of one sequence, as libllama writes and reads it.
#ifndef PITH_HOST_SLOT_STATE_H_
#define PITH_HOST_SLOT_STATE_H_

#include <cstddef>
#include <cstdint>
#include <span>

#include "pith/types.h"

namespace pith {

// libllama trusts the counts in such bytes, so they are compared with the only ones that pith has written: no attention
// cells, one cell of recurrent state at the position of the last of num_tokens tokens. kCorrupt otherwise.
Status CheckSlotState(std::span<const std::byte> state, int32_t num_tokens);

}  // namespace pith

#endif  // PITH_HOST_SLOT_STATE_H_
