// Any bytes are a trace that can be replayed, or one sentence: the first byte picks the format.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "evict/read_trace.h"
#include "evict/registry.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  constexpr pith::evict::TraceFormat kFormats[] = {
      pith::evict::TraceFormat::kCsv, pith::evict::TraceFormat::kOracle, pith::evict::TraceFormat::kNginx,
      pith::evict::TraceFormat::kPrompts};
  const std::string_view text(reinterpret_cast<const char*>(data) + 1, size - 1);
  const auto trace = pith::evict::ReadTrace(kFormats[data[0] % 4], text, "trace");
  if (!trace) {
    if (trace.error().message.empty() || trace.error().message.find('\n') != std::string_view::npos) std::abort();
    return 0;
  }
  for (const char* policy : {"lru", "gdsf-admit", "s3fifo", "sieve", "wtinylfu", "belady-size"}) {
    const uint64_t capacity = 1 + trace->footprint_bytes() / 3;
    const auto evictor = pith::evict::MakeEvictor(policy, {capacity, trace->num_objects(), &*trace});
    if (!evictor) std::abort();
    pith::evict::Tally tally;
    (*evictor)->Replay(*trace, true, tally);
    if (tally.requests != trace->num_accesses() || (*evictor)->used_bytes() > capacity) std::abort();
  }
  return 0;
}
