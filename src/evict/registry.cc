#include "evict/registry.h"

#include <algorithm>
#include <array>
#include <optional>
#include <utility>
#include <vector>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "base/escaped.h"
#include "base/parse_number.h"

namespace pith::evict {

#define PITH_EVICTOR(name, maker, source, summary) \
  Result<std::unique_ptr<Evictor>> maker(Params& params, const Setup& setup);
#include "evict/registry.inc"
#undef PITH_EVICTOR

namespace {

struct Entry {
  PolicyInfo info;
  Result<std::unique_ptr<Evictor>> (*make)(Params&, const Setup&);
};

constexpr Entry kEntries[] = {
#define PITH_EVICTOR(name, maker, source, summary) {{name, source, summary}, maker},
#include "evict/registry.inc"
#undef PITH_EVICTOR
};

constexpr auto kInfos = [] {
  std::array<PolicyInfo, std::size(kEntries)> infos;
  for (size_t i = 0; i < infos.size(); ++i) infos[i] = kEntries[i].info;
  return infos;
}();

}  // namespace

Result<Params> Params::Parse(std::string_view text) {
  Params params;
  while (!text.empty()) {
    const size_t end = text.find(',');
    const std::string_view item = text.substr(0, end);
    text.remove_prefix(end == std::string_view::npos ? text.size() : end + 1);
    const size_t equals = item.find('=');
    if (equals == std::string_view::npos || equals == 0 || equals + 1 == item.size()) {
      return InvalidArgument(fmt::format("\"{}\" is no parameter of the form name=value", Escaped(item)));
    }
    const std::string name(item.substr(0, equals));
    if (!params.values_.emplace(name, Value{std::string(item.substr(equals + 1))}).second) {
      return InvalidArgument(fmt::format("the parameter {} is given twice", Escaped(name)));
    }
  }
  return params;
}

Result<std::string> Params::Text(const std::string& name, std::string value) {
  const auto found = values_.find(name);
  if (found == values_.end()) return value;
  found->second.read = true;
  return found->second.text;
}

Result<double> Params::Number(const std::string& name, double value, double low, double high) {
  PITH_ASSIGN_OR_RETURN(const std::string text, Text(name, ""));
  if (text.empty()) return value;
  const std::optional<double> number = ParseNumber<double>(text);
  if (!number || *number < low || *number > high) {
    return InvalidArgument(
        fmt::format("{}={} is no number between {} and {}", name, Escaped(text), low, high));
  }
  return *number;
}

Result<std::string> Params::Word(const std::string& name, std::string value,
                                 std::span<const std::string_view> choices) {
  PITH_ASSIGN_OR_RETURN(const std::string text, Text(name, std::move(value)));
  if (std::ranges::find(choices, text) == choices.end()) {
    return InvalidArgument(fmt::format("{}={} is none of {}", name, Escaped(text), fmt::join(choices, ", ")));
  }
  return text;
}

Status Params::CheckAllRead(std::string_view policy) const {
  for (const auto& [name, value] : values_) {
    if (!value.read) return InvalidArgument(fmt::format("{} has no parameter \"{}\"", policy, Escaped(name)));
  }
  return {};
}

std::span<const PolicyInfo> ListPolicies() { return kInfos; }

Status CheckHasTrace(std::string_view policy, const Setup& setup) {
  if (setup.trace != nullptr) return {};
  return Unsupported(fmt::format("{} must see the whole trace before the first request", policy));
}

Result<std::unique_ptr<Evictor>> MakeEvictor(std::string_view text, const Setup& setup) {
  const size_t colon = text.find(':');
  const std::string_view name = text.substr(0, colon);
  const auto entry = std::ranges::find(kEntries, name, [](const Entry& e) { return e.info.name; });
  if (entry == std::end(kEntries)) {
    std::vector<std::string_view> names;
    for (const PolicyInfo& info : kInfos) names.push_back(info.name);
    return InvalidArgument(fmt::format("there is no policy \"{}\"; choose from {}", Escaped(name),
                                       fmt::join(names, ", ")));
  }
  PITH_ASSIGN_OR_RETURN(Params params,
                        Params::Parse(colon == std::string_view::npos ? "" : text.substr(colon + 1)));
  PITH_ASSIGN_OR_RETURN(std::unique_ptr<Evictor> evictor, entry->make(params, setup));
  PITH_RETURN_IF_ERROR(params.CheckAllRead(name));
  return evictor;
}

}  // namespace pith::evict
