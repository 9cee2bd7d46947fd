#include "policy/registry.h"

#include <algorithm>
#include <utility>

#include "base/check.h"
#include "policy/registered.h"

namespace pith {

#define PITH_SCORER(name, function, paper) StageInfo<Scorer> function();
#define PITH_AGGREGATOR(name, function, paper) StageInfo<Aggregator> function();
#define PITH_MODIFIER(name, function, paper) StageInfo<Modifier> function();
#define PITH_ALLOCATOR(name, function, paper) StageInfo<Allocator> function();
#define PITH_ACTION(name, function, paper) StageInfo<Action> function();
#define PITH_PREFILL(name, function, paper) StageInfo<CritiOptions> function();
#define PITH_TURNS(name, function, paper) StageInfo<TurnOptions> function();
#include "policy/registry.inc"
#undef PITH_SCORER
#undef PITH_AGGREGATOR
#undef PITH_MODIFIER
#undef PITH_ALLOCATOR
#undef PITH_ACTION
#undef PITH_PREFILL
#undef PITH_TURNS

namespace {

template <typename T>
StageEntry Entry(StageKind kind, std::string_view name, std::string_view paper, const StageInfo<T>& info) {
  return {kind, name, paper, info.summary, info.params, info.num_sinks, info.check};
}

std::vector<StageEntry> MakeTable() {
  return {
#define PITH_SCORER(name, function, paper) Entry(StageKind::kScore, name, paper, function()),
#define PITH_AGGREGATOR(name, function, paper) Entry(StageKind::kAggregate, name, paper, function()),
#define PITH_MODIFIER(name, function, paper) Entry(StageKind::kModify, name, paper, function()),
#define PITH_ALLOCATOR(name, function, paper) Entry(StageKind::kAllocate, name, paper, function()),
#define PITH_ACTION(name, function, paper) Entry(StageKind::kAct, name, paper, function()),
#define PITH_PREFILL(name, function, paper) Entry(StageKind::kPrefill, name, paper, function()),
#define PITH_TURNS(name, function, paper) Entry(StageKind::kTurns, name, paper, function()),
#include "policy/registry.inc"
#undef PITH_SCORER
#undef PITH_AGGREGATOR
#undef PITH_MODIFIER
#undef PITH_ALLOCATOR
#undef PITH_ACTION
#undef PITH_PREFILL
#undef PITH_TURNS
  };
}

template <typename T>
struct Factory {
  std::string_view name;
  StageInfo<T> (*info)();
};

template <typename T>
std::unique_ptr<T> MakeFrom(std::span<const Factory<T>> table, std::string_view name, const Params& params) {
  const auto it = std::find_if(table.begin(), table.end(), [&](const Factory<T>& f) { return f.name == name; });
  PITH_CHECK(it != table.end());
  return it->info().make(params);
}

// The registered one of that name, or that in the table.
template <typename T>
std::unique_ptr<T> MakeAny(std::span<const Factory<T>> table, std::string_view name, const Params& params) {
  std::unique_ptr<T> registered = MakeRegistered<T>(name, params);
  return registered != nullptr ? std::move(registered) : MakeFrom<T>(table, name, params);
}

#define PITH_IGNORE(name, function, paper)
constexpr Factory<Scorer> kScorers[] = {
#define PITH_SCORER(name, function, paper) {name, function},
#define PITH_AGGREGATOR PITH_IGNORE
#define PITH_MODIFIER PITH_IGNORE
#define PITH_ALLOCATOR PITH_IGNORE
#define PITH_ACTION PITH_IGNORE
#define PITH_PREFILL PITH_IGNORE
#define PITH_TURNS PITH_IGNORE
#include "policy/registry.inc"
#undef PITH_SCORER
#undef PITH_AGGREGATOR
};
constexpr Factory<Aggregator> kAggregators[] = {
#define PITH_SCORER PITH_IGNORE
#define PITH_AGGREGATOR(name, function, paper) {name, function},
#include "policy/registry.inc"
#undef PITH_AGGREGATOR
#undef PITH_MODIFIER
};
constexpr Factory<Modifier> kModifiers[] = {
#define PITH_AGGREGATOR PITH_IGNORE
#define PITH_MODIFIER(name, function, paper) {name, function},
#include "policy/registry.inc"
#undef PITH_MODIFIER
#undef PITH_ALLOCATOR
};
constexpr Factory<Allocator> kAllocators[] = {
#define PITH_MODIFIER PITH_IGNORE
#define PITH_ALLOCATOR(name, function, paper) {name, function},
#include "policy/registry.inc"
#undef PITH_ALLOCATOR
#undef PITH_PREFILL
};
constexpr Factory<Action> kActions[] = {
#define PITH_ALLOCATOR PITH_IGNORE
#define PITH_PREFILL PITH_IGNORE
#undef PITH_ACTION
#define PITH_ACTION(name, function, paper) {name, function},
#include "policy/registry.inc"
#undef PITH_ACTION
#undef PITH_PREFILL
};
constexpr Factory<CritiOptions> kPrefills[] = {
#define PITH_ACTION PITH_IGNORE
#define PITH_PREFILL(name, function, paper) {name, function},
#include "policy/registry.inc"
#undef PITH_PREFILL
#undef PITH_TURNS
};
constexpr Factory<TurnOptions> kTurnRules[] = {
#define PITH_PREFILL PITH_IGNORE
#define PITH_TURNS(name, function, paper) {name, function},
#include "policy/registry.inc"
};
#undef PITH_SCORER
#undef PITH_AGGREGATOR
#undef PITH_MODIFIER
#undef PITH_ALLOCATOR
#undef PITH_ACTION
#undef PITH_PREFILL
#undef PITH_TURNS
#undef PITH_IGNORE

constexpr NamedRecipe kRecipes[] = {
#define PITH_RECIPE(name, stages, paper, summary, cost, when, good_for) \
  {name, stages, paper, summary, cost, when, good_for},
#include "policy/recipes.inc"
#undef PITH_RECIPE
};

}  // namespace

std::vector<const StageEntry*> Stages() {
  static const std::vector<StageEntry> table = MakeTable();
  std::vector<const StageEntry*> all;
  for (const StageEntry& entry : table) all.push_back(&entry);
  for (const RegisteredStage* stage : RegisteredStages()) all.push_back(&stage->entry);
  return all;
}

const StageEntry* FindStage(StageKind kind, std::string_view name) {
  for (const StageEntry* entry : Stages()) {
    if (entry->kind == kind && entry->name == name) return entry;
  }
  return nullptr;
}

std::vector<std::string_view> StageNames(StageKind kind) {
  std::vector<std::string_view> names;
  for (const StageEntry* entry : Stages()) {
    if (entry->kind == kind) names.push_back(entry->name);
  }
  return names;
}

std::unique_ptr<Scorer> MakeScorer(std::string_view name, const Params& params) {
  return MakeAny<Scorer>(kScorers, name, params);
}
std::unique_ptr<Aggregator> MakeAggregator(std::string_view name, const Params& params) {
  return MakeAny<Aggregator>(kAggregators, name, params);
}
std::unique_ptr<Modifier> MakeModifier(std::string_view name, const Params& params) {
  return MakeAny<Modifier>(kModifiers, name, params);
}
std::unique_ptr<Allocator> MakeAllocator(std::string_view name, const Params& params) {
  return MakeAny<Allocator>(kAllocators, name, params);
}

std::unique_ptr<Action> MakeAction(std::string_view name, const Params& params) {
  return MakeFrom<Action>(kActions, name, params);
}
CritiOptions MakePrefill(std::string_view name, const Params& params) {
  return *MakeFrom<CritiOptions>(kPrefills, name, params);
}
TurnOptions MakeTurns(std::string_view name, const Params& params) {
  return *MakeFrom<TurnOptions>(kTurnRules, name, params);
}

std::span<const NamedRecipe> NamedRecipes() { return kRecipes; }

}  // namespace pith
