#include "policy/storage.h"

#include <fmt/format.h>

#include <charconv>
#include <cmath>
#include <optional>

#include "base/parse_number.h"
#include "policy/words.h"

namespace pith {
namespace {

constexpr double kAutoShare = 0.95;

// Steps of "comp:ek=F,ev=F" as a format: a step is at most F of a range.
Result<Storage> ParseCoded(std::string_view text) {
  const auto invalid = [text] {
    return InvalidArgument(fmt::format("format=comp:ek=F,ev=F takes shares of a range from 1/{} to 1/{}, not '{}'",
                                       kMostCodedSteps, kFewestCodedSteps, Printable(text)));
  };
  double shares[2] = {1.0 / CodedSteps(kUsualCoded.key), 1.0 / CodedSteps(kUsualCoded.value)};
  while (!text.empty()) {
    const std::string_view part = text.substr(0, text.find(','));
    text.remove_prefix(std::min(part.size() + 1, text.size()));
    if (!part.starts_with("ek=") && !part.starts_with("ev=")) return invalid();
    const char* const end = part.data() + part.size();
    double over = 1, under = 1;
    std::from_chars_result read = std::from_chars(part.data() + 3, end, over);
    if (read.ec == std::errc() && read.ptr != end && *read.ptr == '/') read = std::from_chars(read.ptr + 1, end, under);
    if (read.ec != std::errc() || read.ptr != end || !(over > 0) || !(under > 0)) return invalid();
    shares[part[1] == 'k' ? 0 : 1] = over / under;
  }
  KvFormat formats[2] = {};
  for (const int i : {0, 1}) {
    // 1e-9: the share may be a little less than was written.
    const double steps = std::ceil(1 / shares[i] - 1e-9);
    if (!(shares[i] * kFewestCodedSteps <= 1 && steps <= kMostCodedSteps)) return invalid();
    formats[i] = CodedFormat(static_cast<int>(steps));
  }
  return Storage{.fixed = PageFormat(formats[0], formats[1])};
}

}  // namespace

std::string Storage::Name() const {
  if (least <= 0) return fixed.Name();
  return least == kAutoShare ? std::string("auto") : fmt::format("auto:{}", least);
}

Result<Storage> ParseStorage(std::string_view text) {
  constexpr std::string_view kAuto = "auto";
  if (text == kAuto) return Storage{.fixed = {}, .least = kAutoShare};
  if (text.starts_with(kAuto) && text[kAuto.size()] == ':') {
    const std::string share(text.substr(kAuto.size() + 1));
    const std::optional<double> least = ParseNumber<double>(share);
    if (least && *least >= 0.01 && *least <= 1) return Storage{.fixed = {}, .least = *least};
    return InvalidArgument(
        fmt::format("format=auto takes a share of the entries from 0.01 to 1, not '{}'", Printable(share)));
  }
  constexpr std::string_view kComp = "comp";
  if (text == kComp) return ParseCoded("");
  if (text.starts_with(kComp) && text[kComp.size()] == ':') return ParseCoded(text.substr(kComp.size() + 1));
  const size_t slash = text.find('/');
  const std::optional<KvFormat> key = FindKvFormat(text.substr(0, slash));
  const std::optional<KvFormat> value = slash == std::string_view::npos ? key : FindKvFormat(text.substr(slash + 1));
  if (!key || !value) {
    return InvalidArgument(fmt::format("format={} is none of auto, comp, {} or two of the last {} as in q8/q4",
                                       Printable(text), ListKvFormats(&KvFormatInfo::name, " and "), kNumKvFormats));
  }
  return Storage{.fixed = PageFormat(*key, *value)};
}

}  // namespace pith
