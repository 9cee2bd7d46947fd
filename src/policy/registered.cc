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
  std::vector<std::unique_ptr<RegisteredStage>> stages;
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
  return InvalidArgument(fmt::format("'{}' is no name for {}: small letters, digits and _, at most {}",
                                     Printable(name), what, kLongestName));
}

// In sentences.
std::string_view NounOf(StageKind kind) {
  switch (kind) {
    case StageKind::kScore: return "a scorer";
    case StageKind::kAggregate: return "an aggregator";
    case StageKind::kModify: return "a modifier";
    case StageKind::kAllocate: return "an allocator";
    case StageKind::kAct:
    case StageKind::kPrefill:
    case StageKind::kTurns: break;
  }
  return "a stage";
}

Status CheckParams(const std::vector<ParamSpec>& params, const std::string& word) {
  std::set<std::string_view> names;
  for (const ParamSpec& param : params) {
    PITH_RETURN_IF_ERROR(CheckName("a parameter", param.name));
    if (param.name == "sinks" || param.name == "format" || !names.insert(param.name).second) {
      return InvalidArgument(fmt::format("the parameter '{}' of {} is taken", param.name, word));
    }
    // Also where one of them is no number.
    if (!(param.min <= param.initial && param.initial <= param.max)) {
      return InvalidArgument(
          fmt::format("the default of the parameter '{}' of {} is not within its range", param.name, word));
    }
  }
  return {};
}

template <typename T>
std::unique_ptr<RegisteredStage> Keep(StageKind kind, StageRegistration<T> registration) {
  auto kept = std::make_unique<RegisteredStage>();
  kept->texts = {std::move(registration.name), std::move(registration.paper), std::move(registration.summary)};
  for (const ParamSpec& param : registration.params) {
    for (const std::string_view text : {param.name, param.choices, param.help}) kept->texts.emplace_back(text);
  }
  size_t next = 0;
  const auto text = [&]() -> std::string_view { return kept->texts[next++]; };
  StageEntry& entry = kept->entry;
  entry.kind = kind;
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

template <typename T>
Status Register(StageKind kind, StageRegistration<T> registration) {
  PITH_RETURN_IF_ERROR(CheckName(NounOf(kind), registration.name));
  const std::string name = registration.name, word = fmt::format("{}={}", KeyOf(kind), name);
  PITH_RETURN_IF_ERROR(CheckParams(registration.params, word));
  if (registration.make == nullptr) return InvalidArgument(fmt::format("{} is nothing", word));
  std::unique_ptr<RegisteredStage> kept = Keep(kind, std::move(registration));
  const auto taken = [&word] { return InvalidArgument(fmt::format("{} is there already", word)); };
  // mod=none takes modifiers away.
  if (FindStage(kind, name) != nullptr || (kind == StageKind::kModify && name == "none")) return taken();
  Store& store = TheStore();
  const std::lock_guard lock(store.mutex);
  // Another thread may have been faster.
  for (const auto& other : store.stages) {
    if (other->entry.kind == kind && other->entry.name == name) return taken();
  }
  store.stages.push_back(std::move(kept));
  return {};
}

}  // namespace

std::vector<const RegisteredStage*> RegisteredStages() {
  Store& store = TheStore();
  const std::lock_guard lock(store.mutex);
  std::vector<const RegisteredStage*> all;
  for (const auto& stage : store.stages) all.push_back(stage.get());
  return all;
}

Status RegisterScorer(ScorerRegistration registration) {
  return Register(StageKind::kScore, std::move(registration));
}
Status RegisterAggregator(AggregatorRegistration registration) {
  return Register(StageKind::kAggregate, std::move(registration));
}
Status RegisterModifier(ModifierRegistration registration) {
  return Register(StageKind::kModify, std::move(registration));
}
Status RegisterAllocator(AllocatorRegistration registration) {
  return Register(StageKind::kAllocate, std::move(registration));
}

}  // namespace pith
