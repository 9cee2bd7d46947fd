// What happens to the rows of a block in one attention node of libllama's graph, for all sequences together:
//
//   thread 0   makes room for each group's rows and describes its attention
//   all        write keys and values | attend, as one list of work over all groups
//   all        statistics that recipes want, eviction of what a layer holds too much, conversion of full pages
//
// The number of barriers does not depend on the number of groups, save for those that evict. A group that fails is left
// out from there on: its rows are zeros, which flow through the rest of the graph beside the others' without touching
// them.
#include <algorithm>
#include <atomic>
#include <cstring>
#include <utility>

#include "engine/engine_impl.h"

namespace pith {

void EngineImpl::PrepareLayer(const AttentionCall& call, const Team& team) {
  TakeCancels();
  ops_->BeginLayer();
  const int layer = call.cache_layer, global = global_index_[static_cast<size_t>(layer)];
  for (size_t i = 0; i < groups_.size(); ++i) {
    RowGroup& group = groups_[i];
    if (group.failed()) continue;
    if (options_.faults != nullptr && options_.faults->FailsAt(group.sequence->id, layer)) {
      group.Fail({ErrorCode::kIo, "a fault was asked for"});
      continue;
    }
    const bool observes = call.first && global >= 0;
    const uint32_t needs = !observes                   ? 0
                           : repeat_policy_ == nullptr ? group.sequence->setup->observed_needs
                                                       : LayerOps::RepeatNeeds(*repeat_policy_);
    const RepeatPass* const pass = observes && repeat_policy_ != nullptr ? &repeat_pass_ : nullptr;
    const Status status = ops_->Prepare(call, group, i, positions_, global, needs, pass, NumParts(team.nth));
    if (!status) group.Fail(FullError(*group.sequence));
    group.evicts = call.first && global >= 0 && repeat_policy_ == nullptr && HoldsTooMuch(group, layer);
  }
  ops_->EndPrepare(NumParts(team.nth));
}

// The block goes on without the group: nothing undefined may flow through the rest of its graph.
void EngineImpl::ClearOutput(const AttentionCall& call, const RowGroup& group, const Team& team) const {
  if (!group.began) return;
  const LayerShape& shape = model_->info().layers[static_cast<size_t>(call.cache_layer)];
  for (int t = team.ith; t < group.num_rows; t += team.nth) {
    for (int h = 0; h < shape.num_heads; ++h) {
      std::memset(call.output + static_cast<size_t>(group.first_row + t) * call.output_token_stride +
                      static_cast<size_t>(h) * call.output_head_stride,
                  0, sizeof(float) * static_cast<size_t>(shape.value_dim));
    }
  }
}

void EngineImpl::OnAttention(const AttentionCall& call, const Team& team) {
  const int global = global_index_[static_cast<size_t>(call.cache_layer)];
  const Clock::time_point start = Clock::now();
  team.One([&] { PrepareLayer(call, team); });
  team.All([&] {
    for (size_t i = 0; i < groups_.size(); ++i) {
      if (groups_[i].failed()) {
        ClearOutput(call, groups_[i], team);
      } else if (call.first) {
        ops_->Append(call, groups_[i], i, team);
        ops_->MapQueries(groups_[i], i, global, team);
      }
    }
  });
  team.All([&] {
    ops_->Attend(groups_, team);
    if (team.ith == 0 && call.first && global >= 0 && repeat_policy_ == nullptr) KeepQueries(call, global);
  });
  if (team.ith == 0) {
    times_.attention += SecondsSince(start) - ops_->observe_seconds();
    times_.policy += ops_->observe_seconds();
  }
  if (call.first) ActInLayer(call, team);
}

void EngineImpl::KeepQueries(const AttentionCall& call, int global_layer) {
  for (size_t i = 0; i < groups_.size(); ++i) {
    if (groups_[i].failed()) continue;
    groups_[i].notes_queries = true;
    ops_->KeepQueries(call, groups_[i], i, global_layer);
  }
}

void EngineImpl::DropOutOfWindow(RowGroup& group, int layer) {
  for (HeadCache& head : cache_->heads(group.sequence->cache_id, layer)) {
    group.changed =
        head.DropPagesBefore(group.sequence->next_position - model_->info().window + 1) > 0 || group.changed;
  }
}

void EngineImpl::ActInLayer(const AttentionCall& call, const Team& team) {
  const int layer = call.cache_layer, global = global_index_[static_cast<size_t>(layer)];
  if (global < 0) {
    for (RowGroup& group : groups_) {
      if (team.ith == 0 && !group.failed() && group.sequence->setup->style.schedule->FinishesLayers())
        DropOutOfWindow(group, layer);
    }
    return DemoteLayer(layer, team);
  }
  const Clock::time_point start = Clock::now();
  bool observes = false;
  for (RowGroup& group : groups_)
    observes = observes || (!group.failed() && group.sequence->setup->observed_needs != 0);
  if (repeat_policy_ != nullptr) {
    if (!groups_.front().failed()) {
      ReferenceQueries& references = repeat_columns_->references;
      if (team.ith == 0 && !references.empty()) {
        ops_->KeepReferences(call, groups_.front(), 0, global, repeat_pass_, references);
      }
      if (ObservesRepeat(*repeat_policy_)) {
        ops_->ObserveRepeat(layer, global, groups_.front(), 0, {*repeat_policy_, repeat_pass_, *repeat_columns_}, team);
      }
    }
  } else if (observes) {
    ops_->Observe(layer, global, groups_, team);
  }
  for (size_t i = 0; i < groups_.size(); ++i) {
    RowGroup& group = groups_[i];
    if (group.failed()) continue;
    const SequenceSetup& setup = *group.sequence->setup;
    if (repeat_policy_ == nullptr) {
      if (setup.counts_moments) ops_->AddMoments(call, group, i, global, team);
      if (team.ith == 0 && group.undo != nullptr) {
        group.undo->NoteLayer(global, model_->info().layers[static_cast<size_t>(layer)].num_heads);
      } else if (team.ith == 0) {
        group.changed = group.changed || setup.observed_needs != 0 || setup.counts_moments;
      }
    }
    if (group.evicts) EvictInLayer(call, group, team);
    if (group.cascades) CascadeInLayer(call, group, team);
  }
  DemoteLayer(layer, team);
  if (team.ith == 0) times_.policy += SecondsSince(start);
}

// Pages of the rows themselves are cut off again where they fail, and a page that they complete shows in Truncate().
bool EngineImpl::DemotesOld(const RowGroup& group, int layer) const {
  if (cache_->layers()[static_cast<size_t>(layer)].num_kv_heads == 0) return false;
  return std::ranges::any_of(std::as_const(*cache_).heads(group.sequence->cache_id, layer),
                             [&](const HeadCache& head) { return head.HasOldPages(group.num_rows); });
}

// What a recipe that compares layers evicts is evicted before full pages are converted.
void EngineImpl::DemoteLayer(int layer, const Team& team) {
  const auto demotes = [this](const RowGroup& group) {
    const SequenceSetup& setup = *group.sequence->setup;
    return !group.failed() && (setup.formats.low || cache_->layout(group.sequence->cache_id).pruned.share > 0) &&
           (setup.style.schedule->FinishesLayers() || !group.sequence->evicts_while_running());
  };
  bool any = false;
  for (const RowGroup& group : groups_) any = any || demotes(group);
  if (!any) return;
  team.One([&] {
    for (RowGroup& group : groups_) {
      if (demotes(group)) group.changed = group.changed || DemotesOld(group, layer);
    }
  });
  team.All([&] {
    for (RowGroup& group : groups_) {
      if (demotes(group) && !ops_->Demote(group.sequence->cache_id, layer, team)) {
        std::atomic_ref(group.out_of_pages).store(1, std::memory_order_relaxed);
      }
      // Where the budget does not hold a copy of a page that forks share, it stays whole.
      if (demotes(group)) (void)ops_->Prune(group.sequence->cache_id, layer, team);
    }
  });
  if (team.ith != 0) return;
  for (RowGroup& group : groups_) {
    if (group.out_of_pages != 0) group.Fail(FullError(*group.sequence));
  }
}

}  // namespace pith
