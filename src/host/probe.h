// Which layers hold a KV cache, and how far each of them sees.
#ifndef PITH_HOST_PROBE_H_
#define PITH_HOST_PROBE_H_

#include <optional>

#include "host/model.h"
#include "pith/types.h"

namespace pith {

// Decodes a few tokens and reads shapes and masks off the graph: one at position 0, one at the last
// position of the first window, and one further, whose mask tells global, sliding and chunked layers
// apart. Fills info.layers, hybrid and recurrent_bytes. kUnsupported: the model cannot be
// hosted, with the reason.
Status ProbeLayers(llama_model* model, ModelInfo& info);

// The context that the model was trained for before RoPE was scaled, where its metadata names one.
std::optional<int> OriginalContext(const llama_model* model, const ModelInfo& info);

}  // namespace pith

#endif  // PITH_HOST_PROBE_H_
