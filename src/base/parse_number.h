#ifndef PITH_BASE_PARSE_NUMBER_H_
#define PITH_BASE_PARSE_NUMBER_H_

#include <charconv>
#include <cmath>
#include <optional>
#include <string_view>
#include <system_error>
#include <type_traits>

namespace pith {

// All of the text as one decimal number, a finite one: no blanks, no '+'. None: it is none, or none of that type.
template <typename T>
std::optional<T> ParseNumber(std::string_view text) {
  T value{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  if constexpr (std::is_floating_point_v<T>) {
    if (!std::isfinite(value)) return std::nullopt;
  }
  return value;
}

}  // namespace pith

#endif  // PITH_BASE_PARSE_NUMBER_H_
