#include "base/text.h"

#include <sys/stat.h>

#include <cctype>
#include <cerrno>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <iostream>
#include <iterator>
#include <limits>
#include <memory>
#include <optional>
#include <utility>

#include <fmt/format.h>

#include "base/atomic_file.h"
#include "base/parse_number.h"

namespace pith {
namespace {

struct Unit {
  std::string_view name;
  double bytes;
};
constexpr double kKi = 1024;
constexpr Unit kUnits[] = {
    {"", 1},           {"b", 1},
    {"k", kKi},        {"ki", kKi},             {"kib", kKi},             {"kb", 1e3},
    {"m", kKi * kKi},  {"mi", kKi * kKi},       {"mib", kKi * kKi},       {"mb", 1e6},
    {"g", kKi * kKi * kKi}, {"gi", kKi * kKi * kKi}, {"gib", kKi * kKi * kKi}, {"gb", 1e9},
};

std::string_view Trim(std::string_view text) {
  const auto is_space = [](char c) { return std::isspace(static_cast<unsigned char>(c)) != 0; };
  while (!text.empty() && is_space(text.front())) text.remove_prefix(1);
  while (!text.empty() && is_space(text.back())) text.remove_suffix(1);
  return text;
}

// Reads a plain decimal number; what follows it stays in `text`.
bool TakeNumber(std::string_view& text, double& value) {
  const auto [end, error] =
      std::from_chars(text.data(), text.data() + text.size(), value, std::chars_format::fixed);
  if (error != std::errc() || !std::isfinite(value)) return false;
  text.remove_prefix(static_cast<size_t>(end - text.data()));
  return true;
}

tl::unexpected<Error> BadSize(std::string_view text) {
  return InvalidArgument(
      fmt::format("\"{}\" is no size; give bytes, or a number with KiB, MiB or GiB, such as 64MiB", text));
}

std::vector<std::string_view> Split(std::string_view text, char separator) {
  std::vector<std::string_view> parts;
  for (;;) {
    const size_t at = text.find(separator);
    parts.push_back(Trim(text.substr(0, at)));
    if (at == std::string_view::npos) return parts;
    text.remove_prefix(at + 1);
  }
}

// "window=64 ..." but not "score=...": a parameter of the recipe before it.
bool IsParameter(std::string_view text) {
  const size_t end = text.find_first_not_of("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-");
  if (end == 0 || end == std::string_view::npos || text[end] != '=') return false;
  const std::string_view name = text.substr(0, end);
  for (const std::string_view stage : {"score", "agg", "mod", "alloc", "act", "prefill"}) {
    if (name == stage) return false;
  }
  return true;
}

}  // namespace

Result<size_t> ParseSize(std::string_view text) {
  std::string_view rest = Trim(text);
  double value = 0;
  if (!TakeNumber(rest, value) || value < 0) return BadSize(text);
  std::string unit;
  for (const char c : Trim(rest)) unit += static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  for (const Unit& known : kUnits) {
    if (unit != known.name) continue;
    const double bytes = value * known.bytes;
    if (bytes < 1) return InvalidArgument(fmt::format("a size of \"{}\" is no memory at all", text));
    if (bytes > 1e15) return InvalidArgument(fmt::format("\"{}\" is more memory than any machine has", text));
    return static_cast<size_t>(bytes);
  }
  return BadSize(text);
}

Result<SizeOrShare> ParseSizeOrShare(std::string_view text) {
  const std::string_view trimmed = Trim(text);
  if (!trimmed.ends_with('%')) {
    PITH_ASSIGN_OR_RETURN(const size_t bytes, ParseSize(trimmed));
    return SizeOrShare{bytes, 0};
  }
  std::string_view rest = trimmed;
  double percent = 0;
  if (!TakeNumber(rest, percent) || Trim(rest) != "%" || percent <= 0 || percent > 1000) {
    return InvalidArgument(fmt::format("\"{}\" is no percentage above 0; give one such as 20%", text));
  }
  return SizeOrShare{0, percent / 100};
}

std::string FormatBytes(size_t bytes) {
  const auto value = static_cast<double>(bytes);
  if (bytes < 1024) return fmt::format("{} bytes", bytes);
  if (value < kKi * kKi) return fmt::format("{:.1f} KiB", value / kKi);
  if (value < kKi * kKi * kKi) return fmt::format("{:.2f} MiB", value / (kKi * kKi));
  return fmt::format("{:.2f} GiB", value / (kKi * kKi * kKi));
}

std::string FormatCount(int64_t count) {
  std::string digits = fmt::format("{}", count);
  const int first = count < 0 ? 1 : 0;
  for (int at = static_cast<int>(digits.size()) - 3; at > first; at -= 3) {
    digits.insert(static_cast<size_t>(at), ",");
  }
  return digits;
}

Result<std::vector<double>> ParseNumbers(std::string_view text, std::string_view flag, double low, double high) {
  std::vector<double> values;
  for (const std::string_view part : Split(text, ',')) {
    std::string_view rest = part;
    double value = 0;
    if (!TakeNumber(rest, value) || !rest.empty() || value < low || value > high) {
      return InvalidArgument(
          fmt::format("{} takes numbers from {:g} to {:g} between commas, not \"{}\"", flag, low, high, text));
    }
    values.push_back(value);
  }
  return values;
}

Result<std::vector<int>> ParseIntegers(std::string_view text, std::string_view flag, int low, int high) {
  std::vector<int> values;
  for (const std::string_view part : Split(text, ',')) {
    const std::optional<int> value = ParseNumber<int>(part);
    if (!value || *value < low || *value > high) {
      return InvalidArgument(
          fmt::format("{} takes whole numbers from {} to {} between commas, not \"{}\"", flag, low, high, text));
    }
    values.push_back(*value);
  }
  return values;
}

std::vector<std::string> SplitRecipes(std::string_view text) {
  std::vector<std::string> recipes;
  for (const std::string_view group : Split(text, ';')) {
    bool continues = false;
    for (const std::string_view part : Split(group, ',')) {
      if (continues && IsParameter(part)) {
        recipes.back() += fmt::format(",{}", part);
      } else if (!part.empty()) {
        recipes.emplace_back(part);
        continues = true;
      }
    }
  }
  return recipes;
}

// /dev/zero does not end.
constexpr size_t kMostOfDevice = size_t{256} << 20;

Result<std::string> ReadFile(const std::string& path) {
  if (path == "-") {
    return std::string(std::istreambuf_iterator<char>(std::cin), std::istreambuf_iterator<char>());
  }
  struct stat info {};
  if (::stat(path.c_str(), &info) == 0 && S_ISDIR(info.st_mode)) {
    return InvalidArgument(fmt::format("{} is a folder, not a file", path));
  }
  const std::unique_ptr<std::FILE, int (*)(std::FILE*)> file(std::fopen(path.c_str(), "rb"), &std::fclose);
  if (!file) {
    if (errno == ENOENT || errno == ENOTDIR) return NotFound(fmt::format("there is no file {}", path));
    return IoError(fmt::format("{} could not be opened: {}", path, std::strerror(errno)));
  }
  std::string text;
  char buffer[65536];
  size_t n = 0;
  while ((n = std::fread(buffer, 1, sizeof buffer, file.get())) > 0) {
    text.append(buffer, n);
    if (S_ISCHR(info.st_mode) && text.size() > kMostOfDevice) {
      return InvalidArgument(fmt::format("{} is a device that does not end within 256 MiB", path));
    }
  }
  if (std::ferror(file.get()) != 0) return IoError(fmt::format("{} could not be read", path));
  return text;
}

Status RequireUtf8(std::string_view text, std::string_view what) {
  const size_t at = FindInvalidUtf8(text);
  if (at == std::string_view::npos) return {};
  return InvalidArgument(fmt::format("{} is not valid UTF-8: byte {} is 0x{:02x}", what, at,
                                     static_cast<unsigned>(static_cast<unsigned char>(text[at]))));
}

Status CheckOutput(const std::string& path) {
  return path.empty() || path == "-" ? Status() : CheckWritable(path);
}

Status WriteFile(const std::string& path, std::string_view text) {
  if (path != "-") return WriteWholeFile(path, text);
  std::fwrite(text.data(), 1, text.size(), stdout);
  return {};
}

}  // namespace pith
