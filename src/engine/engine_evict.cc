// When entries go while text is read or written, and which.
#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <numeric>
#include <utility>

#include "engine/engine_impl.h"
#include "engine/less_states.h"
#include "policy/select.h"

namespace pith {

// Window layers of models that share caches, and recipes that need every layer's scores.
void EngineImpl::FinishBlock() {
  for (RowGroup& group : groups_) {
    if (group.failed()) continue;
    Sequence& sequence = *group.sequence;
    const EvictionSchedule& schedule = *sequence.setup->style.schedule;
    for (size_t layer = 0; layer < cache_->layers().size() && !schedule.FinishesLayers(); ++layer) {
      const LayerKind kind = model_->info().layers[layer].kind;
      if (kind == LayerKind::kWindow || kind == LayerKind::kChunk) DropOutOfWindow(group, static_cast<int>(layer));
    }
    if (!sequence.evicts_while_running() || !schedule.EvictsAfterBlock()) continue;
    Status status = EvictAcrossLayers(group);
    if (status && sequence.setup->formats.low) status = DemoteAll(sequence);
    group.changed = true;
    if (!status) group.Fail(status.error().code == ErrorCode::kOutOfBudget ? FullError(sequence) : status.error());
  }
}

Status EngineImpl::EvictAcrossLayers(const RowGroup& group) {
  Sequence& sequence = *group.sequence;
  if (GlobalHeldOf(sequence) <= MostEntries(group)) return {};
  const Clock::time_point start = Clock::now();
  const Status status = EvictAll(sequence);
  times_.policy += SecondsSince(start);
  return status;
}

Status EngineImpl::EvictAll(Sequence& sequence) {
  const Shrink shrink{.sequence = &sequence, .budget = std::nullopt, .format = std::nullopt};
  const ActiveRecipe& active = sequence.setup->active.front();
  return ScoreAndKeepOnTeam(sequence, active, {.num_sinks = active.recipe.num_running_sinks}, {&shrink, 1});
}

Status EngineImpl::EvictToShare(Sequence& sequence) {
  if (!sequence.evicts_while_running()) return {};
  const double mean = static_cast<double>(GlobalEntriesOf(sequence)) / static_cast<double>(num_global_heads_);
  if (GlobalHeldOf(sequence) > KeepOf(sequence, mean) * num_global_heads_) {
    if (sequence.queries.window() > 0 && sequence.known_queries() == 0) {
      return OutOfBudget(
          "the sequence went back and has read nothing since, so that its recipe cannot judge entries yet");
    }
    PITH_RETURN_IF_ERROR(EvictAll(sequence));
  }
  return sequence.setup->formats.low ? DemoteAll(sequence) : Status();
}

Status EngineImpl::DemoteAll(const Sequence& sequence) {
  std::atomic<bool> out_of_pages{false};
  context_->RunOnTeam([&](const Team& team) {
    for (size_t layer = 0; layer < global_index_.size(); ++layer) {
      if (!ops_->Demote(sequence.cache_id, static_cast<int>(layer), team))
        out_of_pages.store(true, std::memory_order_relaxed);
    }
  });
  if (out_of_pages.load()) return OutOfBudget("the KV budget has no free page left");
  return {};
}

int64_t EngineImpl::EntriesOf(const Sequence& sequence, int layer) const {
  int64_t entries = 0;
  for (const HeadCache& head : std::as_const(*cache_).heads(sequence.cache_id, layer)) entries += head.num_entries();
  return entries;
}

int64_t EngineImpl::GlobalEntriesOf(const Sequence& sequence) const {
  int64_t entries = 0;
  for (size_t layer = 0; layer < global_index_.size(); ++layer) {
    if (global_index_[layer] >= 0) entries += EntriesOf(sequence, static_cast<int>(layer));
  }
  return entries;
}

int64_t EngineImpl::HeldOf(const Sequence& sequence, int layer) const {
  int64_t entries = EntriesOf(sequence, layer);
  if (!sequence.share.demotion.on) return entries;
  for (const HeadCache& head : std::as_const(*cache_).heads(sequence.cache_id, layer)) {
    entries -= head.num_lower_entries();
  }
  return entries;
}

int64_t EngineImpl::GlobalHeldOf(const Sequence& sequence) const {
  int64_t entries = 0;
  for (size_t layer = 0; layer < global_index_.size(); ++layer) {
    if (global_index_[layer] >= 0) entries += HeldOf(sequence, static_cast<int>(layer));
  }
  return entries;
}

int EngineImpl::KeepOf(const Sequence& sequence, double entries) {
  const SharePlan& share = sequence.share;
  return share.demotion.on ? share.demotion.HighEntries(entries) : share.keep_entries;
}

int64_t EngineImpl::MostEntries(const RowGroup& group) const {
  const Sequence& sequence = *group.sequence;
  const double mean = static_cast<double>(GlobalEntriesOf(sequence)) / static_cast<double>(num_global_heads_);
  return (KeepOf(sequence, mean) + (group.settles ? 0 : sequence.share.slack_entries)) * num_global_heads_;
}

Budget EngineImpl::BlockBudget(const Sequence& sequence, int64_t entries, int heads) const {
  const double mean = static_cast<double>(entries) / heads;
  const int keep = KeepOf(sequence, mean);
  return Budget{.keep = keep,
                .keep_fraction = std::min(1.0, keep / std::max(1.0, mean)),
                .rest_page_entries = sequence.share.demotion.on ? kPageEntries : 1};
}

void EngineImpl::ToIndices(const Sequence& source, int layer, KeptHeads& kept) const {
  const std::span<const HeadCache> heads = std::as_const(*cache_).heads(source.cache_id, layer);
  for (size_t h = 0; h < heads.size(); ++h) {
    const std::vector<int32_t> order = heads[h].TimeOrder();
    if (order.empty()) continue;
    for (int32_t& entry : kept[h]) entry = order[static_cast<size_t>(entry)];
    std::ranges::sort(kept[h]);
  }
}

Status EngineImpl::KeepInHead(const Policy& policy, int layer, size_t h, HeadCache& head,
                              std::span<const int32_t> kept) const {
  const LessMaps* const maps = policy.less();
  if (maps == nullptr) return head.Keep(kept);
  return KeepAndAbsorb(head, kept, maps->KeyMap(global_index_[static_cast<size_t>(layer)], static_cast<int>(h)));
}

Status EngineImpl::KeepHeads(const Policy& policy, const Sequence& source, Sequence& target, int layer, KeptHeads& kept,
                             const Team& team) {
  const std::span<const HeadCache> scored = std::as_const(*cache_).heads(source.cache_id, layer);
  const std::span<HeadCache> heads = cache_->heads(target.cache_id, layer);
  if (policy.demote() != nullptr) {
    Status result;
    ops_->loops().Lead(team, [&] {
      std::vector<Status> lowered(heads.size());
      ParallelFor(heads.size(), [&](size_t h) {
        lowered[h] = heads[h].Lower(NotKept(heads[h].num_lower_entries(), scored[h].num_entries(), kept[h]));
      });
      const auto failed = std::ranges::find_if(lowered, [](const Status& status) { return !status; });
      if (failed != lowered.end()) result = *failed;
    });
    return result;
  }
  // Of the scored sequence itself nothing is newer; its own count changes as it is shrunk.
  for (size_t h = 0; h < heads.size() && team.ith == 0 && &source != &target; ++h) {
    for (int i = scored[h].num_entries(); i < heads[h].num_entries(); ++i) kept[h].push_back(i);
  }
  Status result;
  ops_->loops().Lead(team, [&] {
    if (policy.merge() != nullptr) {
      double& threshold = target.merge_thresholds[static_cast<size_t>(global_index_[static_cast<size_t>(layer)])];
      result = merger_.Run(heads, kept, *policy.merge(), &threshold);
      ForgetValueNorms(target, heads);
    }
    if (!result) return;
    std::vector<Status> kept_well(heads.size());
    ParallelFor(heads.size(), [&](size_t h) { kept_well[h] = KeepInHead(policy, layer, h, heads[h], kept[h]); });
    const auto failed = std::ranges::find_if(kept_well, [](const Status& status) { return !status; });
    if (failed != kept_well.end()) result = *failed;
  });
  return result;
}

void EngineImpl::WidenToHeads(const Sequence& source, const EntryGuard& guard, int layer, KeptHeads& kept) const {
  for (size_t h = 0; h < kept.size(); ++h) {
    const HeadCache& head = std::as_const(*cache_).head(source.cache_id, layer, static_cast<int>(h));
    const auto [first, last] = guard.SliceOf(head);
    if (first == 0 && last == head.num_entries()) continue;
    std::vector<int32_t> whole(static_cast<size_t>(first));
    std::iota(whole.begin(), whole.end(), 0);
    for (const int32_t entry : kept[h]) whole.push_back(first + entry);
    for (int32_t entry = last; entry < head.num_entries(); ++entry) whole.push_back(entry);
    kept[h] = std::move(whole);
  }
}

// As many as the policy left room for, fewer where pinned entries took it.
int EngineImpl::StandInsBeside(const Sequence& source, const EntryGuard& guard, int first_layer,
                               std::span<const KeptHeads> layers, const Policy& policy, const Budget& budget) const {
  const int wanted = policy.StandIns(budget);
  if (wanted == 0) return 0;
  int64_t kept = 0, num_cut = 0;  // heads of which something goes
  size_t num_heads = 0;
  for (size_t l = 0; l < layers.size(); ++l) {
    const int layer = LayerOf(first_layer + static_cast<int>(l));
    num_heads += layers[l].size();
    for (size_t h = 0; h < layers[l].size(); ++h) {
      const auto [first, last] =
          guard.SliceOf(std::as_const(*cache_).head(source.cache_id, layer, static_cast<int>(h)));
      const int n = last - first;
      kept += static_cast<int64_t>(layers[l][h].size());
      num_cut += static_cast<int>(layers[l][h].size()) < n;
    }
  }
  return static_cast<int>(
      std::clamp<int64_t>((TotalEntries(budget, num_heads) - kept) / std::max<int64_t>(num_cut, 1), 0, wanted));
}

Status EngineImpl::MakeStandIns(const Policy& policy, Sequence& source, const EntryGuard& guard, const Shrink& target,
                                const Budget& budget, int layer, KeptHeads& kept, const Team& team) {
  if (policy.StandIns(budget) == 0 || source.repeat == nullptr) return {};
  Status result;
  ops_->loops().Lead(team, [&] {
    const LayerShape& shape = model_->info().layers[static_cast<size_t>(layer)];
    const LayerOps::LayerParams& params = ops_->params(layer);
    const std::span<HeadCache> heads = cache_->heads(target.sequence->cache_id, layer);
    std::vector<int> num_entries;
    for (const HeadCache& head : std::as_const(*cache_).heads(source.cache_id, layer))
      num_entries.push_back(head.num_entries());
    const StandInTask task{.options = *policy.residue(),
                           .count = num_stand_ins_,
                           .references = source.repeat->references,
                           .global_layer = global_index_[static_cast<size_t>(layer)],
                           .group = shape.num_heads / shape.num_kv_heads,
                           .num_entries = num_entries,
                           .scale = params.scale,
                           .soft_cap = params.soft_cap,
                           .format = target.format,
                           .guards = [&](int32_t position) { return guard.Guards(source, position); }};
    result = MakeStandInEntries(task, heads, kept);
    ForgetValueNorms(*target.sequence, heads);
  });
  return result;
}

// Merging and standing in have changed values.
void EngineImpl::ForgetValueNorms(const Sequence& sequence, std::span<HeadCache> heads) {
  for (const ActiveRecipe& active : sequence.setup->active) {
    if (active.norm_column < 0) continue;
    for (HeadCache& head : heads) {
      head.WriteSharedColumn(active.norm_column,
                             std::vector<float>(static_cast<size_t>(head.num_entries()), kUnknownNorm));
    }
  }
}

bool EngineImpl::HoldsTooMuch(const RowGroup& group, int layer) const {
  const Sequence& sequence = *group.sequence;
  if (!sequence.setup->style.schedule->EvictsLayers() || !sequence.evicts_while_running()) return false;
  const int num_kv_heads = cache_->layers()[static_cast<size_t>(layer)].num_kv_heads;
  const int keep = KeepOf(sequence, static_cast<double>(EntriesOf(sequence, layer)) / num_kv_heads);
  const int most = keep + (group.settles ? 0 : sequence.share.slack_entries);
  return HeldOf(sequence, layer) > static_cast<int64_t>(most) * num_kv_heads;
}

// Every member returns the same.
bool EngineImpl::FailByFault(RowGroup& group, const Team& team) {
  if (!ops_->score_failed()) return false;
  team.One([&] { group.Fail({ErrorCode::kInvalidArgument, scores_.fault}); });
  return true;
}

bool EngineImpl::FailBySelection(RowGroup& group, const Team& team) {
  if (select_status_) return false;
  team.One([&] { group.Fail(select_status_.error()); });
  return true;
}

// Thread 0, within a loop that it leads: what a policy has selected, or why it has not.
template <typename T>
void EngineImpl::TakeSelection(Result<T> selected, T& into) {
  select_status_ = selected ? Status() : Status(tl::unexpected(selected.error()));
  into = selected ? std::move(*selected) : T();
}

void EngineImpl::EvictInLayer(const AttentionCall& call, RowGroup& group, const Team& team) {
  const int layer = call.cache_layer;
  Sequence& sequence = *group.sequence;
  const int num_kv_heads = cache_->layers()[static_cast<size_t>(layer)].num_kv_heads;
  const ActiveRecipe& active = sequence.setup->active.front();
  ops_->Score(sequence, layer, global_index_[static_cast<size_t>(layer)], num_global_layers_, active,
              {.num_sinks = active.recipe.num_running_sinks}, team, scores_);
  if (FailByFault(group, team)) return;
  ops_->loops().Lead(team, [&] {
    const Budget budget = BlockBudget(sequence, EntriesOf(sequence, layer), num_kv_heads);
    TakeSelection(active.recipe.policy->Select(ops_->inputs(), scores_, budget), kept_);
    if (select_status_) ToIndices(sequence, layer, kept_);
  });
  if (FailBySelection(group, team)) return;
  const Status status = KeepHeads(*active.recipe.policy, sequence, sequence, layer, kept_, team);
  team.One([&] {
    group.changed = true;
    if (!status) group.Fail(FullError(sequence));
  });
}

void EngineImpl::PrepareCascade(RowGroup& group) {
  Sequence& sequence = *group.sequence;
  if (sequence.setup->style.schedule->LayersInCascade() == 0 || !sequence.evicts || group.num_rows == 1) return;
  const int64_t entries = GlobalEntriesOf(sequence) + group.num_rows * num_global_heads_;
  if (entries <= MostEntries(group)) return;
  group.cascades = true;
  cascades_.resize(std::max(cascades_.size(), groups_.size()));
  cascades_[static_cast<size_t>(&group - groups_.data())].Begin(
      BlockBudget(sequence, entries, static_cast<int>(num_global_heads_)));
}

void EngineImpl::CascadeInLayer(const AttentionCall& call, RowGroup& group, const Team& team) {
  const int layer = call.cache_layer, global = global_index_[static_cast<size_t>(layer)];
  const bool last = global + 1 == num_global_layers_;
  Sequence& sequence = *group.sequence;
  const ActiveRecipe& active = sequence.setup->active.front();
  ops_->Score(sequence, layer, global, num_global_layers_, active, {.num_sinks = active.recipe.num_running_sinks}, team,
              scores_);
  if (FailByFault(group, team)) return;
  ops_->loops().Lead(team, [&] {
    Cascade& cascade = cascades_[static_cast<size_t>(&group - groups_.data())];
    cascade.Add(*active.recipe.policy, std::move(scores_));
    const int64_t in_block =
        static_cast<int64_t>(group.num_rows) * cache_->layers()[static_cast<size_t>(layer)].num_kv_heads;
    const int64_t waiting = last ? 0 : (sequence.setup->style.schedule->LayersInCascade() - 1) * in_block;
    all_kept_.clear();
    select_status_ = Status();
    if (GlobalEntriesOf(sequence) > MostEntries(group) + waiting) {
      int64_t left = last ? sequence.share.keep_entries * num_global_heads_ : MostEntries(group);
      for (int later = global + 1; later < num_global_layers_; ++later) left -= EntriesOf(sequence, LayerOf(later));
      TakeSelection(cascade.Shrink(*active.recipe.policy, left), all_kept_);
    }
  });
  if (FailBySelection(group, team)) return;
  team.All([&] {
    for (size_t i = 0; i < all_kept_.size(); ++i) {
      const int shrunk = LayerOf(static_cast<int>(i));
      const std::span<HeadCache> heads = cache_->heads(sequence.cache_id, shrunk);
      for (size_t h = static_cast<size_t>(team.ith); h < heads.size(); h += static_cast<size_t>(team.nth)) {
        if (!KeepInHead(*active.recipe.policy, shrunk, h, heads[h], all_kept_[i][h]))
          std::atomic_ref(group.out_of_pages).store(1, std::memory_order_relaxed);
      }
    }
  });
  team.One([&] {
    group.changed = true;
    if (group.out_of_pages != 0) group.Fail(FullError(sequence));
  });
}

Status EngineImpl::ScoreAndKeepOnTeam(Sequence& source, const ActiveRecipe& active, const EntryGuard& guard,
                                      std::span<const Shrink> targets) {
  Status result;
  context_->RunOnTeam([&](const Team& team) {
    Status status = ScoreAndKeep(source, active, guard, targets, team);
    if (team.ith == 0) result = std::move(status);
  });
  return result;
}

// Every member must reach every sync, so thread 0 carries an error to the end.
Status EngineImpl::ScoreAndKeep(Sequence& source, const ActiveRecipe& active, const EntryGuard& guard,
                                std::span<const Shrink> targets, const Team& team) {
  const Policy& policy = *active.recipe.policy;
  Status result;
  team.One([&] { all_scores_.assign(static_cast<size_t>(num_global_layers_), {}); });
  for (size_t i = 0; i < global_index_.size(); ++i) {
    const int global = global_index_[i], layer = static_cast<int>(i);
    if (global < 0) continue;
    LayerScores& scores = all_scores_[static_cast<size_t>(global)];
    ops_->Score(source, layer, global, num_global_layers_, active, guard, team, scores);
    if (ops_->score_failed()) return InvalidArgument(scores.fault);
    const Budget own = BlockBudget(source, EntriesOf(source, layer), cache_->layers()[i].num_kv_heads);
    for (const Shrink& target : targets) {
      if (!policy.layer_local()) break;
      ops_->loops().Lead(team, [&] {
        TakeSelection(policy.Select(ops_->inputs(), scores, target.budget.value_or(own)), kept_);
        if (!select_status_) return;
        num_stand_ins_ = StandInsBeside(source, guard, global, {&kept_, 1}, policy, target.budget.value_or(own));
        WidenToHeads(source, guard, layer, kept_);
        ToIndices(source, layer, kept_);
      });
      if (!select_status_) return select_status_;
      Status made = MakeStandIns(policy, source, guard, target, target.budget.value_or(own), layer, kept_, team);
      if (result && !made) result = std::move(made);
      Status status = KeepHeads(policy, source, *target.sequence, layer, kept_, team);
      if (result && !status) result = std::move(status);
      team.Sync();
    }
    team.Sync();
  }
  if (policy.layer_local()) return result;
  const Budget own = BlockBudget(source, GlobalEntriesOf(source), static_cast<int>(num_global_heads_));
  for (const Shrink& target : targets) {
    ops_->loops().Lead(team, [&] {
      TakeSelection(policy.SelectAll(all_scores_, target.budget.value_or(own)), all_kept_);
      if (!select_status_) return;
      num_stand_ins_ = StandInsBeside(source, guard, 0, all_kept_, policy, target.budget.value_or(own));
      for (int i = 0; i < num_global_layers_; ++i) {
        KeptHeads& kept = all_kept_[static_cast<size_t>(i)];
        WidenToHeads(source, guard, LayerOf(i), kept);
        ToIndices(source, LayerOf(i), kept);
      }
    });
    if (!select_status_) return select_status_;
    for (size_t i = 0; i < global_index_.size(); ++i) {
      if (global_index_[i] < 0) continue;
      KeptHeads& kept = all_kept_[static_cast<size_t>(global_index_[i])];
      Status made =
          MakeStandIns(policy, source, guard, target, target.budget.value_or(own), static_cast<int>(i), kept, team);
      if (result && !made) result = std::move(made);
      Status status = KeepHeads(policy, source, *target.sequence, static_cast<int>(i), kept, team);
      if (result && !status) result = std::move(status);
      team.Sync();
    }
  }
  return result;
}

// The model's layer that is the i-th with a global cache.
int EngineImpl::LayerOf(int global_layer) const { return global_layers_[static_cast<size_t>(global_layer)]; }

}  // namespace pith
