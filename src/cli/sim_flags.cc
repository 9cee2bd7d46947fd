#include "cli/sim_flags.h"

#include <algorithm>

#include <fmt/format.h>

#include "base/text.h"
#include "evict/read_trace.h"

namespace pith::cli {

std::vector<std::string> SplitCommas(std::string_view text) {
  std::vector<std::string> parts;
  for (size_t at = 0; at <= text.size();) {
    const size_t end = std::min(text.find(',', at), text.size());
    parts.emplace_back(text.substr(at, end - at));
    at = end + 1;
  }
  return parts;
}

Result<std::vector<uint64_t>> ParseCapacities(std::string_view text) {
  std::vector<uint64_t> capacities;
  if (text.empty()) return capacities;
  for (const std::string& part : SplitCommas(text)) {
    const Result<size_t> size = ParseSize(part);
    if (!size) return InvalidArgument(fmt::format("--capacity: {}", size.error().message));
    capacities.push_back(*size);
  }
  return capacities;
}

Result<evict::Trace> ReadTraceFile(const std::string& path, const std::string& format) {
  PITH_ASSIGN_OR_RETURN(const evict::TraceFormat known,
                        format.empty() ? evict::FormatOfFile(path) : evict::ParseFormatName(format));
  PITH_ASSIGN_OR_RETURN(const std::string text, ReadFile(path));
  return evict::ReadTrace(known, text, path);
}

}  // namespace pith::cli
