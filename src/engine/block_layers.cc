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

#include "engine/block_runner.h"
#include "engine/demotion.h"

namespace pith {

void BlockRunner::PrepareLayer(const AttentionCall& call, const Team& team) {
  TakeCancels();
  core_.ops->BeginLayer();
  const int layer = call.cache_layer, global = core_.layers.IndexOf(layer);
  for (size_t i = 0; i < groups_.size(); ++i) {
    RowGroup& group = groups_[i];
    if (group.failed()) continue;
    if (core_.options.faults != nullptr && core_.options.faults->FailsAt(group.sequence->id, layer)) {
      group.Fail({ErrorCode::kIo, "a fault was asked for"});
      continue;
    }
    const bool observes = call.first && global >= 0;
    const uint32_t needs = !observes              ? 0
                           : observer_ == nullptr ? group.sequence->setup->observed_needs
                                                  : LayerOps::RepeatNeeds(observer_->policy);
    const RepeatPass* const pass = observes && observer_ != nullptr ? &observer_->pass : nullptr;
    const Status status = core_.ops->Prepare(call, group, i, positions_, global, needs, pass, NumParts(team.nth));
    if (!status) group.FailFull();
    group.evicts = observes && observer_ == nullptr && evictor_.HoldsTooMuch(group, layer);
  }
  core_.ops->EndPrepare(NumParts(team.nth));
}

// The block goes on without the group: nothing undefined may flow through the rest of its graph.
void BlockRunner::ClearOutput(const AttentionCall& call, const RowGroup& group, const Team& team) const {
  if (!group.began) return;
  const LayerShape& shape = core_.shape(call.cache_layer);
  for (int t = team.ith; t < group.num_rows; t += team.nth) {
    for (int h = 0; h < shape.num_heads; ++h) {
      std::memset(call.output + static_cast<size_t>(group.first_row + t) * call.output_token_stride +
                      static_cast<size_t>(h) * call.output_head_stride,
                  0, sizeof(float) * static_cast<size_t>(shape.value_dim));
    }
  }
}

void BlockRunner::OnAttention(const AttentionCall& call, const Team& team) {
  const int global = core_.layers.IndexOf(call.cache_layer);
  const Clock::time_point start = Clock::now();
  team.One([&] { PrepareLayer(call, team); });
  team.All([&] {
    for (size_t i = 0; i < groups_.size(); ++i) {
      if (groups_[i].failed()) {
        ClearOutput(call, groups_[i], team);
      } else if (call.first) {
        core_.ops->Append(call, groups_[i], i, team);
        core_.ops->MapQueries(groups_[i], i, global, team);
      }
    }
  });
  if (core_.ops->has_latents()) core_.ops->ReadLatents(groups_, team);
  team.All([&] {
    core_.ops->Attend(groups_, team);
    if (team.ith == 0 && call.first && global >= 0 && observer_ == nullptr) KeepQueries(call, global);
  });
  if (team.ith == 0) {
    core_.times.attention += SecondsSince(start) - core_.ops->observe_seconds();
    core_.times.policy += core_.ops->observe_seconds();
  }
  if (call.first) ActInLayer(call, team);
}

void BlockRunner::KeepQueries(const AttentionCall& call, int global_layer) {
  for (size_t i = 0; i < groups_.size(); ++i) {
    if (groups_[i].failed()) continue;
    groups_[i].notes_queries = true;
    core_.ops->KeepQueries(call, groups_[i], i, global_layer);
  }
}

void BlockRunner::ActInLayer(const AttentionCall& call, const Team& team) {
  const int layer = call.cache_layer, global = core_.layers.IndexOf(layer);
  const Clock::time_point start = Clock::now();
  if (global >= 0) {
    ActInGlobalLayer(call, global, team);
  } else if (team.ith == 0) {
    for (RowGroup& group : groups_) {
      if (!group.failed() && group.sequence->setup->style.schedule->FinishesLayers()) {
        DropOutOfWindow(core_, group, layer);
      }
    }
  }
  LeaveLayer(layer, team);
  DemoteLayer(core_, groups_, layer, team);
  if (team.ith == 0 && global >= 0) core_.times.policy += SecondsSince(start);
}

// All threads: rows that were only read to be observed.
void BlockRunner::LeaveLayer(int layer, const Team& team) {
  if (observer_ == nullptr || !groups_.front().sequence->in_passing) return;
  team.One([&] {
    for (HeadCache& head : core_.cache->heads(groups_.front().sequence->cache_id, layer)) head.Clear();
  });
}

// All threads: statistics, and then eviction.
void BlockRunner::ActInGlobalLayer(const AttentionCall& call, int global_layer, const Team& team) {
  if (observer_ != nullptr) return ObservePass(call, global_layer, team);
  const int layer = call.cache_layer;
  const bool observes = std::ranges::any_of(
      groups_, [](const RowGroup& group) { return !group.failed() && group.sequence->setup->observed_needs != 0; });
  if (observes) core_.ops->Observe(layer, global_layer, groups_, team);
  for (size_t i = 0; i < groups_.size(); ++i) {
    RowGroup& group = groups_[i];
    if (group.failed()) continue;
    const SequenceSetup& setup = *group.sequence->setup;
    if (BlockEcho::Wants(group)) echo_.Observe(call, group, team);
    if (setup.counts_moments) core_.ops->AddMoments(call, group, i, global_layer, team);
    if (team.ith == 0 && group.undo != nullptr) {
      group.undo->NoteLayer(global_layer, core_.shape(layer).num_heads);
    } else if (team.ith == 0) {
      group.changed = group.changed || setup.observed_needs != 0 || setup.counts_moments;
    }
    if (group.evicts) evictor_.EvictInLayer(group, layer, team);
    if (group.cascades) evictor_.CascadeInLayer(group, i, layer, team);
  }
}

// All threads: the rows of a second reading are those of one group.
void BlockRunner::ObservePass(const AttentionCall& call, int global_layer, const Team& team) {
  const RowGroup& group = groups_.front();
  if (group.failed()) return;
  ReferenceQueries& references = observer_->columns.references;
  if (team.ith == 0 && !references.empty()) {
    core_.ops->KeepReferences(call, group, 0, global_layer, observer_->pass, references);
  }
  if (ObservesRepeat(observer_->policy)) {
    core_.ops->ObserveRepeat(call.cache_layer, global_layer, group, 0, *observer_, team);
  }
}

}  // namespace pith
