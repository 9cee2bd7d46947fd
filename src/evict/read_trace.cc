#include "evict/read_trace.h"

#include <string>

#include <fmt/format.h>

#include "evict/trace_builder.h"

namespace pith::evict {

Result<TraceFormat> ParseFormatName(std::string_view name) {
  if (name == "csv") return TraceFormat::kCsv;
  if (name == "oracle") return TraceFormat::kOracle;
  if (name == "nginx") return TraceFormat::kNginx;
  if (name == "jsonl") return TraceFormat::kPrompts;
  return InvalidArgument(
      fmt::format("\"{}\" is no format of traces; choose csv, jsonl, oracle or nginx", Escaped(name)));
}

Result<TraceFormat> FormatOfFile(std::string_view path) {
  if (path.ends_with(".csv")) return TraceFormat::kCsv;
  if (path.ends_with(".jsonl")) return TraceFormat::kPrompts;
  if (path.ends_with(".log")) return TraceFormat::kNginx;
  if (path.ends_with(".oracleGeneral") || path.ends_with(".oracleGeneral.bin") || path.ends_with(".bin")) {
    return TraceFormat::kOracle;
  }
  return InvalidArgument(
      fmt::format("the name of {} does not say what it is; add --format csv, jsonl, oracle or nginx", path));
}

Result<Trace> ReadTrace(TraceFormat format, std::string_view text, std::string_view name) {
  switch (format) {
    case TraceFormat::kCsv: return ReadCsv(text, name);
    case TraceFormat::kOracle: return ReadOracle(text, name);
    case TraceFormat::kNginx: return ReadNginx(text, name);
    case TraceFormat::kPrompts: return ReadPrompts(text, name);
  }
  return InvalidArgument("no such format of traces");
}

}  // namespace pith::evict
