// What readers of traces share.
#ifndef PITH_EVICT_TRACE_BUILDER_H_
#define PITH_EVICT_TRACE_BUILDER_H_

#include <charconv>
#include <cmath>
#include <cstdint>
#include <string_view>
#include <system_error>
#include <utility>

#include <fmt/format.h>

#include "base/escaped.h"
#include "evict/key_index.h"
#include "evict/trace.h"

namespace pith::evict {

Result<Trace> ReadCsv(std::string_view text, std::string_view name);
Result<Trace> ReadOracle(std::string_view text, std::string_view name);
Result<Trace> ReadNginx(std::string_view text, std::string_view name);
Result<Trace> ReadPrompts(std::string_view text, std::string_view name);

// Larger objects are taken for damage.
inline constexpr uint64_t kMostObjectBytes = uint64_t{1} << 48;

// All of `text` is this number.
template <typename T>
bool ParseWhole(std::string_view text, T& value) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc() && end == text.data() + text.size() && !text.empty();
}

// FNV-1a; what is no number in the trace.
inline uint64_t HashId(std::string_view text) {
  uint64_t hash = 0xcbf29ce484222325u;
  for (const char c : text) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3u;
  return hash;
}
inline uint64_t IdOf(std::string_view text) {
  uint64_t id = 0;
  return ParseWhole(text, id) ? id : HashId(text);
}

class TraceBuilder {
 public:
  void Reserve(size_t accesses) {
    trace_.object.reserve(accesses);
    trace_.size.reserve(accesses);
    trace_.time.reserve(accesses);
  }
  void Add(uint64_t id, uint64_t size, double time) {
    trace_.object.push_back(index_.Number(id));
    trace_.size.push_back(size);
    trace_.time.push_back(time);
  }
  Trace& trace() { return trace_; }
  const KeyIndex& index() const { return index_; }

  // name begins the sentence of an error.
  Result<Trace> Finish(std::string_view name) {
    trace_.ids = index_.keys();
    if (const Status status = trace_.Finish(); !status) {
      return MakeError(status.error().code, fmt::format("{}: {}", name, status.error().message));
    }
    return std::move(trace_);
  }

 private:
  Trace trace_;
  KeyIndex index_;
};

// Lines of a text, without their ends, and without the mark that some programs put before UTF-8.
class Lines {
 public:
  Lines(std::string_view text, std::string_view name) : text_(text), name_(name) {
    constexpr std::string_view kMark = "\xef\xbb\xbf";
    if (text_.starts_with(kMark)) text_.remove_prefix(kMark.size());
  }
  bool Next(std::string_view& line) {
    if (text_.empty()) return false;
    const size_t end = text_.find('\n');
    line = text_.substr(0, end);
    text_.remove_prefix(end == std::string_view::npos ? text_.size() : end + 1);
    if (line.ends_with('\r')) line.remove_suffix(1);
    ++number_;
    return true;
  }
  tl::unexpected<Error> Bad(std::string_view what) const {
    return Corrupt(fmt::format("{}, line {}: {}", name_, number_, what));
  }

 private:
  std::string_view text_;
  std::string_view name_;
  size_t number_ = 0;
};

}  // namespace pith::evict

#endif  // PITH_EVICT_TRACE_BUILDER_H_
