// Access logs of NGINX. A line is in the combined format,
//   ADDRESS - USER [DAY/MON/YEAR:HH:MM:SS ZONE] "GET /path HTTP/1.1" STATUS BYTES "referrer" "agent"
// or in the one that tells more about the cache,
//   "$time_iso8601" $upstream_cache_status $cache_key $bytes $ttl $upstream_response_time
// where each field may stand in quotes, a dash means unknown, and the last, in seconds, may be a list of which the last
// counts. Whether NGINX had a hit is not looked at: the simulator decides. Of the combined format GET with status 200
// counts.
#include <array>
#include <vector>

#include "evict/trace_builder.h"

namespace pith::evict {
namespace {

// The next field: between quotes or brackets, or up to a space. False: the line has ended, or a quote has no end.
bool NextField(std::string_view& rest, std::string_view& field) {
  while (!rest.empty() && rest.front() == ' ') rest.remove_prefix(1);
  if (rest.empty()) return false;
  const char first = rest.front();
  const char closing = first == '"' ? '"' : first == '[' ? ']' : ' ';
  if (closing != ' ') rest.remove_prefix(1);
  const size_t end = rest.find(closing);
  if (closing != ' ' && end == std::string_view::npos) return false;
  field = rest.substr(0, end);
  rest.remove_prefix(end == std::string_view::npos ? rest.size() : end + 1);
  return true;
}

// Days from 1970-01-01 in the Gregorian calendar.
int64_t Days(int64_t year, int64_t month, int64_t day) {
  year -= month <= 2;
  const int64_t era = (year >= 0 ? year : year - 399) / 400;
  const int64_t in_era = year - era * 400;
  const int64_t in_year = (153 * (month + (month > 2 ? -3 : 9)) + 2) / 5 + day - 1;
  return era * 146097 + in_era * 365 + in_era / 4 - in_era / 100 + in_year - 719468;
}

bool Digits(std::string_view text, size_t at, size_t count, int64_t& value) {
  return at + count <= text.size() && ParseWhole(text.substr(at, count), value) && value >= 0;
}

// "+0130", "+01:30", "Z" or nothing, in seconds.
bool ParseZone(std::string_view text, int64_t& seconds) {
  seconds = 0;
  if (text.empty() || text == "Z") return true;
  int64_t hours = 0;
  int64_t minutes = 0;
  const size_t colon = text.size() == 6 && text[3] == ':' ? 1 : 0;
  if (text.size() != 5 + colon || (text[0] != '+' && text[0] != '-')) return false;
  if (!Digits(text, 1, 2, hours) || !Digits(text, 3 + colon, 2, minutes)) return false;
  seconds = (text[0] == '-' ? -1 : 1) * (hours * 3600 + minutes * 60);
  return true;
}

bool ClockTime(std::string_view text, size_t at, int64_t days, std::string_view zone, double& time) {
  int64_t hour = 0;
  int64_t minute = 0;
  int64_t second = 0;
  int64_t offset = 0;
  if (!Digits(text, at, 2, hour) || !Digits(text, at + 3, 2, minute) || !Digits(text, at + 6, 2, second)) return false;
  if (hour > 23 || minute > 59 || second > 60 || !ParseZone(zone, offset)) return false;
  time = static_cast<double>(days * 86400 + hour * 3600 + minute * 60 + second - offset);
  return true;
}

// 2026-01-31T23:59:59+01:00, or seconds since 1970 with a fraction.
bool ParseIsoTime(std::string_view text, double& time) {
  if (ParseWhole(text, time)) return std::isfinite(time) && time >= 0;
  int64_t year = 0;
  int64_t month = 0;
  int64_t day = 0;
  if (text.size() < 19 || text[4] != '-' || text[7] != '-' || text[10] != 'T') return false;
  if (!Digits(text, 0, 4, year) || !Digits(text, 5, 2, month) || !Digits(text, 8, 2, day)) return false;
  if (month < 1 || month > 12 || day < 1 || day > 31) return false;
  return ClockTime(text, 11, Days(year, month, day), text.substr(19), time);
}

// 31/Jan/2026:23:59:59 +0100
bool ParseLogTime(std::string_view text, double& time) {
  constexpr std::string_view kMonths = "JanFebMarAprMayJunJulAugSepOctNovDec";
  int64_t day = 0;
  int64_t year = 0;
  if (text.size() < 20 || text[2] != '/' || text[6] != '/' || text[11] != ':') return false;
  const size_t month = kMonths.find(text.substr(3, 3));
  if (month == std::string_view::npos || month % 3 != 0) return false;
  if (!Digits(text, 0, 2, day) || !Digits(text, 7, 4, year) || day < 1 || day > 31) return false;
  const std::string_view zone = text.size() > 21 ? text.substr(21) : std::string_view();
  return ClockTime(text, 12, Days(year, static_cast<int64_t>(month / 3) + 1, day), zone, time);
}

class LogReader {
 public:
  LogReader(std::string_view text, std::string_view name) : lines_(text, name) {}

  Result<Trace> Read(std::string_view name) {
    std::string_view line;
    while (lines_.Next(line)) {
      if (line.find_first_not_of(' ') == std::string_view::npos) continue;
      std::string_view rest = line;
      std::string_view first;
      if (!NextField(rest, first)) return lines_.Bad("a quote has no end");
      double time = 0;
      PITH_RETURN_IF_ERROR(ParseIsoTime(first, time) ? CacheLine(time, rest) : CombinedLine(rest));
    }
    return builder_.Finish(name);
  }

 private:
  Status Bytes(std::string_view text, uint64_t& bytes) const {
    if (ParseWhole(text, bytes) && bytes <= kMostObjectBytes) return {};
    return lines_.Bad(fmt::format("\"{}\" is no number of bytes", Escaped(text)));
  }

  Status CacheLine(double time, std::string_view rest) {
    std::array<std::string_view, 4> fields;  // cache status, key, bytes, TTL
    for (std::string_view& field : fields) {
      if (!NextField(rest, field)) return lines_.Bad("fewer than five fields");
    }
    uint64_t size = 0;
    PITH_RETURN_IF_ERROR(Bytes(fields[2], size));
    double ttl = 0;
    float known_ttl = Trace::kNoTtl;
    if (fields[3] != "-" && fields[3] != "") {
      if (!ParseWhole(fields[3], ttl) || !std::isfinite(ttl) || ttl < 0) {
        return lines_.Bad(fmt::format("\"{}\" is no TTL in seconds", Escaped(fields[3])));
      }
      known_ttl = static_cast<float>(ttl);
    }
    float rtt = Trace::kNoRtt;
    std::string_view field;
    while (NextField(rest, field)) {
      if (field.find_last_of(", ") != std::string_view::npos && field.back() != ',') {
        field.remove_prefix(field.find_last_of(", ") + 1);
      }
      if (field.ends_with(',')) field.remove_suffix(1);
      double seconds = 0;
      if (field == "-" || field == ":") continue;
      if (!ParseWhole(field, seconds) || !std::isfinite(seconds) || seconds < 0) {
        return lines_.Bad(fmt::format("\"{}\" is no time of the upstream in seconds", Escaped(field)));
      }
      rtt = static_cast<float>(seconds * 1e6);
    }
    Add(fields[1], size, time, known_ttl, rtt);
    return {};
  }

  Status CombinedLine(std::string_view rest) {
    std::array<std::string_view, 6> fields;  // -, user, time, request, status, bytes
    for (std::string_view& field : fields) {
      if (!NextField(rest, field)) return lines_.Bad("neither the combined format nor one that begins with a time");
    }
    double time = 0;
    if (!ParseLogTime(fields[2], time)) return lines_.Bad(fmt::format("\"{}\" is no time", Escaped(fields[2])));
    if (!fields[3].starts_with("GET ") || fields[4] != "200") return {};
    std::string_view path = fields[3].substr(4);
    path = path.substr(0, path.find(' '));
    uint64_t size = 0;
    PITH_RETURN_IF_ERROR(Bytes(fields[5], size));
    Add(path, size, time, Trace::kNoTtl, Trace::kNoRtt);
    return {};
  }

  void Add(std::string_view key, uint64_t size, double time, float ttl, float rtt) {
    builder_.Add(IdOf(key), size, time);
    builder_.trace().ttl.push_back(ttl);
    builder_.trace().rtt.push_back(rtt);
  }

  Lines lines_;
  TraceBuilder builder_;
};

}  // namespace

Result<Trace> ReadNginx(std::string_view text, std::string_view name) { return LogReader(text, name).Read(name); }

}  // namespace pith::evict
