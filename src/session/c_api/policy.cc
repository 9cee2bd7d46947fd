// Recipes, and scorers that programs bring along.
#include <fmt/format.h>

#include <optional>
#include <utility>

#include "policy/registry.h"
#include "policy/score/observe.h"
#include "policy/select.h"
#include "session/c_api/stage_view.h"
#include "session/c_api/support.h"

namespace pith::c_api {
namespace {

constexpr size_t kMostColumns = 16;
constexpr int kMostSinks = 4096;
constexpr int kSmallestChunk = 64;
constexpr int kLargestChunk = 65536;
constexpr uint32_t kKnownNeeds = kPlainNeeds | kObserveNeeds | kStatisticNeeds;

static_assert(PITH_NEED_KEYS == uint32_t{kNeedKeys} && PITH_NEED_VALUES == uint32_t{kNeedValues});
static_assert(PITH_NEED_WINDOW_PROBS == uint32_t{kNeedWindowProbs});
static_assert(PITH_NEED_WINDOW_QUERIES == uint32_t{kNeedWindowQueries});
static_assert(PITH_NEED_EVERY_QUERY == uint32_t{kNeedEveryQuery} && PITH_NEED_VALUE_NORMS == uint32_t{kNeedValueNorms});
static_assert(PITH_NEED_REPEAT == uint32_t{kNeedRepeat} && PITH_NEED_QUERY_MOMENTS == uint32_t{kNeedQueryMoments});
static_assert(PITH_NEED_SQUARES == uint32_t{kNeedSquares} && PITH_NEED_LARGEST == uint32_t{kNeedLargest});

struct Column {
  std::string name;
  float initial = 0;
};

struct OutsideScorer : OutsideStage {
  pith_score_fn score = nullptr;
  pith_observe_fn observe = nullptr;
  bool aggregates = false;
  RepeatOptions repeat;  // with kNeedRepeat
  std::vector<Column> columns;
};

// One registered scorer within a recipe, with the recipe's parameters.
class CalledScorer final : public Scorer {
 public:
  CalledScorer(std::shared_ptr<const OutsideScorer> outside, const Params& params)
      : outside_(std::move(outside)), params_(outside_->Values(params)) {
    if (outside_->window > 0) window_ = params.Int("window");
  }

  // The second reading comes as probabilities, from which any statistics follow.
  uint32_t needs() const override { return repeat() == nullptr ? outside_->needs : outside_->needs & ~kStatisticNeeds; }
  const RepeatOptions* repeat() const override {
    return (outside_->needs & kNeedRepeat) != 0 ? &outside_->repeat : nullptr;
  }
  int window() const override { return window_; }
  bool aggregates() const override { return outside_->aggregates; }
  std::vector<ColumnSpec> columns() const override {
    std::vector<ColumnSpec> specs;
    for (const Column& column : outside_->columns) specs.push_back({column.name, column.initial});
    return specs;
  }

  void Observe(const Observation& seen, std::span<float* const> columns) const override {
    if (outside_->observe == nullptr) return;
    const ReceivedAttention sum(seen, Received::kSum);
    std::optional<ReceivedAttention> squares, largest;
    if ((outside_->needs & kNeedSquares) != 0) squares.emplace(seen, Received::kSquares);
    if ((outside_->needs & kNeedLargest) != 0) largest.emplace(seen, Received::kLargest);
    const pith_observation view = {.struct_size = sizeof(pith_observation),
                                   .layer = seen.layer,
                                   .kv_head = seen.kv_head,
                                   .num_queries = seen.num_queries,
                                   .num_entries = seen.num_entries,
                                   .positions = seen.positions.data(),
                                   .sum = sum.data(),
                                   .squares = squares ? squares->data() : nullptr,
                                   .largest = largest ? largest->data() : nullptr,
                                   .params = params_.data()};
    outside_->observe(outside_->user, &view, columns.data());
  }

  void Score(const LayerInputs& inputs, const Aggregator& aggregator, LayerScores& scores) const override {
    const Within within{&inputs, &aggregator, window_};
    const LayerView view(inputs, params_, &within);
    std::vector<float*> out;
    for (std::vector<float>& head : scores.heads) out.push_back(head.data());
    if (!outside_->score(outside_->user, view.get(), out.data())) {
      scores.fault = fmt::format("{} failed in layer {}", outside_->word, inputs.layer);
    }
    for (size_t h = 0; h < scores.heads.size() && scores.fault.empty(); ++h) {
      const Status status = CheckScores(outside_->word, inputs.layer, static_cast<int>(h), scores.heads[h]);
      if (!status) scores.fault = status.error().message;
    }
    if (window_ > 0) scores.window = std::min(window_, inputs.window);
  }

 private:
  std::shared_ptr<const OutsideScorer> outside_;
  std::vector<double> params_;
  int window_ = 0;
};

Status CheckNeeds(const OutsideScorer& scorer, const pith_scorer_options& options) {
  if ((scorer.needs & ~kKnownNeeds) != 0) return InvalidArgument("a scorer's needs are PITH_NEED_* bits");
  if ((scorer.needs & kObserveNeeds) == kObserveNeeds) {
    return InvalidArgument("PITH_NEED_EVERY_QUERY and PITH_NEED_REPEAT exclude one another");
  }
  const bool observes = (scorer.needs & kObserveNeeds) != 0;
  if ((scorer.needs & kStatisticNeeds) != 0 && !observes) {
    return InvalidArgument("PITH_NEED_SQUARES and PITH_NEED_LARGEST go with PITH_NEED_EVERY_QUERY or PITH_NEED_REPEAT");
  }
  if (observes != (options.observe != nullptr) || observes != (options.num_columns > 0)) {
    return InvalidArgument("observe() and columns go with PITH_NEED_EVERY_QUERY or PITH_NEED_REPEAT");
  }
  if (options.repeat_chunk != 0 && (options.repeat_chunk < kSmallestChunk || options.repeat_chunk > kLargestChunk)) {
    return InvalidArgument(
        fmt::format("a second reading repeats {} to {} tokens at a time", kSmallestChunk, kLargestChunk));
  }
  if (scorer.aggregates && (scorer.needs & kNeedWindowProbs) == 0) {
    return InvalidArgument("a scorer that aggregates needs PITH_NEED_WINDOW_PROBS");
  }
  if (options.window < 0 || options.window > kLargestWindow) {
    return InvalidArgument(fmt::format("a window has at most {} queries", kLargestWindow));
  }
  if (options.num_columns > kMostColumns)
    return InvalidArgument(fmt::format("there are at most {} columns", kMostColumns));
  if (options.num_sinks < 0 || options.num_sinks > kMostSinks) {
    return InvalidArgument(fmt::format("num_sinks is at most {}", kMostSinks));
  }
  return {};
}

Status Register(const char* name, pith_score_fn score, void* user, const pith_scorer_options* given) {
  PITH_RETURN_IF_ERROR(Require(name, "name of the scorer"));
  if (score == nullptr) return InvalidArgument("there is no function that scores");
  PITH_ASSIGN_OR_RETURN(const pith_scorer_options options, Read(given, "options of the scorer"));
  auto scorer = std::make_shared<OutsideScorer>();
  scorer->word = fmt::format("score={}", name);
  scorer->score = score;
  scorer->observe = options.observe;
  scorer->user = user;
  scorer->needs = given == nullptr ? uint32_t{kNeedKeys | kNeedValues} : options.needs;
  scorer->aggregates = options.aggregates;
  PITH_RETURN_IF_ERROR(CheckNeeds(*scorer, options));
  if ((scorer->needs & kWindowNeeds) != 0) scorer->window = options.window > 0 ? options.window : kDefaultWindow;
  if (options.repeat_chunk > 0) scorer->repeat.chunk = options.repeat_chunk;
  PITH_ASSIGN_OR_RETURN(const std::vector<pith_column> columns,
                        ReadAll(options.columns, options.num_columns, "columns"));
  for (const pith_column& column : columns) scorer->columns.push_back({Text(column.name), column.initial});
  PITH_ASSIGN_OR_RETURN(std::vector<ParamSpec> params, ReadParams(options.params, options.num_params, *scorer));
  return RegisterScorer({.name = name,
                         .paper = Text(options.paper),
                         .summary = Text(options.summary),
                         .params = std::move(params),
                         .num_sinks = options.num_sinks,
                         .make = [scorer](const Params& values) -> std::unique_ptr<Scorer> {
                           return std::make_unique<CalledScorer>(scorer, values);
                         }});
}

}  // namespace
}  // namespace pith::c_api

using namespace pith;         // NOLINT: functions of C have no namespace of their own
using namespace pith::c_api;  // NOLINT

extern "C" {

void pith_list_recipes(void (*visit)(void* user, const pith_recipe_info* recipe), void* user) {
  (void)Guarded([&]() -> Status {
    if (visit == nullptr) return InvalidArgument("there is no function that takes recipes");
    for (const RecipeInfo& own : ListRecipes()) {
      const pith_recipe_info info = {.struct_size = sizeof info,
                                     .name = own.name.c_str(),
                                     .paper = own.paper.c_str(),
                                     .summary = own.summary.c_str(),
                                     .stages = own.stages.c_str(),
                                     .needs = own.needs.c_str(),
                                     .cost = own.cost.c_str(),
                                     .when = own.when.c_str(),
                                     .good_for = own.good_for.c_str(),
                                     .parameters = own.parameters.c_str()};
      visit(user, &info);
    }
    return {};
  });
}

void pith_list_stages(void (*visit)(void* user, const pith_stage_info* stage), void* user) {
  (void)Guarded([&]() -> Status {
    if (visit == nullptr) return InvalidArgument("there is no function that takes stages");
    for (const StageListing& own : ListStages()) {
      const pith_stage_info info = {.struct_size = sizeof info,
                                    .kind = own.kind.c_str(),
                                    .name = own.name.c_str(),
                                    .paper = own.paper.c_str(),
                                    .summary = own.summary.c_str(),
                                    .parameters = own.parameters.c_str()};
      visit(user, &info);
    }
    return {};
  });
}

pith_status pith_recipe_normalise(const char* recipe, char* buffer, size_t capacity, size_t* length) {
  return Guarded([&]() -> Status {
    if (length != nullptr) *length = 0;
    PITH_RETURN_IF_ERROR(Require(recipe, "recipe"));
    PITH_ASSIGN_OR_RETURN(const Recipe own, ParseRecipe(recipe));
    const size_t needed = CopyText(own.text, buffer, capacity);
    if (length != nullptr) *length = needed;
    return {};
  });
}

pith_status pith_register_scorer(const char* name, pith_score_fn score, void* user,
                                 const pith_scorer_options* options) {
  return Guarded([&] { return Register(name, score, user, options); });
}

int32_t pith_window_attention(const pith_layer_input* layer, int32_t head, int32_t pool, float* scores) {
  if (layer == nullptr || layer->internal == nullptr || scores == nullptr) return 0;
  const auto& within = *static_cast<const Within*>(layer->internal);
  const LayerInputs& inputs = *within.inputs;
  if (head < 0 || static_cast<size_t>(head) >= inputs.heads.size() || within.window == 0) return 0;
  const HeadInputs& own = inputs.heads[static_cast<size_t>(head)];
  if (own.window_probs == nullptr) return 0;
  const std::span<float> all(scores, static_cast<size_t>(own.num_entries));
  const WindowProbs probs(inputs, own, within.window);
  const auto columns = static_cast<size_t>(probs.columns());
  (void)Guarded([&]() -> Status {
    if (probs.rows() > 0 && columns > 0) {
      within.aggregator->Aggregate(probs, Pooling{std::max(1, static_cast<int>(pool))}, all.first(columns));
    }
    return {};
  });
  ProtectNewest(all, static_cast<int>(all.size() - columns));
  return static_cast<int32_t>(columns);
}

}  // extern "C"
