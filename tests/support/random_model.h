// Small GGUF models with random weights, one for each architecture of libllama.
//
// The weights mean nothing, the traits are real: fewer kv heads than query
// heads where the architecture allows it, at least two layers, windows of 32
// tokens, experts, soft-caps, sinks, MLA, recurrent layers. Made through
// libllama's public API only: metadata from one generic table with exceptions,
// tensors as libllama itself asks for them.
#ifndef PITH_TESTS_SUPPORT_RANDOM_MODEL_H_
#define PITH_TESTS_SUPPORT_RANDOM_MODEL_H_

#include <cstdint>
#include <string>
#include <vector>

#include "pith/types.h"

namespace pith::testing {

// The window of every random model that slides or chunks, in tokens.
inline constexpr int kRandomModelWindow = 32;

// Writes an F32 model of `architecture` to `path`. moe: with experts.
// kUnsupported: libllama cannot make it, with its reason. On some architectures libllama aborts
// the process instead, so callers that try all of them fork first.
Status MakeRandomModel(const std::string& architecture, bool moe, const std::string& path, uint32_t seed);

// True of architectures that exist with experts only.
bool NeedsExperts(const std::string& architecture);

// tests/support/architectures.txt: every architecture name that libllama knows.
std::vector<std::string> Architectures();

}  // namespace pith::testing

#endif  // PITH_TESTS_SUPPORT_RANDOM_MODEL_H_
