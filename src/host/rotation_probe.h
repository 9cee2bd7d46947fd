// How the queries of an attention node were turned by their positions, read off the graph before it runs.
#ifndef PITH_HOST_ROTATION_PROBE_H_
#define PITH_HOST_ROTATION_PROBE_H_

#include <optional>

#include "kernels/rotation.h"

struct ggml_tensor;

namespace pith {

// `query`: the node's q. None where RoPE lies upstream in a form that cannot be undone from q alone (behind a norm with
// weights, in a part that is joined with others). Without RoPE: no pairs. Weights must be loaded, nothing else has run.
std::optional<Rotation> RotationOf(const ggml_tensor* query);

}  // namespace pith

#endif  // PITH_HOST_ROTATION_PROBE_H_
