// Any bytes end in ok or in one sentence, and memory stays within reason of the input.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <span>

#include "host/gguf_check.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto status = pith::CheckGgufBytes(std::as_bytes(std::span(data, size)), "input.gguf");
  if (!status && status.error().message.empty()) std::abort();
  return 0;
}
