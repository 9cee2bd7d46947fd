// Any bytes as a message to the process that decides for caches, and as its answer to them: a question that is taken is
// answered with finite numbers, and an answer that is taken is one to that question.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "evict/learn/coldrl.h"
#include "evict/learn/model_file.h"
#include "evict/sidecar.h"

namespace {

using namespace pith::evict;

ColdRl& Network() {
  static auto* const network = new ColdRl(std::move(*LoadModel("", ModelKind::kColdRl)));
  return *network;
}

// The first bytes, as a socket gives them.
template <typename Message>
Message Receive(const uint8_t* data, size_t size) {
  Message message;
  std::memset(&message, 0xa5, sizeof message);
  if (size > 0) std::memcpy(&message, data, std::min(size, sizeof message));
  return message;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size < 3) return 0;
  const size_t candidates = 1 + data[0] % ColdRl::kMostCandidates;
  const uint32_t sequence = data[1];
  data += 2;
  size -= 2;
  const auto question = Receive<SidecarQuestion>(data, size);
  if (question.IsOne(size)) {
    const float* const margins = Network().MarginsOf(question.values, question.candidates);
    for (size_t c = 0; margins != nullptr && c < question.candidates; ++c) {
      if (!std::isfinite(margins[c])) std::abort();
    }
  }
  auto answer = Receive<SidecarAnswer>(data, size);
  const SidecarAnswer::To to = answer.Answers(size, sequence, candidates);
  if (to == SidecarAnswer::To::kThis &&
      (answer.sequence != sequence || size != SidecarAnswer::Bytes(candidates) || !std::isfinite(answer.margins[0]))) {
    std::abort();
  }
  return 0;
}
