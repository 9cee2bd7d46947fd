#include "policy/composed.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <mutex>
#include <utility>

#include "base/check.h"
#include "base/parallel.h"
#include "policy/act/residue.h"
#include "policy/page_division.h"
#include "policy/select.h"

namespace pith {
namespace {

constexpr int kDefaultWindow = 32;
// Where a smaller share stays, half as many entries stand in for the rest.
constexpr double kScarce = 0.05;
// How often places are divided until pages of the divided ones cost no more.
constexpr int kDivisions = 8;

// Passes on, and remembers that the aggregator failed, whichever thread of the scorer saw it.
class WatchedAggregator final : public Aggregator {
 public:
  explicit WatchedAggregator(const Aggregator& inner) : inner_(inner) {}

  void Aggregate(const WindowProbs& probs, const Pooling& pooling, std::span<float> out) const override {
    Status status = inner_.TryAggregate(probs, pooling, out);
    if (status) return;
    std::fill(out.begin(), out.end(), 0.0F);
    const std::lock_guard lock(mutex_);
    // Of several the first by name, so that threads make no difference.
    if (status_ || status.error().message < status_.error().message) status_ = std::move(status);
  }
  // When the scorer is through.
  const Status& status() const { return status_; }

 private:
  const Aggregator& inner_;
  mutable std::mutex mutex_;
  mutable Status status_;
};

// A score that is no number loses against every other; the order stays total whatever comes in.
void MakeComparable(std::vector<float>& scores) {
  for (float& score : scores) {
    if (std::isnan(score)) score = std::numeric_limits<float>::lowest();
  }
}

std::vector<KeptHeads> SelectRanked(const std::vector<LayerScores>& layers, const Allocation& budgets) {
  std::vector<KeptHeads> kept(layers.size());
  std::vector<std::pair<size_t, size_t>> heads;
  for (size_t l = 0; l < layers.size(); ++l) {
    kept[l].resize(layers[l].heads.size());
    for (size_t h = 0; h < layers[l].heads.size(); ++h) heads.emplace_back(l, h);
  }
  ParallelFor(heads.size(), [&](size_t i) {
    const auto [l, h] = heads[i];
    kept[l][h] = SelectTop(layers[l].heads[h], TiesOf(layers[l], h), PinnedOf(layers[l], h), budgets[l][h].keep);
  });
  return kept;
}

int64_t EntriesWithStandIns(const std::vector<LayerScores>& layers, const Budget& budget, const Allocation& budgets) {
  int64_t total = 0;
  for (size_t l = 0; l < layers.size(); ++l) {
    for (size_t h = 0; h < layers[l].heads.size(); ++h) {
      total +=
          std::min<int64_t>(budgets[l][h].keep + budget.stand_ins, static_cast<int64_t>(layers[l].heads[h].size()));
    }
  }
  return total;
}

}  // namespace

StageNotes& LayerScores::NotesOf(const Stage* owner) {
  const auto there = std::ranges::find(notes, owner, &StageNotes::owner);
  return there != notes.end() ? *there : notes.emplace_back(StageNotes{owner, {}, {}});
}

const StageNotes& LayerScores::NotesOf(const Stage* owner) const {
  static const StageNotes none;
  const auto there = std::ranges::find(notes, owner, &StageNotes::owner);
  return there != notes.end() ? *there : none;
}

// The base class serves policies that are layer-local.
Result<std::vector<KeptHeads>> Policy::SelectAll(std::span<const LayerScores> scores, const Budget& budget) const {
  (void)scores, (void)budget;
  PITH_CHECK(layer_local());
  return std::vector<KeptHeads>();
}

// Those that stay can't change again and again.
bool Policy::needs_whole_prompt() const {
  if (prune() != nullptr) return true;
  if (repeat() == nullptr) return false;
  return !repeat()->by_blocks || demote() != nullptr || (residue() != nullptr && residue()->match);
}

ComposedPolicy::ComposedPolicy(PolicyParts parts) : parts_(std::move(parts)) {
  const int own = parts_.scorer->window();
  const int window = own > 0 ? own : kDefaultWindow;
  for (auto& modifier : parts_.modifiers) modifier->AdoptWindow(window);
  parts_.allocator->AdoptWindow(window);
  for (const Stage* stage : stages()) needs_ |= stage->needs();
  if (residue() != nullptr) needs_ |= kNeedReferences;
}

std::vector<const Stage*> ComposedPolicy::stages() const {
  std::vector<const Stage*> all = {parts_.scorer.get(), parts_.aggregator.get()};
  for (const auto& modifier : parts_.modifiers) all.push_back(modifier.get());
  all.push_back(parts_.allocator.get());
  all.push_back(parts_.action.get());
  return all;
}

const RepeatOptions* ComposedPolicy::repeat() const {
  if (parts_.scorer->repeat() != nullptr || residue() == nullptr) return parts_.scorer->repeat();
  return &residue()->repeat;
}

int ComposedPolicy::StandIns(const Budget& budget) const {
  if (residue() == nullptr || keeps_everything() || budget.keep_fraction >= 1) return 0;
  if (budget.stand_ins == Budget::kNoStandIns) return 0;
  const int wanted = residue()->entries;
  // In heads that hold no whole page they cost as much as other rests.
  const int most = static_cast<int>(budget.keep / (4 * budget.rest_cost));
  return std::min(budget.keep_fraction < kScarce ? (wanted + 1) / 2 : wanted, most);
}

Budget ComposedPolicy::WithoutStandIns(const Budget& budget) const {
  Budget rest = budget;
  rest.stand_ins = StandIns(budget);
  if (rest.stand_ins == 0) return rest;
  rest.keep -= rest.stand_ins;
  if (budget.keep_exact > 0) rest.keep_exact -= rest.stand_ins;
  rest.keep_fraction *= static_cast<double>(rest.keep) / budget.keep;
  return rest;
}

int ComposedPolicy::window() const {
  int rows = 0;
  for (const Stage* stage : stages()) rows = std::max(rows, stage->window());
  return rows;
}

Status ComposedPolicy::CheckLayers(int num_layers) const {
  for (const Stage* stage : stages()) PITH_RETURN_IF_ERROR(stage->CheckLayers(num_layers));
  return {};
}

void ComposedPolicy::Score(const LayerInputs& inputs, LayerScores& scores) const {
  scores = LayerScores{};
  scores.layer = inputs.layer;
  scores.num_layers = inputs.num_layers;
  scores.heads.resize(inputs.heads.size());
  bool any_pinned = false;
  for (size_t h = 0; h < inputs.heads.size(); ++h) {
    scores.heads[h].assign(static_cast<size_t>(inputs.heads[h].num_entries), 0.0F);
    any_pinned |= !inputs.heads[h].pinned.empty();
  }
  if (any_pinned) {
    for (const HeadInputs& head : inputs.heads) {
      scores.pinned.emplace_back(head.pinned.begin(), head.pinned.end());
      scores.pinned.back().resize(static_cast<size_t>(head.num_entries), 0);
    }
  }
  const WatchedAggregator aggregator(*parts_.aggregator);
  parts_.scorer->Score(inputs, aggregator, scores);
  if (scores.fault.empty() && !aggregator.status()) {
    scores.fault = fmt::format("{} in layer {}", aggregator.status().error().message, inputs.layer);
  }
  for (auto& head : scores.heads) MakeComparable(head);
  for (const auto& modifier : parts_.modifiers) {
    if (!scores.fault.empty()) return;
    modifier->Adjust(inputs, scores);
    for (auto& head : scores.heads) MakeComparable(head);
  }
  if (scores.fault.empty()) parts_.allocator->Prepare(inputs, scores);
}

void ComposedPolicy::Refine(const Budget& budget, LayerScores& scores) const {
  for (const Stage* stage : stages()) stage->Refine(budget, scores);
  scores.refined = true;
}

Status ComposedPolicy::Divide(const Budget& budget, Ranked& ranked) const {
  size_t num_heads = 0;
  for (const LayerScores& layer : ranked.layers) num_heads += layer.heads.size();
  Budget left = budget;
  double total = -1;  // that pages may cost
  for (int round = 1;; ++round) {
    PITH_RETURN_IF_ERROR(parts_.allocator->TryAllocate(ranked.layers, left, ranked.budgets));
    if (keeps_everything()) return {};
    if (budget.page_entries > 1 && AreInPages(ranked.layers, left, ranked.budgets)) return {};
    // With keep_exact a method's own rounding may go beyond the total by less than one a head.
    const int64_t rounding = budget.keep_exact > 0 ? static_cast<int64_t>(num_heads) : 0;
    FitBudgets(ranked.layers, TotalEntries(left, num_heads) + rounding, ranked.budgets);
    if (budget.rest_page_entries > 1) {
      RoundRests(ranked.layers, budget.rest_page_entries, TotalEntries(left, num_heads), ranked.budgets);
      return {};
    }
    if (budget.page_entries <= 1 || !ragged()) return {};
    if (total < 0) total = static_cast<double>(EntriesWithStandIns(ranked.layers, left, ranked.budgets));
    const double missing = RoundToPages(ranked.layers, left, total, round == kDivisions, ranked.budgets);
    if (missing == 0) return {};
    // Rests that must be there cost more than their places: all heads compete for what is left.
    const double less = missing / static_cast<double>(std::max<size_t>(num_heads, 1));
    left.keep = std::max(0, static_cast<int>(left.keep - less));
    if (left.keep_exact > 0) left.keep_exact = std::max(1.0, left.keep_exact - less);
  }
}

ComposedPolicy::Ranked ComposedPolicy::RankAll(const LayerInputs* inputs, std::span<const LayerScores> scores,
                                               const Budget& given) const {
  const Budget budget = WithoutStandIns(given);
  Ranked out{{scores.begin(), scores.end()}, Allocation(scores.size()), {}};
  for (size_t l = 0; l < scores.size(); ++l) {
    if (!out.layers[l].refined) Refine(budget, out.layers[l]);
    out.budgets[l].resize(scores[l].heads.size());
  }
  out.status = Divide(budget, out);
  for (size_t l = 0; l < out.layers.size() && out.status; ++l) {
    out.status = Rerank(inputs, out.budgets[l], out.layers[l]);
  }
  return out;
}

Status ComposedPolicy::Rerank(const LayerInputs* inputs, std::span<const HeadBudget> budgets,
                              LayerScores& layer) const {
  if (layer.ties.empty()) layer.ties.resize(layer.heads.size());
  std::vector<Status> statuses(layer.heads.size());
  ParallelFor(layer.heads.size(), [&](size_t h) {
    HeadRank rank{static_cast<int>(h),
                  budgets[h],
                  &layer,
                  inputs == nullptr ? nullptr : &inputs->heads[h],
                  inputs == nullptr ? 0 : inputs->key_dim,
                  layer.heads[h],
                  &layer.ties[h],
                  {}};
    for (const Stage* stage : stages()) {
      if (rank.status) stage->Rerank(rank);
    }
    MakeComparable(layer.heads[h]);
    statuses[h] = std::move(rank.status);
  });
  const auto failed = std::ranges::find_if(statuses, [](const Status& status) { return !status; });
  return failed == statuses.end() ? Status() : *failed;
}

Result<KeptHeads> ComposedPolicy::Select(const LayerInputs& inputs, const LayerScores& scores,
                                         const Budget& budget) const {
  const Ranked ranked = RankAll(&inputs, {&scores, 1}, budget);
  PITH_RETURN_IF_ERROR(ranked.status);
  return std::move(SelectRanked(ranked.layers, ranked.budgets).front());
}

Result<std::vector<KeptHeads>> ComposedPolicy::SelectAll(std::span<const LayerScores> scores,
                                                         const Budget& budget) const {
  const Ranked ranked = RankAll(nullptr, scores, budget);
  PITH_RETURN_IF_ERROR(ranked.status);
  return SelectRanked(ranked.layers, ranked.budgets);
}

std::vector<LayerScores> ComposedPolicy::Rank(const LayerInputs* inputs, std::span<const LayerScores> scores,
                                              const Budget& budget) const {
  return RankAll(inputs, scores, budget).layers;
}

}  // namespace pith
