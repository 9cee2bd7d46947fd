// CSV with a header.
#include <array>
#include <vector>

#include "evict/trace_builder.h"

namespace pith::evict {
namespace {

enum Column { kTime, kId, kSize, kTtl, kRtt, kNumColumns };
constexpr std::array<std::string_view, kNumColumns> kNames = {"time", "id", "size", "ttl", "rtt"};

struct Header {
  std::vector<int> column_of;  // by field: a Column, or -1
  std::array<bool, kNumColumns> has{};
};

std::string_view NextField(std::string_view& rest) {
  const size_t end = rest.find(',');
  std::string_view field = rest.substr(0, end);
  rest.remove_prefix(end == std::string_view::npos ? rest.size() : end + 1);
  while (!field.empty() && field.front() == ' ') field.remove_prefix(1);
  while (!field.empty() && field.back() == ' ') field.remove_suffix(1);
  return field;
}

Result<Header> ParseHeader(const Lines& lines, std::string_view line) {
  Header header;
  while (!line.empty()) {
    const std::string_view field = NextField(line);
    int column = -1;
    for (int i = 0; i < kNumColumns; ++i) {
      if (field == kNames[i]) column = i;
    }
    if (column >= 0 && header.has[column]) return lines.Bad(fmt::format("the column {} appears twice", field));
    if (column >= 0) header.has[column] = true;
    header.column_of.push_back(column);
  }
  if (!header.has[kId]) return lines.Bad("the header has no column \"id\" (columns are time, id, size, ttl, rtt)");
  return header;
}

// A time, a TTL, a round trip: a number that is not negative.
bool ParseDuration(std::string_view text, double& value) {
  return ParseWhole(text, value) && std::isfinite(value) && value >= 0;
}

}  // namespace

Result<Trace> ReadCsv(std::string_view text, std::string_view name) {
  Lines lines(text, name);
  std::string_view line;
  if (!lines.Next(line)) return Corrupt(fmt::format("{} is empty", name));
  PITH_ASSIGN_OR_RETURN(const Header header, ParseHeader(lines, line));
  TraceBuilder builder;
  builder.Reserve(text.size() / 24);
  while (lines.Next(line)) {
    if (line.empty()) continue;
    std::array<std::string_view, kNumColumns> fields;
    for (const int column : header.column_of) {
      const std::string_view field = NextField(line);
      if (column >= 0) fields[column] = field;
    }
    if (!line.empty()) return lines.Bad(fmt::format("more than {} fields", header.column_of.size()));
    if (fields[kId].empty()) return lines.Bad("the id is missing");
    uint64_t size = 1;
    auto time = static_cast<double>(builder.trace().num_accesses());
    double ttl = 0;
    double rtt = 0;
    if (header.has[kSize] && (!ParseWhole(fields[kSize], size) || size > kMostObjectBytes)) {
      return lines.Bad(fmt::format("\"{}\" is no size in bytes", Escaped(fields[kSize])));
    }
    if (header.has[kTime] && !ParseDuration(fields[kTime], time)) {
      return lines.Bad(fmt::format("\"{}\" is no time in seconds", Escaped(fields[kTime])));
    }
    if (header.has[kTtl] && !ParseDuration(fields[kTtl], ttl)) {
      return lines.Bad(fmt::format("\"{}\" is no TTL in seconds", Escaped(fields[kTtl])));
    }
    if (header.has[kRtt] && !ParseDuration(fields[kRtt], rtt)) {
      return lines.Bad(fmt::format("\"{}\" is no round trip in microseconds", Escaped(fields[kRtt])));
    }
    builder.Add(IdOf(fields[kId]), size, time);
    if (header.has[kTtl]) builder.trace().ttl.push_back(static_cast<float>(ttl));
    if (header.has[kRtt]) builder.trace().rtt.push_back(static_cast<float>(rtt));
  }
  return builder.Finish(name);
}

}  // namespace pith::evict
