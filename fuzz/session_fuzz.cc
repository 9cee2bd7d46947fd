// Any bytes as a saved session: a sentence, or a sequence that is whole and that saves to the same bytes again and
// again. The body is read even where the sum in the header is wrong, which the fuzzer would hardly ever guess.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "base/byte_io.h"
#include "base/check.h"
#include "engine/session_file.h"
#include "tests/support/session_sample.h"

namespace {

using pith::Sequence;
using pith::SessionNote;
using pith::testing::SessionSample;

// Reads a body; if it is accepted, `saved` is what it saves to.
bool Read(SessionSample& sample, std::span<const std::byte> body, std::vector<std::byte>& saved) {
  Sequence sequence = sample.NewSequence();
  SessionNote note;
  const pith::Status status = sample.Read(body, sequence, note);
  if (status) {
    PITH_CHECK(sample.cache().Verify().has_value());
    saved = sample.Body(sequence);
  } else {
    PITH_CHECK(!status.error().message.empty());
  }
  sample.cache().Free(sequence.cache_id);
  PITH_CHECK(sample.cache().pool().num_used() == 0);
  return status.has_value();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static SessionSample sample;
  const auto bytes = std::as_bytes(std::span(data, size));
  pith::MemoryReader file(bytes);
  const pith::Status checked = pith::CheckSession(file);
  PITH_CHECK(checked || !checked.error().message.empty());
  std::vector<std::byte> once, twice;
  if (Read(sample, bytes.subspan(std::min(size, pith::kSessionHeaderBytes)), once)) {
    PITH_CHECK(Read(sample, once, twice));
    PITH_CHECK(once == twice);
  }
  return 0;
}
