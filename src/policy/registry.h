// Tables of stages and of named recipes.
#ifndef PITH_POLICY_REGISTRY_H_
#define PITH_POLICY_REGISTRY_H_

#include <array>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "policy/stage.h"

namespace pith {

enum class StageKind : uint8_t { kScore, kAggregate, kModify, kAllocate, kAct, kPrefill, kTurns };
inline constexpr std::array<std::string_view, 7> kStageKeys = {"score", "agg",     "mod",  "alloc",
                                                                "act",   "prefill", "turns"};
inline std::string_view KeyOf(StageKind kind) { return kStageKeys[static_cast<size_t>(kind)]; }

// What the parser needs of any stage.
struct StageEntry {
  StageKind kind;
  std::string_view name;
  std::string_view paper;
  std::string_view summary;
  std::vector<ParamSpec> params;
  int num_sinks = 0;
  Status (*check)(const Params&) = nullptr;
};

// All stages, in the order of registry.inc, then those that were registered since the process began.
std::vector<const StageEntry*> Stages();
// Null if there is none of that name.
const StageEntry* FindStage(StageKind kind, std::string_view name);
std::vector<std::string_view> StageNames(StageKind kind);

// The stage must exist.
std::unique_ptr<Scorer> MakeScorer(std::string_view name, const Params& params);
std::unique_ptr<Aggregator> MakeAggregator(std::string_view name, const Params& params);
std::unique_ptr<Modifier> MakeModifier(std::string_view name, const Params& params);
std::unique_ptr<Allocator> MakeAllocator(std::string_view name, const Params& params);
std::unique_ptr<Action> MakeAction(std::string_view name, const Params& params);
CritiOptions MakePrefill(std::string_view name, const Params& params);
TurnOptions MakeTurns(std::string_view name, const Params& params);

template <typename T>
using MakeStage = std::function<std::unique_ptr<T>(const Params&)>;

// A stage from outside the tree.
template <typename T>
struct StageRegistration {
  std::string name;               // small letters, digits and _
  std::string paper;
  std::string summary;
  std::vector<ParamSpec> params;  // their texts are copied
  int num_sinks = 0;              // of scorers
  MakeStage<T> make;
};
using ScorerRegistration = StageRegistration<Scorer>;
using AggregatorRegistration = StageRegistration<Aggregator>;
using ModifierRegistration = StageRegistration<Modifier>;
using AllocatorRegistration = StageRegistration<Allocator>;

// score=NAME (agg=, mod=, alloc=) is known from now on, until the process ends. kInvalidArgument: the name is taken or
// none, or so is a parameter's. From any thread.
Status RegisterScorer(ScorerRegistration registration);
Status RegisterAggregator(AggregatorRegistration registration);
Status RegisterModifier(ModifierRegistration registration);
Status RegisterAllocator(AllocatorRegistration registration);

struct NamedRecipe {
  std::string_view name;
  std::string_view stages;
  std::string_view paper;
  std::string_view summary;
  std::string_view cost;
  std::string_view when;
  std::string_view good_for;
};

std::span<const NamedRecipe> NamedRecipes();

}  // namespace pith

#endif  // PITH_POLICY_REGISTRY_H_
