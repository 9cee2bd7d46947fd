#include "host/slot_state.h"

#include <cstdint>
#include <string>

#include "base/byte_io.h"

namespace pith {

// u32 magic, i32 sequence, then of models that have window layers beside recurrent ones u32 streams (1), u32 cells (0);
// then u32 cells (1), i32 position, u32 other sequences (0), then the tensors, whose sizes libllama compares itself.
Status CheckSlotState(std::span<const std::byte> state, int32_t num_tokens) {
  MemoryReader reader(state);
  uint32_t head[5] = {};
  if (!reader.Array(std::span(head))) return Corrupt("its recurrent state is too short");
  const auto last = static_cast<uint32_t>(num_tokens - 1);
  if (head[2] == 1 && head[3] == last && head[4] == 0) return {};
  uint32_t more[2] = {};
  if (!reader.Array(std::span(more))) return Corrupt("its recurrent state is too short");
  if (head[2] == 1 && head[3] == 0 && head[4] == 1 && more[0] == last && more[1] == 0) return {};
  return Corrupt("its recurrent state is not that of one sequence of " + std::to_string(num_tokens) + " tokens");
}

}  // namespace pith
