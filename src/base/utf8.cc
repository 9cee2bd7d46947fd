#include "base/utf8.h"

#include <cstdint>

namespace pith {
namespace {

constexpr std::string_view kReplacement = "\xef\xbf\xbd";

// Length of the character at the front: 0 = more bytes are needed, -1 = invalid.
int CharacterLength(std::string_view text) {
  const auto byte = [text](size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned lead = byte(0);
  if (lead < 0x80) return 1;
  if (lead < 0xc2 || lead > 0xf4) return -1;
  const size_t length = lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : 4;
  for (size_t i = 1; i < length; ++i) {
    if (i >= text.size()) return 0;
    unsigned low = 0x80;
    unsigned high = 0xbf;
    if (i == 1) {  // no overlong forms, no surrogates, nothing above U+10FFFF
      if (lead == 0xe0) low = 0xa0;
      if (lead == 0xed) high = 0x9f;
      if (lead == 0xf0) low = 0x90;
      if (lead == 0xf4) high = 0x8f;
    }
    if (byte(i) < low || byte(i) > high) return -1;
  }
  return static_cast<int>(length);
}

}  // namespace

size_t FindInvalidUtf8(std::string_view text) {
  size_t at = 0;
  while (at < text.size()) {
    const int length = CharacterLength(text.substr(at));
    if (length <= 0) return at;
    at += static_cast<size_t>(length);
  }
  return std::string_view::npos;
}

std::string Utf8Stream::Push(std::string_view bytes) {
  pending_ += bytes;
  std::string out;
  size_t at = 0;
  while (at < pending_.size()) {
    const int length = CharacterLength(std::string_view(pending_).substr(at));
    if (length == 0) break;
    if (length < 0) {
      out += kReplacement;
      ++at;
    } else {
      out.append(pending_, at, static_cast<size_t>(length));
      at += static_cast<size_t>(length);
    }
  }
  pending_.erase(0, at);
  return out;
}

std::string Utf8Stream::Flush() {
  if (pending_.empty()) return {};
  pending_.clear();
  return std::string(kReplacement);
}

}  // namespace pith
