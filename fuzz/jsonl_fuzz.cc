// Any bytes end in tasks or in one sentence.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "base/text.h"
#include "lab/jsonl.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const auto tasks = pith::ParseTasks(text, "tasks.jsonl");
  if (!tasks && (tasks.error().message.empty() ||
                 pith::FindInvalidUtf8(tasks.error().message) != std::string_view::npos)) {
    std::abort();
  }
  if (tasks && tasks->empty()) std::abort();
  return 0;
}
