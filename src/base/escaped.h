// Text from files that nobody should trust, fit for a message.
#ifndef PITH_BASE_ESCAPED_H_
#define PITH_BASE_ESCAPED_H_

#include <fmt/format.h>

#include <string>
#include <string_view>

namespace pith {

// Unprintable bytes and double quotes escaped as \xNN, so that no terminal obeys the text; cut after `most` bytes.
inline std::string Escaped(std::string_view text, size_t most = 64) {
  std::string out;
  for (const char c : text.substr(0, most)) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte >= 0x20 && byte < 0x7f && c != '"') {
      out += c;
    } else {
      out += fmt::format("\\x{:02x}", byte);
    }
  }
  if (text.size() > most) out += "...";
  return out;
}

}  // namespace pith

#endif  // PITH_BASE_ESCAPED_H_
