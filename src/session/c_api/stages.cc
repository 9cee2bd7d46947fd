// Aggregators, modifiers and allocators that programs bring along.
#include <fmt/format.h>

#include <cmath>
#include <memory>
#include <utility>

#include "policy/registry.h"
#include "policy/select.h"
#include "session/c_api/stage_view.h"
#include "session/c_api/support.h"

namespace pith::c_api {
namespace {

constexpr int kMostNotes = 4096;

Status Failed(const OutsideStage& stage, int layer) {
  return InvalidArgument(fmt::format("{} failed in layer {}", stage.word, layer));
}

template <typename T>
std::vector<T*> PointersTo(std::vector<std::vector<T>>& rows) {
  std::vector<T*> pointers;
  for (std::vector<T>& row : rows) pointers.push_back(row.data());
  return pointers;
}

// The window of a stage that has none of its own is the scorer's.
class OwnWindow {
 public:
  OwnWindow(const OutsideStage& stage, const Params& params)
      : looks_((stage.needs & kWindowNeeds) != 0), rows_(stage.window > 0 ? params.Int("window") : 0) {}
  void Adopt(int window) {
    if (looks_ && rows_ == 0) rows_ = window;
  }
  int rows() const { return rows_; }

 private:
  bool looks_;
  int rows_;
};

// ---- Aggregators ----

struct OutsideAggregator : OutsideStage {
  pith_aggregate_fn aggregate = nullptr;
  bool pools = false;
};

class CalledAggregator final : public Aggregator {
 public:
  CalledAggregator(std::shared_ptr<const OutsideAggregator> outside, const Params& params)
      : outside_(std::move(outside)), params_(outside_->Values(params)) {}

  void Aggregate(const WindowProbs& probs, const Pooling& pooling, std::span<float> out) const override {
    (void)TryAggregate(probs, pooling, out);
  }

  Status TryAggregate(const WindowProbs& probs, const Pooling& pooling, std::span<float> out) const override {
    const pith_window_rows rows = {
        .struct_size = sizeof(pith_window_rows),
        .group = probs.group(),
        .num_rows = probs.rows(),
        .num_entries = static_cast<int32_t>(out.size()),
        .pool_width = pooling.width,
        .pool_largest = pooling.max,
        .probabilities = probs.rows() > 0 ? probs.row(0, 0) : nullptr,
        .group_stride = probs.group() > 1 ? static_cast<size_t>(probs.row(1, 0) - probs.row(0, 0)) : 0,
        .row_stride = probs.row_stride(),
        .params = params_.data()};
    std::vector<float> numbers(out.size(), 0.0F);
    if (!outside_->aggregate(outside_->user, &rows, numbers.data())) {
      return InvalidArgument(fmt::format("{} failed", outside_->word));
    }
    for (size_t i = 0; i < numbers.size(); ++i) {
      if (!std::isfinite(numbers[i])) {
        return InvalidArgument(
            fmt::format("{} made {} of what entry {} got, which is no number", outside_->word, numbers[i], i));
      }
    }
    if (outside_->pools || pooling.width <= 1) {
      std::copy(numbers.begin(), numbers.end(), out.begin());
    } else {
      Pool(numbers, pooling, out);
    }
    return {};
  }

 private:
  std::shared_ptr<const OutsideAggregator> outside_;
  std::vector<double> params_;
};

Status Register(const char* name, pith_aggregate_fn aggregate, void* user, const pith_aggregator_options* given) {
  PITH_RETURN_IF_ERROR(Require(name, "name of the aggregator"));
  if (aggregate == nullptr) return InvalidArgument("there is no function that aggregates");
  PITH_ASSIGN_OR_RETURN(const pith_aggregator_options options, Read(given, "options of the aggregator"));
  auto stage = std::make_shared<OutsideAggregator>();
  stage->word = fmt::format("agg={}", name);
  stage->user = user;
  stage->aggregate = aggregate;
  stage->pools = options.pools;
  PITH_ASSIGN_OR_RETURN(std::vector<ParamSpec> params, ReadParams(options.params, options.num_params, *stage));
  return RegisterAggregator({.name = name,
                             .paper = Text(options.paper),
                             .summary = Text(options.summary),
                             .params = std::move(params),
                             .make = [stage](const Params& values) -> std::unique_ptr<Aggregator> {
                               return std::make_unique<CalledAggregator>(stage, values);
                             }});
}

// ---- Modifiers ----

struct OutsideModifier : OutsideStage {
  pith_modify_fn modify = nullptr;
  pith_rerank_fn rerank = nullptr;
  bool remembers = false;
};

class CalledModifier final : public Modifier {
 public:
  CalledModifier(std::shared_ptr<const OutsideModifier> outside, const Params& params)
      : outside_(std::move(outside)), params_(outside_->Values(params)), window_(*outside_, params) {}

  uint32_t needs() const override { return outside_->needs; }
  int window() const override { return window_.rows(); }
  void AdoptWindow(int window) override { window_.Adopt(window); }

  void Adjust(const LayerInputs& inputs, LayerScores& scores) const override {
    if (outside_->modify == nullptr) return;
    const std::vector<float*> out = PointersTo(scores.heads);
    std::vector<float*> kept;
    if (outside_->remembers) {
      StageNotes& notes = scores.NotesOf(this);
      for (const std::vector<float>& head : scores.heads) notes.column.emplace_back(head.size(), 0.0F);
      kept = PointersTo(notes.column);
    }
    const LayerView view(inputs, params_, nullptr, outside_->remembers ? kept.data() : nullptr);
    if (!outside_->modify(outside_->user, view.get(), out.data())) {
      scores.fault = Failed(*outside_, inputs.layer).error().message;
    }
    for (size_t h = 0; h < scores.heads.size() && scores.fault.empty(); ++h) {
      const Status status = CheckScores(outside_->word, inputs.layer, static_cast<int>(h), scores.heads[h]);
      if (!status) scores.fault = status.error().message;
    }
  }

  void Rerank(HeadRank& rank) const override {
    if (outside_->rerank == nullptr) return;
    const auto head = static_cast<size_t>(rank.head);
    const std::vector<std::vector<float>>& remembered = rank.layer->NotesOf(this).column;
    const pith_head_ranking view = {.struct_size = sizeof(pith_head_ranking),
                                    .layer = rank.layer->layer,
                                    .num_layers = rank.layer->num_layers,
                                    .head = rank.head,
                                    .num_entries = static_cast<int32_t>(rank.scores.size()),
                                    .keep = rank.budget.keep,
                                    .floor = rank.budget.floor,
                                    .pinned = rank.pinned().empty() ? nullptr : rank.pinned().data(),
                                    .remembered = remembered.empty() ? nullptr : remembered[head].data(),
                                    .params = params_.data()};
    rank.status = outside_->rerank(outside_->user, &view, rank.scores.data())
                      ? CheckScores(outside_->word, rank.layer->layer, rank.head, rank.scores)
                      : Failed(*outside_, rank.layer->layer);
  }

 private:
  std::shared_ptr<const OutsideModifier> outside_;
  std::vector<double> params_;
  OwnWindow window_;
};

Status Register(const char* name, pith_modify_fn modify, void* user, const pith_modifier_options* given) {
  PITH_RETURN_IF_ERROR(Require(name, "name of the modifier"));
  PITH_ASSIGN_OR_RETURN(const pith_modifier_options options, Read(given, "options of the modifier"));
  if (modify == nullptr && options.rerank == nullptr) return InvalidArgument("there is no function that modifies");
  if (options.remembers && (modify == nullptr || options.rerank == nullptr)) {
    return InvalidArgument("a modifier that remembers has a modify() for a rerank()");
  }
  PITH_RETURN_IF_ERROR(CheckPlainNeeds(options.needs, options.window, "a modifier"));
  auto stage = std::make_shared<OutsideModifier>();
  stage->word = fmt::format("mod={}", name);
  stage->user = user;
  stage->needs = given == nullptr ? uint32_t{kNeedKeys | kNeedValues} : options.needs;
  if ((stage->needs & kWindowNeeds) != 0) stage->window = options.window;
  stage->modify = modify;
  stage->rerank = options.rerank;
  stage->remembers = options.remembers;
  PITH_ASSIGN_OR_RETURN(std::vector<ParamSpec> params, ReadParams(options.params, options.num_params, *stage));
  return RegisterModifier({.name = name,
                           .paper = Text(options.paper),
                           .summary = Text(options.summary),
                           .params = std::move(params),
                           .make = [stage](const Params& values) -> std::unique_ptr<Modifier> {
                             return std::make_unique<CalledModifier>(stage, values);
                           }});
}

// ---- Allocators ----

struct OutsideAllocator : OutsideStage {
  pith_allocate_fn allocate = nullptr;
  pith_prepare_fn prepare = nullptr;
  bool across_layers = false;
  int num_notes = 0;
};

// Scored layers as C sees them.
class DivisionView {
 public:
  // owner: of the notes, num_notes of each head.
  DivisionView(std::span<const LayerScores> layers, const Stage* owner, size_t num_notes) {
    for (const LayerScores& layer : layers) rows_.emplace_back().Point(layer, layer.NotesOf(owner).numbers, num_notes);
    for (const Rows& rows : rows_) {
      const LayerScores& own = *rows.layer;
      layers_.push_back({.struct_size = sizeof(pith_scored_layer),
                         .layer = own.layer,
                         .num_heads = static_cast<int32_t>(own.heads.size()),
                         .window = own.window,
                         .num_entries = rows.num_entries.data(),
                         .scores = rows.scores.data(),
                         .pinned = own.pinned.empty() ? nullptr : rows.pinned.data(),
                         .notes = rows.notes.empty() ? nullptr : rows.notes.data()});
    }
    for (const pith_scored_layer& layer : layers_) pointers_.push_back(&layer);
  }
  DivisionView(const DivisionView&) = delete;
  const pith_scored_layer* const* layers() const { return pointers_.data(); }

 private:
  struct Rows {
    const LayerScores* layer = nullptr;
    std::vector<int32_t> num_entries;
    std::vector<const float*> scores;
    std::vector<const uint8_t*> pinned;
    std::vector<const double*> notes;

    void Point(const LayerScores& of, const std::vector<double>& numbers, size_t num_notes) {
      layer = &of;
      for (const auto& head : of.heads) {
        num_entries.push_back(static_cast<int32_t>(head.size()));
        scores.push_back(head.data());
      }
      for (const auto& head : of.pinned) pinned.push_back(head.data());
      for (size_t at = 0; num_notes > 0 && at < numbers.size(); at += num_notes) notes.push_back(numbers.data() + at);
    }
  };
  std::vector<Rows> rows_;
  std::vector<pith_scored_layer> layers_;
  std::vector<const pith_scored_layer*> pointers_;
};

class CalledAllocator final : public Allocator {
 public:
  CalledAllocator(std::shared_ptr<const OutsideAllocator> outside, const Params& params)
      : outside_(std::move(outside)), params_(outside_->Values(params)), window_(*outside_, params) {}

  uint32_t needs() const override { return outside_->needs; }
  int window() const override { return window_.rows(); }
  void AdoptWindow(int window) override { window_.Adopt(window); }
  bool layer_local() const override { return !outside_->across_layers; }

  void Prepare(const LayerInputs& inputs, LayerScores& scores) const override {
    if (outside_->prepare == nullptr) return;
    const auto num_notes = static_cast<size_t>(outside_->num_notes);
    std::vector<double>& notes = scores.NotesOf(this).numbers;
    notes.assign(scores.heads.size() * num_notes, 0.0);
    std::vector<double*> out;
    for (size_t h = 0; h < scores.heads.size(); ++h) out.push_back(notes.data() + h * num_notes);
    const LayerView view(inputs, params_, nullptr);
    if (!outside_->prepare(outside_->user, view.get(), out.data())) {
      scores.fault = Failed(*outside_, inputs.layer).error().message;
      return;
    }
    for (size_t i = 0; i < notes.size(); ++i) {
      if (std::isfinite(notes[i])) continue;
      scores.fault = fmt::format("{} noted {} of head {} in layer {}, which is no number", outside_->word, notes[i],
                                 i / num_notes, inputs.layer);
      return;
    }
  }

  void Allocate(std::span<const LayerScores> layers, const Budget& budget, Allocation& out) const override {
    (void)TryAllocate(layers, budget, out);
  }

  Status TryAllocate(std::span<const LayerScores> layers, const Budget& budget, Allocation& out) const override {
    if (layers.empty()) return {};
    std::vector<std::vector<int32_t>> keep, floors;
    size_t num_heads = 0;
    for (const LayerScores& layer : layers) {
      keep.emplace_back(layer.heads.size(), 0);
      floors.emplace_back(layer.heads.size(), 0);
      num_heads += layer.heads.size();
    }
    const DivisionView view(layers, this, static_cast<size_t>(outside_->num_notes));
    const std::vector<int32_t*> keep_out = PointersTo(keep), floors_out = PointersTo(floors);
    const pith_division division = {.struct_size = sizeof(pith_division),
                                    .num_layers = static_cast<int32_t>(layers.size()),
                                    .keep = std::max(budget.keep, 0),
                                    .total = TotalEntries(budget, num_heads),
                                    .keep_fraction = budget.keep_fraction,
                                    .layers = view.layers(),
                                    .floors = floors_out.data(),
                                    .params = params_.data()};
    if (!outside_->allocate(outside_->user, &division, keep_out.data())) {
      return Failed(*outside_, layers.front().layer);
    }
    for (size_t l = 0; l < layers.size(); ++l) {
      for (size_t h = 0; h < keep[l].size(); ++h) {
        if (keep[l][h] < 0 || floors[l][h] < 0) {
          return InvalidArgument(fmt::format("{} gave head {} in layer {} {} entries", outside_->word, h,
                                             layers[l].layer, std::min(keep[l][h], floors[l][h])));
        }
        out[l][h] = {keep[l][h], floors[l][h]};
      }
    }
    return {};
  }

 private:
  std::shared_ptr<const OutsideAllocator> outside_;
  std::vector<double> params_;
  OwnWindow window_;
};

Status Register(const char* name, pith_allocate_fn allocate, void* user, const pith_allocator_options* given) {
  PITH_RETURN_IF_ERROR(Require(name, "name of the allocator"));
  if (allocate == nullptr) return InvalidArgument("there is no function that allocates");
  PITH_ASSIGN_OR_RETURN(const pith_allocator_options options, Read(given, "options of the allocator"));
  PITH_RETURN_IF_ERROR(CheckPlainNeeds(options.needs, options.window, "an allocator"));
  if ((options.prepare != nullptr) != (options.num_notes > 0) || options.num_notes < 0) {
    return InvalidArgument("prepare() and notes go together");
  }
  if (options.needs != 0 && options.prepare == nullptr) {
    return InvalidArgument("only prepare() of an allocator reads what it needs");
  }
  if (options.num_notes > kMostNotes) return InvalidArgument(fmt::format("there are at most {} notes", kMostNotes));
  auto stage = std::make_shared<OutsideAllocator>();
  stage->word = fmt::format("alloc={}", name);
  stage->user = user;
  stage->needs = options.needs;
  if ((stage->needs & kWindowNeeds) != 0) stage->window = options.window;
  stage->allocate = allocate;
  stage->prepare = options.prepare;
  stage->across_layers = options.across_layers;
  stage->num_notes = options.num_notes;
  PITH_ASSIGN_OR_RETURN(std::vector<ParamSpec> params, ReadParams(options.params, options.num_params, *stage));
  return RegisterAllocator({.name = name,
                            .paper = Text(options.paper),
                            .summary = Text(options.summary),
                            .params = std::move(params),
                            .make = [stage](const Params& values) -> std::unique_ptr<Allocator> {
                              return std::make_unique<CalledAllocator>(stage, values);
                            }});
}

}  // namespace
}  // namespace pith::c_api

using namespace pith;         // NOLINT: functions of C have no namespace of their own
using namespace pith::c_api;  // NOLINT

extern "C" {

pith_status pith_register_aggregator(const char* name, pith_aggregate_fn aggregate, void* user,
                                     const pith_aggregator_options* options) {
  return Guarded([&] { return Register(name, aggregate, user, options); });
}

pith_status pith_register_modifier(const char* name, pith_modify_fn modify, void* user,
                                   const pith_modifier_options* options) {
  return Guarded([&] { return Register(name, modify, user, options); });
}

pith_status pith_register_allocator(const char* name, pith_allocate_fn allocate, void* user,
                                    const pith_allocator_options* options) {
  return Guarded([&] { return Register(name, allocate, user, options); });
}

}  // extern "C"
