// Recipe text to a policy.
//
//   recipe = one [space "or" space one]
//   one    = word { space word }
//   word   = name [":" params] | key "=" name [":" params] | "sinks=" number
//          | "format=" (format ["/" format] | "comp" [":" params] | "auto" [":" share])
//   key    = score | agg | mod | alloc | act | prefill | turns
//   params = [text ","] name "=" value { "," name "=" value }   text: see TextParam()
//
// A name stands first and fills in its stages; a stage given beside it takes the place of the one of
// its kind, except that modifiers add up (mod=none removes them). A recipe's parameter goes to every
// stage of the recipe that declares it. A named recipe may be two of its own; what is given beside it goes to both.
// Any bytes may come in.
#include <fmt/format.h>

#include <algorithm>
#include <optional>

#include "base/parse_number.h"
#include "policy/act/demote.h"
#include "policy/composed.h"
#include "policy/policy.h"
#include "policy/registry.h"
#include "policy/storage.h"
#include "policy/words.h"

namespace pith {
namespace {

constexpr size_t kLongestText = 4096;
constexpr std::string_view kSpaces = " \t\r\n";
constexpr int kMostSinks = 4096;
constexpr std::string_view kOr = " or ";

struct Setting {
  std::string_view name;
  std::string_view value;
};

struct ChosenStage {
  const StageEntry* entry = nullptr;
  Params params;
  std::vector<std::string_view> set;  // parameters that the user gave, in order
  bool spelled = false;               // by a word of its own, not through the recipe's name

  std::string Text() const {
    std::string text = fmt::format("{}={}", KeyOf(entry->kind), entry->name);
    for (size_t i = 0; i < set.size(); ++i) {
      text += fmt::format("{}{}={}", i == 0 ? ":" : ",", set[i], params.Text(set[i]));
    }
    return text;
  }
};

struct Draft {
  int alternative = 0;                  // of a named recipe that is two
  const NamedRecipe* named = nullptr;
  std::vector<std::string_view> other;  // parameters that the other alternative has
  std::vector<std::pair<std::string, std::string>> named_set;  // recipe parameters, last value
  std::vector<ChosenStage> stages;                             // one of each kind, any number of mods
  bool modifiers_cleared = false;
  std::optional<int> sinks;
  std::optional<Storage> format;
  std::optional<Storage> named_format;  // the named recipe's own

  ChosenStage* Find(StageKind kind) {
    for (ChosenStage& stage : stages) {
      if (stage.entry->kind == kind) return &stage;
    }
    return nullptr;
  }
};

std::vector<std::string_view> RecipeNames() {
  std::vector<std::string_view> names;
  for (const NamedRecipe& recipe : NamedRecipes()) names.push_back(recipe.name);
  return names;
}

void AddOnce(std::vector<std::string_view>& names, std::string_view name) {
  if (std::find(names.begin(), names.end(), name) == names.end()) names.push_back(name);
}

std::string DidYouMean(std::string_view word, const std::vector<std::string_view>& choices) {
  return choices.empty() ? "it has none" : fmt::format("did you mean '{}'?", Nearest(word, choices));
}

// text_name: the parameter that a first part without a name is for, or empty.
Result<std::vector<Setting>> ParseSettings(std::string_view owner, std::string_view text, std::string_view text_name) {
  std::vector<Setting> settings;
  for (std::string_view part : SplitWords(text, ',')) {
    const size_t equals = part.find('=');
    if (equals == std::string_view::npos && settings.empty() && !text_name.empty() && !part.empty()) {
      settings.push_back({text_name, part});
      continue;
    }
    if (equals == std::string_view::npos || equals == 0) {
      return InvalidArgument(
          fmt::format("'{}' after '{}:' is not of the form name=value", Printable(part), Printable(owner)));
    }
    settings.push_back({part.substr(0, equals), part.substr(equals + 1)});
  }
  return settings;
}

Result<int> ParseSinks(std::string_view text) {
  const std::optional<int> value = ParseNumber<int>(text);
  if (!value || *value < 0 || *value > kMostSinks) {
    return InvalidArgument(
        fmt::format("sinks must be a whole number between 0 and {}, not '{}'", kMostSinks, Printable(text)));
  }
  return *value;
}

// "name" or "name:params" of one stage kind.
Result<ChosenStage> ParseStage(StageKind kind, std::string_view text) {
  const size_t colon = text.find(':');
  const std::string_view name = text.substr(0, colon);
  ChosenStage stage;
  stage.entry = FindStage(kind, name);
  if (stage.entry == nullptr) {
    return MakeError(ErrorCode::kNotFound, fmt::format("there is no {}={}; {}", KeyOf(kind), Printable(name),
                                                       DidYouMean(name, StageNames(kind))));
  }
  stage.params = Params(stage.entry->params);
  if (colon == std::string_view::npos) return stage;
  const std::vector<ParamSpec>& specs = stage.entry->params;
  const bool takes_text = !specs.empty() && specs.front().kind == ParamSpec::Kind::kText;
  PITH_ASSIGN_OR_RETURN(
      const std::vector<Setting> settings,
      ParseSettings(name, text.substr(colon + 1), takes_text ? specs.front().name : std::string_view()));
  for (const Setting& setting : settings) {
    if (!stage.params.Has(setting.name)) {
      std::vector<std::string_view> names;
      for (const ParamSpec& spec : stage.entry->params) names.push_back(spec.name);
      return InvalidArgument(fmt::format("{}={} has no parameter '{}'; {}", KeyOf(kind), name, Printable(setting.name),
                                         DidYouMean(setting.name, names)));
    }
    PITH_RETURN_IF_ERROR(stage.params.Set(name, setting.name, setting.value));
    AddOnce(stage.set, setting.name);
  }
  return stage;
}

Status AddStage(std::string_view key, std::string_view text, Draft& draft, bool spelled) {
  const auto it = std::find(kStageKeys.begin(), kStageKeys.end(), key);
  if (it == kStageKeys.end()) {
    std::vector<std::string_view> keys(kStageKeys.begin(), kStageKeys.end());
    keys.push_back("sinks");
    keys.push_back("format");
    return MakeError(ErrorCode::kNotFound,
                     fmt::format("there is no stage '{}'; did you mean '{}'?", Printable(key), Nearest(key, keys)));
  }
  const auto kind = static_cast<StageKind>(it - kStageKeys.begin());
  if (kind == StageKind::kModify && text == "none") {
    std::erase_if(draft.stages, [](const ChosenStage& s) { return s.entry->kind == StageKind::kModify; });
    draft.modifiers_cleared = true;
    return {};
  }
  PITH_ASSIGN_OR_RETURN(ChosenStage stage, ParseStage(kind, text));
  stage.spelled = spelled;
  ChosenStage* there = kind == StageKind::kModify ? nullptr : draft.Find(kind);
  if (there != nullptr && there->spelled) {
    return InvalidArgument(fmt::format("{}={} and {}={} exclude one another; name one of them", key, there->entry->name,
                                       key, stage.entry->name));
  }
  if (there != nullptr) {
    *there = std::move(stage);
  } else {
    draft.stages.push_back(std::move(stage));
  }
  return {};
}

Status SetNamed(std::string_view name, const Setting& setting, Draft& draft) {
  if (setting.name == "format") {
    PITH_ASSIGN_OR_RETURN(draft.format, ParseStorage(setting.value));
    return {};
  }
  bool known = setting.name == "sinks";
  std::string shown(setting.value);
  if (known) {
    PITH_ASSIGN_OR_RETURN(draft.sinks, ParseSinks(setting.value));
    return {};
  }
  std::vector<std::string_view> names;
  for (ChosenStage& stage : draft.stages) {
    for (const ParamSpec& spec : stage.entry->params) AddOnce(names, spec.name);
    if (!stage.params.Has(setting.name)) continue;
    PITH_RETURN_IF_ERROR(stage.params.Set(name, setting.name, setting.value));
    shown = stage.params.Text(setting.name);
    known = true;
  }
  if (!known && std::find(draft.other.begin(), draft.other.end(), setting.name) == draft.other.end()) {
    names.insert(names.end(), draft.other.begin(), draft.other.end());
    AddOnce(names, "sinks");
    AddOnce(names, "format");
    return InvalidArgument(
        fmt::format("'{}' has no parameter '{}'; {}", name, Printable(setting.name), DidYouMean(setting.name, names)));
  }
  for (auto& [key, value] : draft.named_set) {
    if (key == setting.name) {
      value = shown;
      return {};
    }
  }
  draft.named_set.emplace_back(std::string(setting.name), shown);
  return {};
}

// The words of one alternative of a named recipe.
std::vector<std::string_view> StagesOf(const NamedRecipe& named, int alternative) {
  const size_t either = named.stages.find(kOr);
  if (either == std::string_view::npos) return SplitWords(named.stages, ' ');
  return SplitWords(alternative == 0 ? named.stages.substr(0, either) : named.stages.substr(either + kOr.size()), ' ');
}
bool HasAlternative(const NamedRecipe* named) {
  return named != nullptr && named->stages.find(kOr) != std::string_view::npos;
}

Status AddNamed(std::string_view word, Draft& draft) {
  const size_t colon = word.find(':');
  // Papers write ada-criticalkv, code ada_criticalkv: both are taken.
  std::string name(word.substr(0, colon));
  std::replace(name.begin(), name.end(), '-', '_');
  const std::span<const NamedRecipe> recipes = NamedRecipes();
  const auto it = std::find_if(recipes.begin(), recipes.end(), [&](const NamedRecipe& r) { return r.name == name; });
  if (it == recipes.end()) {
    return MakeError(ErrorCode::kNotFound,
                     fmt::format("there is no recipe '{}'; {}", Printable(name), DidYouMean(name, RecipeNames())));
  }
  if (draft.named != nullptr || !draft.stages.empty()) {
    return InvalidArgument(fmt::format("the recipe '{}' must come first, alone or with stages after it", name));
  }
  draft.named = &*it;
  if (HasAlternative(draft.named)) {
    for (std::string_view stage : StagesOf(*draft.named, 1 - draft.alternative)) {
      const size_t equals = stage.find('=');
      const auto kind = std::find(kStageKeys.begin(), kStageKeys.end(), stage.substr(0, equals));
      if (kind == kStageKeys.end()) continue;
      PITH_ASSIGN_OR_RETURN(const ChosenStage chosen,
                            ParseStage(static_cast<StageKind>(kind - kStageKeys.begin()), stage.substr(equals + 1)));
      for (const ParamSpec& spec : chosen.entry->params) AddOnce(draft.other, spec.name);
    }
  }
  for (std::string_view stage : StagesOf(*draft.named, draft.alternative)) {
    const size_t equals = stage.find('=');
    if (stage.substr(0, equals) == "format") {
      PITH_ASSIGN_OR_RETURN(draft.named_format, ParseStorage(stage.substr(equals + 1)));
      draft.format = draft.named_format;
      continue;
    }
    PITH_RETURN_IF_ERROR(AddStage(stage.substr(0, equals), stage.substr(equals + 1), draft, false));
  }
  for (ChosenStage& stage : draft.stages) stage.set.clear();
  if (colon == std::string_view::npos) return {};
  PITH_ASSIGN_OR_RETURN(const std::vector<Setting> settings, ParseSettings(name, word.substr(colon + 1), {}));
  for (const Setting& setting : settings) PITH_RETURN_IF_ERROR(SetNamed(name, setting, draft));
  return {};
}

Status AddWord(std::string_view word, Draft& draft) {
  const size_t mark = word.find_first_of("=:");
  if (mark == std::string_view::npos || word[mark] == ':') return AddNamed(word, draft);
  const std::string_view key = word.substr(0, mark);
  const std::string_view rest = word.substr(mark + 1);
  if (key == "sinks") {
    PITH_ASSIGN_OR_RETURN(draft.sinks, ParseSinks(rest));
    return {};
  }
  if (key == "format") {
    PITH_ASSIGN_OR_RETURN(draft.format, ParseStorage(rest));
    return {};
  }
  return AddStage(key, rest, draft, true);
}

std::vector<std::string_view> WordsOf(std::string_view text) {
  std::vector<std::string_view> words;
  for (size_t at = text.find_first_not_of(kSpaces); at != std::string_view::npos;) {
    const size_t end = std::min(text.find_first_of(kSpaces, at), text.size());
    words.push_back(text.substr(at, end - at));
    at = text.find_first_not_of(kSpaces, end);
  }
  return words;
}

Result<Draft> ParseDraft(std::string_view text, int alternative) {
  if (text.size() > kLongestText) {
    return InvalidArgument(
        fmt::format("a recipe has at most {} characters, this one has {}", kLongestText, text.size()));
  }
  Draft draft;
  draft.alternative = alternative;
  for (const std::string_view word : WordsOf(text)) PITH_RETURN_IF_ERROR(AddWord(word, draft));
  if (draft.stages.empty()) {
    return InvalidArgument("the recipe is empty; name one, such as 'snapkv'");
  }
  if (draft.Find(StageKind::kScore) == nullptr) {
    return InvalidArgument("the recipe has no score stage; add one, such as 'score=snapkv'");
  }
  return draft;
}

// Sinks given apart and the stages' own parameters of that name are one thing.
int SettleSinks(Draft& draft) {
  for (ChosenStage& stage : draft.stages) {
    if (!draft.sinks || !stage.params.Has("sinks")) continue;
    (void)stage.params.Set(stage.entry->name, "sinks", fmt::format("{}", *draft.sinks));
  }
  ChosenStage& scorer = *draft.Find(StageKind::kScore);
  // -1: neither the user nor the scorer says; the engine decides.
  int own = scorer.entry->num_sinks > 0 ? scorer.entry->num_sinks : -1;
  const ChosenStage* act = draft.Find(StageKind::kAct);
  if (own < 0 && act != nullptr && act->entry->num_sinks > 0) own = act->entry->num_sinks;
  if (!scorer.params.Has("sinks")) return draft.sinks.value_or(own);
  return scorer.params.Int("sinks");
}

std::string Normalised(const Draft& draft) {
  std::string text;
  const auto add = [&](const std::string& word) {
    if (!text.empty()) text += ' ';
    text += word;
  };
  if (draft.named != nullptr) {
    std::string word(draft.named->name);
    for (size_t i = 0; i < draft.named_set.size(); ++i) {
      word += fmt::format("{}{}={}", i == 0 ? ":" : ",", draft.named_set[i].first, draft.named_set[i].second);
    }
    add(word);
  }
  if (draft.modifiers_cleared) add("mod=none");
  for (const ChosenStage& stage : draft.stages) {
    if (stage.spelled) add(stage.Text());
  }
  if (draft.sinks) add(fmt::format("sinks={}", *draft.sinks));
  if (draft.format && draft.format != draft.named_format) add("format=" + draft.format->Name());
  return text;
}

Result<PolicyParts> Build(Draft& draft) {
  for (const ChosenStage& stage : draft.stages) {
    if (stage.entry->check != nullptr) PITH_RETURN_IF_ERROR(stage.entry->check(stage.params));
  }
  PolicyParts parts;
  const ChosenStage& score = *draft.Find(StageKind::kScore);
  parts.scorer = MakeScorer(score.entry->name, score.params);
  const ChosenStage* aggregate = draft.Find(StageKind::kAggregate);
  if (aggregate != nullptr && !parts.scorer->aggregates()) {
    return InvalidArgument(
        fmt::format("score={} does not read a window of attention, so there is nothing for agg={} to aggregate",
                    score.entry->name, aggregate->entry->name));
  }
  parts.aggregator = aggregate == nullptr ? MakeAggregator("mean", Params())
                                          : MakeAggregator(aggregate->entry->name, aggregate->params);
  const ChosenStage* allocate = draft.Find(StageKind::kAllocate);
  const ChosenStage* act = draft.Find(StageKind::kAct);
  parts.action = act == nullptr ? MakeAction("drop", Params()) : MakeAction(act->entry->name, act->params);
  parts.allocator =
      allocate == nullptr ? MakeAllocator("uniform", Params()) : MakeAllocator(allocate->entry->name, allocate->params);
  for (const ChosenStage& stage : draft.stages) {
    if (stage.entry->kind != StageKind::kModify) continue;
    parts.modifiers.push_back(MakeModifier(stage.entry->name, stage.params));
    if (parts.modifiers.back()->reranks_inputs() && !parts.allocator->layer_local()) {
      return InvalidArgument(
          fmt::format("mod={} needs the keys when budgets are known, but alloc={} knows them only after all layers; "
                      "use alloc=uniform or alloc=ada",
                      stage.entry->name, allocate->entry->name));
    }
  }
  return parts;
}

std::string NeedsText(const Policy& policy) {
  const uint32_t bits = policy.needs();
  std::vector<std::string> parts;
  if (policy.window() > 0 && (bits & kNeedWindowProbs) != 0) {
    parts.push_back(policy.window() == 1 ? "attention of the last query"
                                         : fmt::format("attention of the last {} queries", policy.window()));
  }
  if ((bits & kNeedWindowQueries) != 0) parts.push_back(fmt::format("the last {} queries", policy.window()));
  if ((bits & kNeedQueryMoments) != 0) parts.push_back("mean and covariance of all queries before RoPE");
  if ((bits & kNeedEveryQuery) != 0) parts.push_back("attention of every query");
  if (const RepeatOptions* repeat = policy.repeat(); repeat != nullptr) {
    parts.push_back(fmt::format("the prompt whole and read once more, {} tokens at a time", repeat->chunk));
  }
  if ((bits & kNeedKeys) != 0) parts.push_back("keys");
  if ((bits & kNeedValues) != 0) parts.push_back("values");
  if ((bits & kNeedValueNorms) != 0) parts.push_back("output projection");
  if (parts.empty()) return "nothing";
  std::string text;
  for (const std::string& part : parts) text += (text.empty() ? "" : ", ") + part;
  return text;
}

// Declared parameters of all stages, with the recipe's values as defaults.
std::string ParametersOf(const Draft& draft) {
  std::vector<ParamSpec> specs;
  for (const ChosenStage& stage : draft.stages) {
    for (ParamSpec spec : stage.entry->params) {
      if (spec.kind != ParamSpec::Kind::kText) spec.initial = stage.params.Real(spec.name);
      const bool there =
          std::any_of(specs.begin(), specs.end(), [&](const ParamSpec& s) { return s.name == spec.name; });
      if (!there) specs.push_back(spec);
    }
  }
  return DescribeParams(specs);
}

// Both go by the text of the two.
void SetWhilePartial(Recipe partial, Recipe& recipe) {
  partial.text = recipe.text;
  recipe.while_partial = std::make_shared<const Recipe>(std::move(partial));
}

// What an action knows of a whole text does not go with turns, of its own alternative or of the other.
Status CheckTurns(const Policy& policy) {
  if (const DemoteOptions* demote = policy.demote(); demote != nullptr && demote->makes_latents()) {
    return InvalidArgument("act=delta refers to entries of the whole text, so that it can't work turn by turn");
  }
  if (policy.prune() != nullptr) {
    return InvalidArgument("act=prune chooses the channels of a whole prompt, so that it can't work turn by turn");
  }
  if (policy.less() != nullptr) {
    return InvalidArgument("act=less knows one state for all that is gone, so that it can't work turn by turn");
  }
  return {};
}

Result<Recipe> ParseAlternative(std::string_view text, int alternative) {
  PITH_ASSIGN_OR_RETURN(Draft draft, ParseDraft(text, alternative));
  Recipe recipe;
  recipe.text = Normalised(draft);
  recipe.num_sinks = SettleSinks(draft);
  if (const ChosenStage* prefill = draft.Find(StageKind::kPrefill); prefill != nullptr) {
    recipe.prefill = MakePrefill(prefill->entry->name, prefill->params);
    PITH_RETURN_IF_ERROR(CheckCritiOptions(*recipe.prefill));
  }
  if (const ChosenStage* turns = draft.Find(StageKind::kTurns); turns != nullptr) {
    recipe.turns = MakeTurns(turns->entry->name, turns->params);
  }
  if (draft.format && draft.format->least > 0) {
    recipe.auto_format = draft.format->least;
  } else if (draft.format) {
    recipe.format = draft.format->fixed;
  }
  PITH_ASSIGN_OR_RETURN(PolicyParts parts, Build(draft));
  if (parts.action->demote() != nullptr && draft.format) {
    return InvalidArgument(fmt::format("act={} says itself in which formats entries are stored: leave format= out",
                                       parts.action->demote()->makes_latents() ? "delta" : "demote"));
  }
  if (parts.action->prune() != nullptr && recipe.format && recipe.format->coded()) {
    return InvalidArgument(
        "act=prune takes channels out of pages, which those of format=comp are too tightly packed for");
  }
  recipe.policy = std::make_shared<const ComposedPolicy>(std::move(parts));
  if (recipe.turns) PITH_RETURN_IF_ERROR(CheckTurns(*recipe.policy));
  if (alternative == 0 && HasAlternative(draft.named)) {
    PITH_ASSIGN_OR_RETURN(Recipe partial, ParseAlternative(text, 1));
    SetWhilePartial(std::move(partial), recipe);
  }
  return recipe;
}

// Where a word "or" begins.
size_t FindOr(std::string_view text) {
  for (const std::string_view word : WordsOf(text)) {
    if (word == "or") return static_cast<size_t>(word.data() - text.data());
  }
  return std::string_view::npos;
}

}  // namespace

Result<Recipe> ParseRecipe(std::string_view text) {
  const size_t either = FindOr(text);
  if (either == std::string_view::npos) return ParseAlternative(text, 0);
  const std::string_view second = text.substr(either + 2);
  if (FindOr(second) != std::string_view::npos) return InvalidArgument("a recipe has one 'or' at most");
  PITH_ASSIGN_OR_RETURN(Recipe recipe, ParseAlternative(text.substr(0, either), 0));
  PITH_ASSIGN_OR_RETURN(Recipe partial, ParseAlternative(second, 1));
  if (!recipe.policy->needs_whole_prompt()) {
    return InvalidArgument(fmt::format("'{}' works wherever '{}' does, so that 'or' has no meaning: choose one of them",
                                       recipe.text, partial.text));
  }
  if (partial.policy->needs_whole_prompt()) {
    return InvalidArgument(fmt::format("'{}' needs the whole prompt, too, so that it can't take the place of '{}'",
                                       partial.text, recipe.text));
  }
  recipe.text += fmt::format("{}{}", kOr, partial.text);
  if (partial.turns) PITH_RETURN_IF_ERROR(CheckTurns(*recipe.policy));
  if (!recipe.turns) recipe.turns = partial.turns;
  SetWhilePartial(std::move(partial), recipe);
  return recipe;
}

std::vector<RecipeInfo> ListRecipes() {
  std::vector<RecipeInfo> list;
  for (const NamedRecipe& named : NamedRecipes()) {
    Result<Draft> draft = ParseDraft(named.name, 0);
    const Result<Recipe> recipe = ParseRecipe(named.name);
    if (!draft || !recipe) continue;  // a test parses every name
    const Result<Draft> other = ParseDraft(named.name, 1);
    RecipeInfo info;
    info.name = named.name;
    info.paper = named.paper;
    info.summary = named.summary;
    info.stages = std::string(named.stages);
    if (!recipe->while_partial && draft->Find(StageKind::kAllocate) == nullptr) info.stages += " alloc=uniform";
    if (!recipe->while_partial && draft->Find(StageKind::kAct) == nullptr) info.stages += " act=drop";
    info.needs = NeedsText(*recipe->policy);
    if (recipe->while_partial) info.needs += fmt::format("; or {}", NeedsText(*recipe->while_partial->policy));
    info.cost = named.cost;
    info.when = named.when;
    info.good_for = named.good_for;
    info.parameters = ParametersOf(*draft);
    if (recipe->while_partial && other) info.parameters += fmt::format("; {}", ParametersOf(*other));
    list.push_back(std::move(info));
  }
  return list;
}

std::vector<StageListing> ListStages() {
  std::vector<StageListing> list;
  for (const StageEntry* entry : Stages()) {
    list.push_back({std::string(KeyOf(entry->kind)), std::string(entry->name), std::string(entry->paper),
                    std::string(entry->summary), DescribeParams(entry->params)});
  }
  return list;
}

}  // namespace pith
