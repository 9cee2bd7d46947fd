#include "policy/registered.h"

#include <fmt/format.h>

#include <algorithm>
#include <mutex>
#include <set>
#include <string_view>
#include <utility>

#include "policy/words.h"

namespace pith {
namespace {

constexpr size_t kLongestName = 64;

struct Store {
  std::mutex mutex;
  std::vector<std::unique_ptr<RegisteredScorer>> scorers;
};

Store& TheStore() {
  static auto* store = new Store;  // recipes may be used while the process ends
  return *store;
}

bool IsName(std::string_view text) {
  const auto is_part = [](char c) { return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '_'; };
  return !text.empty() && text.size() <= kLongestName && std::all_of(text.begin(), text.end(), is_part);
}

Status CheckName(std::string_view what, std::string_view name) {
  if (IsName(name)) return {};
  return InvalidArgument(fmt::format("'{}' is no name for a {}: small letters, digits and _, at most {}",
                                     Printable(name), what, kLongestName));
}

Status CheckParams(const ScorerRegistration& registration) {
  std::set<std::string_view> names;
  for (const ParamSpec& param : registration.params) {
    PITH_RETURN_IF_ERROR(CheckName("parameter", param.name));
    if (param.name == "sinks" || param.name == "format" || !names.insert(param.name).second) {
      return InvalidArgument(fmt::format("the parameter '{}' of score={} is taken", param.name, registration.name));
    }
    // Also where one of them is no number.
    if (!(param.min <= param.initial && param.initial <= param.max)) {
      return InvalidArgument(fmt::format("the default of the parameter '{}' of score={} is not within its range",
                                         param.name, registration.name));
    }
  }
  return {};
}

std::unique_ptr<RegisteredScorer> Keep(ScorerRegistration registration) {
  auto kept = std::make_unique<RegisteredScorer>();
  kept->texts = {std::move(registration.name), std::move(registration.paper), std::move(registration.summary)};
  for (const ParamSpec& param : registration.params) {
    for (const std::string_view text : {param.name, param.choices, param.help}) kept->texts.emplace_back(text);
  }
  size_t next = 0;
  const auto text = [&]() -> std::string_view { return kept->texts[next++]; };
  StageEntry& entry = kept->entry;
  entry.kind = StageKind::kScore;
  entry.name = text();
  entry.paper = text();
  entry.summary = text();
  for (ParamSpec param : registration.params) {
    param.name = text();
    param.choices = text();
    param.help = text();
    entry.params.push_back(param);
  }
  entry.num_sinks = registration.num_sinks;
  kept->make = std::move(registration.make);
  return kept;
}

}  // namespace

std::vector<const RegisteredScorer*> RegisteredScorers() {
  Store& store = TheStore();
  const std::lock_guard lock(store.mutex);
  std::vector<const RegisteredScorer*> all;
  for (const auto& scorer : store.scorers) all.push_back(scorer.get());
  return all;
}

Status RegisterScorer(ScorerRegistration registration) {
  PITH_RETURN_IF_ERROR(CheckName("scorer", registration.name));
  PITH_RETURN_IF_ERROR(CheckParams(registration));
  if (registration.make == nullptr) return InvalidArgument(fmt::format("score={} is nothing", registration.name));
  const std::string name = registration.name;
  std::unique_ptr<RegisteredScorer> kept = Keep(std::move(registration));
  const auto taken = [&name] { return InvalidArgument(fmt::format("there is a score={} already", name)); };
  if (FindStage(StageKind::kScore, name) != nullptr) return taken();
  Store& store = TheStore();
  const std::lock_guard lock(store.mutex);
  // Another thread may have been faster.
  for (const auto& other : store.scorers) {
    if (other->entry.name == name) return taken();
  }
  store.scorers.push_back(std::move(kept));
  return {};
}

}  // namespace pith
