#include "lab/html_page.h"

#include <nlohmann/json.hpp>

#include "base/check.h"

namespace pith {
namespace {

using nlohmann::ordered_json;

constexpr std::string_view kPlace = "/*DATA*/";

// JSON that is also harmless inside <script>: no tag, no comment and no line separator can begin.
std::string ForScript(const ordered_json& json) {
  const std::string plain = json.dump(-1, ' ', /*ensure_ascii=*/true, ordered_json::error_handler_t::replace);
  std::string safe;
  for (const char c : plain) {
    switch (c) {
      case '<': safe += "\\u003c"; break;
      case '>': safe += "\\u003e"; break;
      case '&': safe += "\\u0026"; break;
      default: safe += c;
    }
  }
  return safe;
}

}  // namespace

std::string FillPage(std::string_view page, const ordered_json& data) {
  const size_t place = page.find(kPlace);
  PITH_CHECK(place != std::string_view::npos);
  return std::string(page.substr(0, place)) + ForScript(data) + std::string(page.substr(place + kPlace.size()));
}

}  // namespace pith
