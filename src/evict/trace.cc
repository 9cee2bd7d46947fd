#include "evict/trace.h"

#include <limits>

namespace pith::evict {

Status Trace::Finish() {
  if (object.empty()) return Corrupt("the trace holds no requests");
  if (object.size() >= kNever) return Unsupported("the trace has more than 4294967294 requests");
  std::vector<uint32_t> next_of(ids.size(), kNever);
  std::vector<uint64_t> size_of(ids.size(), 0);
  next.assign(object.size(), kNever);
  total_bytes_ = 0;
  uniform_ = true;
  size_t prompt = prompts.size();
  for (size_t i = object.size(); i-- > 0;) {
    const uint32_t item = object[i];
    while (has_prompts() && (prompt == prompts.size() || i < prompts[prompt].first)) --prompt;
    next[i] = next_of[item];
    next_of[item] = static_cast<uint32_t>(has_prompts() ? prompt : i);
    if (next[i] == kNever) size_of[item] = size[i];
    if (size[i] > std::numeric_limits<uint64_t>::max() / 2 - total_bytes_) {
      return Unsupported("the sizes of the trace add up to more than 2^63 bytes");
    }
    total_bytes_ += size[i];
    uniform_ = uniform_ && size[i] == size[0];
  }
  footprint_bytes_ = 0;
  for (const uint64_t bytes : size_of) footprint_bytes_ += bytes;
  return {};
}

}  // namespace pith::evict
