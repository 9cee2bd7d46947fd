#include <algorithm>
#include <cctype>
#include <ctime>

#include <fmt/format.h>
#include <boost/beast/http/field.hpp>
#include <boost/beast/http/fields.hpp>
#include <boost/beast/http/status.hpp>

#include "server/http_server.h"
#include "server/http_shared.h"

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

// What a host and its port may be written with; none at all is one, too.
bool IsHost(std::string_view text) {
  return std::ranges::all_of(text, [](unsigned char c) {
    return std::isalnum(c) != 0 ||
           std::string_view("-._~%!$&'()*+,;=:[]").find(static_cast<char>(c)) != std::string_view::npos;
  });
}

}  // namespace

Status ReadTarget(std::string target, HttpRequest& request) {
  const size_t scheme = target.find("://");
  if (scheme != std::string::npos && scheme < target.find_first_of("/?")) {
    const size_t host_end = std::min(target.find_first_of("/?", scheme + 3), target.size());
    target.erase(0, host_end);
    if (!target.starts_with('/')) target.insert(0, "/");
  }
  const size_t question = std::min(target.find('?'), target.size());
  if (question < target.size()) request.query = target.substr(question + 1);
  PITH_ASSIGN_OR_RETURN(request.path, PercentDecode(std::string_view(target).substr(0, question), false));
  return {};
}

std::string FramingFault(const boost::beast::http::fields& head, unsigned version) {
  using boost::beast::http::field;
  for (const char* name :
       {"Host", "Content-Length", "Content-Type", "Content-Encoding", "Authorization", "x-api-key", "Expect"}) {
    if (head.count(name) > 1) return fmt::format("the header {} stands more than once", name);
  }
  // RFC 9112, 3.2.
  if (version >= 11 && head.count(field::host) == 0) return "HTTP/1.1 needs the header Host";
  if (const auto host = head[field::host]; !IsHost({host.data(), host.size()})) return "the header Host names no host";
  if (head[field::content_length].find(',') != std::string_view::npos)
    return "the header Content-Length must be one number";
  if (version < 11 && head.count(field::transfer_encoding) > 0) return "HTTP/1.0 knows no Transfer-Encoding";
  return {};
}

bool IsChunkedAlone(std::string_view transfer_encoding) {
  const size_t first = transfer_encoding.find_first_not_of(" \t");
  if (first == std::string_view::npos) return false;
  return EqualsAnyCase(transfer_encoding.substr(first, transfer_encoding.find_last_not_of(" \t") + 1 - first),
                       "chunked");
}

std::string_view Reason(int status) {
  const auto text = boost::beast::http::obsolete_reason(static_cast<boost::beast::http::status>(status));
  return {text.data(), text.size()};
}

std::string DateNow() {
  const std::time_t now = std::time(nullptr);
  std::tm parts{};
  ::gmtime_r(&now, &parts);
  char text[40];
  const size_t size = std::strftime(text, sizeof(text), "%a, %d %b %Y %H:%M:%S GMT", &parts);
  return {text, size};
}

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
