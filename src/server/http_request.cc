#include <algorithm>
#include <cctype>

#include "server/http_server.h"

namespace pith::server {
namespace {

int HexDigit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

bool EqualsAnyCase(std::string_view a, std::string_view b) {
  return std::ranges::equal(a, b, [](unsigned char x, unsigned char y) { return std::tolower(x) == std::tolower(y); });
}

}  // namespace

Result<std::string> PercentDecode(std::string_view text, bool plus_is_space) {
  std::string out;
  out.reserve(text.size());
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '+' && plus_is_space) {
      out += ' ';
    } else if (text[i] != '%') {
      out += text[i];
    } else {
      const int high = i + 2 < text.size() ? HexDigit(text[i + 1]) : -1;
      const int low = i + 2 < text.size() ? HexDigit(text[i + 2]) : -1;
      if (high < 0 || low < 0) return InvalidArgument("the address has a percent sign without two hexadecimal digits");
      out += static_cast<char>(high * 16 + low);
      i += 2;
    }
  }
  return out;
}

std::shared_ptr<BodyHold> BodyHold::Take(const std::shared_ptr<std::atomic<size_t>>& held, size_t bytes, size_t most) {
  size_t now = held->load();
  do {
    if (bytes > most - std::min(most, now)) return nullptr;
  } while (!held->compare_exchange_weak(now, now + bytes));
  return std::shared_ptr<BodyHold>(new BodyHold(held, bytes));
}

std::string_view HttpRequest::Header(std::string_view name) const {
  for (const auto& [key, value] : headers) {
    if (EqualsAnyCase(key, name)) return value;
  }
  return {};
}

std::string HttpRequest::Parameter(std::string_view name) const {
  std::string_view rest = query;
  while (!rest.empty()) {
    const std::string_view one = rest.substr(0, rest.find('&'));
    rest.remove_prefix(std::min(rest.size(), one.size() + 1));
    const size_t equals = std::min(one.find('='), one.size());
    if (one.substr(0, equals) != name) continue;
    return PercentDecode(one.substr(std::min(one.size(), equals + 1)), true).value_or("");
  }
  return {};
}

}  // namespace pith::server
