#include "engine/shrinker.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "engine/cache_formats.h"
#include "engine/entry_counts.h"
#include "engine/less_states.h"
#include "engine/stand_ins.h"
#include "policy/act/delta_maps.h"
#include "policy/act/demote.h"
#include "policy/select.h"

namespace pith {
namespace {

// Members may fail each by itself; the first of them in order counts.
Status FirstFailure(std::span<const Status> statuses) {
  const auto failed = std::ranges::find_if(statuses, [](const Status& status) { return !status; });
  return failed != statuses.end() ? *failed : Status();
}

void Note(Status& result, Status status) {
  if (result && !status) result = std::move(status);
}

}  // namespace

size_t ShrinkPieces::bytes() const {
  size_t bytes = 0;
  const auto add = [&bytes](const auto& rows) {
    for (const auto& row : rows) bytes += row.capacity() * sizeof(row.front());
  };
  for (const LayerScores& layer : scores) add(layer.heads), add(layer.pinned), add(layer.ties);
  for (const KeptHeads& layer : kept) add(layer);
  return bytes;
}

Budget BlockBudget(const Sequence& sequence, int64_t entries, int64_t heads) {
  const double mean = static_cast<double>(entries) / static_cast<double>(heads);
  const int keep = KeepOf(sequence, mean);
  return Budget{.keep = keep,
                .keep_fraction = std::min(1.0, keep / std::max(1.0, mean)),
                .rest_page_entries = sequence.share.demotion.on ? kPageEntries : 1};
}

Budget SettledBudget(const EngineCore& core, const Sequence& sequence, int64_t entries, int64_t heads) {
  Budget budget = BlockBudget(sequence, entries, heads);
  const CacheFormats& formats = sequence.setup->formats;
  if (!formats.converted || sequence.share.demotion.on || !sequence.setup->policy().ragged()) return budget;
  budget.page_entries = kPageEntries;
  budget.rest_cost = TokenBytes(*core.info, formats.entry) / TokenBytes(*core.info, *formats.converted);
  const int rest = budget.keep % kPageEntries;
  budget.keep += static_cast<int>(rest * (budget.rest_cost - 1));
  const double mean = static_cast<double>(entries) / static_cast<double>(heads);
  budget.keep_fraction = std::min(1.0, budget.keep / std::max(1.0, mean));
  return budget;
}

Status KeepInHead(const EngineCore& core, const Policy& policy, int layer, size_t h, HeadCache& head,
                  std::span<const int32_t> kept) {
  const LessMaps* const maps = policy.less();
  if (maps == nullptr) return head.Keep(kept);
  return KeepAndAbsorb(head, kept, maps->KeyMap(core.layers.IndexOf(layer), static_cast<int>(h)));
}

Status Shrinker::Run(Sequence& source, const ActiveRecipe& active, const EntryGuard& guard,
                     std::span<const Shrink> targets) {
  const Task task{source, *active.recipe.policy, guard};
  Status result;
  core_.context->RunOnTeam([&](const Team& team) {
    Status status = RunOnTeam(task, active, targets, team);
    if (team.ith == 0) result = std::move(status);
  });
  return result;
}

// Every member must reach every sync, so thread 0 carries an error to the end.
Status Shrinker::RunOnTeam(const Task& task, const ActiveRecipe& active, std::span<const Shrink> targets,
                           const Team& team) {
  Sequence& source = task.source;
  Status result;
  const auto keep = [&](const Shrink& target, int layer, KeptHeads& kept) {
    const HeadRange all{0, static_cast<size_t>(core_.num_kv_heads(layer))};
    Note(result, FitAndKeep(task, target, num_stand_ins_, layer, all, kept, team));
    team.Sync();
  };
  team.One([&] { scores_.assign(static_cast<size_t>(core_.layers.count()), {}); });
  for (int global = 0; global < core_.layers.count(); ++global) {
    const int layer = core_.layers.LayerOf(global);
    LayerScores& scores = scores_[static_cast<size_t>(global)];
    core_.ops->Score(source, layer, global, core_.layers.count(), active, task.guard, team, scores);
    if (core_.ops->score_failed()) return InvalidArgument(scores.fault);
    const Budget own = BlockBudget(source, EntriesOf(core_, source, layer), core_.num_kv_heads(layer));
    for (const Shrink& target : targets) {
      if (!task.policy.layer_local()) break;
      if (!SelectInLayer(task, scores_, target.budget.value_or(own), layer, team)) return in_layer_.status;
      keep(target, layer, in_layer_.kept);
    }
    team.Sync();
  }
  if (task.policy.layer_local()) return result;
  const Budget own = BlockBudget(source, GlobalEntriesOf(core_, source), core_.layers.num_heads());
  for (const Shrink& target : targets) {
    if (!SelectInAll(task, scores_, target.budget.value_or(own), team)) return in_all_.status;
    for (int i = 0; i < core_.layers.count(); ++i)
      keep(target, core_.layers.LayerOf(i), in_all_.kept[static_cast<size_t>(i)]);
  }
  return result;
}

Result<bool> Shrinker::RunPiece(Sequence& source, const ActiveRecipe& active, ShrinkPieces& pieces) {
  const auto count = static_cast<size_t>(core_.layers.count());
  pieces.scores.resize(count), pieces.kept.resize(count), pieces.stand_ins.resize(count);
  const Task task{source, *active.recipe.policy, pieces.guard};
  const Shrink target{.sequence = &source, .budget = pieces.budget, .format = pieces.format};
  Status result;
  core_.context->RunOnTeam([&](const Team& team) {
    Status status = RunPieceOnTeam(task, active, target, pieces, team);
    if (team.ith == 0) result = std::move(status);
  });
  if (!result) return tl::unexpected<Error>(result.error());
  return pieces.num_kept == core_.layers.count();
}

// All members go the same way by numbers of their own; thread 0 writes them down at the end.
Status Shrinker::RunPieceOnTeam(const Task& task, const ActiveRecipe& active, const Shrink& target,
                                ShrinkPieces& pieces, const Team& team) {
  const int count = core_.layers.count();
  const ResidueOptions* const residue = task.policy.residue();
  const bool is_local = task.policy.layer_local(),
             fits = task.policy.StandIns(pieces.budget) > 0 || (residue != nullptr && residue->match);
  int judged = pieces.num_judged, kept = pieces.num_kept;
  size_t head = pieces.num_kept_heads;
  int64_t looked = 0;
  Status result;
  const auto judge = [&]() -> bool {
    const int global = judged++, layer = core_.layers.LayerOf(global);
    LayerScores& scores = pieces.scores[static_cast<size_t>(global)];
    looked += EntriesOf(core_, task.source, layer);
    core_.ops->Score(task.source, layer, global, count, active, task.guard, team, scores);
    if (core_.ops->score_failed()) return Note(result, InvalidArgument(scores.fault)), false;
    if (is_local && !SelectInLayer(task, pieces.scores, pieces.budget, layer, team))
      return result = in_layer_.status, false;
    const bool is_last = !is_local && judged == count;
    if (is_last && !SelectInAll(task, pieces.scores, pieces.budget, team)) return result = in_all_.status, false;
    team.One([&] {
      if (is_local) pieces.kept[static_cast<size_t>(global)] = std::move(in_layer_.kept);
      if (is_last) pieces.kept = std::move(in_all_.kept);
      if (is_local) pieces.stand_ins[static_cast<size_t>(global)] = num_stand_ins_;
      if (is_last) std::ranges::fill(pieces.stand_ins, num_stand_ins_);
    });
    return true;
  };
  team.Sync();  // nobody writes what the others have not read yet
  while (kept < count && looked < kEntriesAtOnce) {
    if (is_local ? judged == kept : judged < count) {
      if (!judge()) return result;
      continue;
    }
    const int layer = core_.layers.LayerOf(kept);
    const auto at = static_cast<size_t>(kept), num_heads = static_cast<size_t>(core_.num_kv_heads(layer));
    const size_t end = fits ? std::min(head + static_cast<size_t>(team.nth), num_heads) : num_heads;
    looked += fits ? kEntriesAtOnce : EntriesOf(core_, task.source, layer);
    team.Sync();
    Note(result, FitAndKeep(task, target, pieces.stand_ins[at], layer, {head, end}, pieces.kept[at], team));
    head = end;
    if (head < num_heads) continue;
    head = 0, ++kept;
    team.One([&] { pieces.scores[at] = {}, pieces.kept[at] = {}; });
  }
  team.One([&] { pieces.num_judged = judged, pieces.num_kept = kept, pieces.num_kept_heads = head; });
  return result;
}

bool Shrinker::SelectInLayer(const Task& task, std::span<const LayerScores> scores, const Budget& budget, int layer,
                             const Team& team) {
  const int global = core_.layers.IndexOf(layer);
  core_.ops->loops().Lead(team, [&] {
    KeptHeads& kept = in_layer_.kept;
    in_layer_.Take(task.policy.Select(core_.ops->inputs(), scores[static_cast<size_t>(global)], budget));
    if (!in_layer_.ok()) return;
    num_stand_ins_ = StandInsBeside(task, global, {&kept, 1}, budget);
    WidenToHeads(task, layer, kept);
    ToIndices(task.source, layer, kept);
  });
  return in_layer_.ok();
}

bool Shrinker::SelectInAll(const Task& task, std::span<const LayerScores> scores, const Budget& budget,
                           const Team& team) {
  core_.ops->loops().Lead(team, [&] {
    std::vector<KeptHeads>& kept = in_all_.kept;
    in_all_.Take(task.policy.SelectAll(scores, budget));
    if (!in_all_.ok()) return;
    num_stand_ins_ = StandInsBeside(task, 0, kept, budget);
    for (int i = 0; i < core_.layers.count(); ++i) {
      WidenToHeads(task, core_.layers.LayerOf(i), kept[static_cast<size_t>(i)]);
      ToIndices(task.source, core_.layers.LayerOf(i), kept[static_cast<size_t>(i)]);
    }
  });
  return in_all_.ok();
}

Status Shrinker::FitAndKeep(const Task& task, const Shrink& target, int num_stand_ins, int layer, HeadRange range,
                            KeptHeads& kept, const Team& team) {
  Status result = MakeStandIns(task, target, num_stand_ins, layer, range, kept, team);
  Note(result, KeepRange(task.policy, task.source, *target.sequence, layer, range, kept, team));
  return result;
}

Status Shrinker::KeepHeads(const Policy& policy, const Sequence& source, Sequence& target, int layer, KeptHeads& kept,
                           const Team& team) {
  return KeepRange(policy, source, target, layer, {0, kept.size()}, kept, team);
}

Status Shrinker::KeepRange(const Policy& policy, const Sequence& source, Sequence& target, int layer, HeadRange range,
                           KeptHeads& kept, const Team& team) {
  const std::span<const HeadCache> scored = std::as_const(*core_.cache).heads(source.cache_id, layer);
  const std::span<HeadCache> heads = core_.cache->heads(target.cache_id, layer);
  if (policy.demote() != nullptr) return LowerHeads(*policy.demote(), scored, layer, heads, kept, team);
  // Of the scored sequence itself nothing is newer; its own count changes as it is shrunk.
  for (size_t h = 0; h < heads.size() && team.ith == 0 && &source != &target; ++h) {
    for (int i = scored[h].num_entries(); i < heads[h].num_entries(); ++i) kept[h].push_back(i);
  }
  Status result;
  core_.ops->loops().Lead(team, [&] {
    if (policy.merge() != nullptr) {
      double& threshold = target.merge_thresholds[static_cast<size_t>(core_.layers.IndexOf(layer))];
      result = merger_.Run(heads, kept, *policy.merge(), &threshold);
      ForgetValueNorms(target, heads);
    }
    if (!result) return;
    std::vector<Status> kept_well(range.second - range.first);
    ParallelFor(kept_well.size(), [&](size_t i) {
      const size_t h = range.first + i;
      kept_well[i] = KeepInHead(core_, policy, layer, h, heads[h], kept[h]);
    });
    result = FirstFailure(kept_well);
  });
  return result;
}

Status Shrinker::LowerHeads(const DemoteOptions& demote, std::span<const HeadCache> scored, int layer,
                            std::span<HeadCache> heads, const KeptHeads& kept, const Team& team) {
  Status result;
  core_.ops->loops().Lead(team, [&] {
    std::vector<Status> lowered(heads.size());
    ParallelFor(heads.size(), [&](size_t h) {
      if (const DeltaMaps* maps = demote.maps.get(); maps != nullptr && heads[h].maps().empty()) {
        lowered[h] = heads[h].SetMaps(maps->layer(core_.layers.IndexOf(layer)).heads[h]);
      }
      if (!lowered[h]) return;
      lowered[h] = heads[h].Lower(NotKept(heads[h].num_lower_entries(), scored[h].num_entries(), kept[h]));
    });
    result = FirstFailure(lowered);
  });
  return result;
}

void Shrinker::ToIndices(const Sequence& source, int layer, KeptHeads& kept) const {
  const std::span<const HeadCache> heads = std::as_const(*core_.cache).heads(source.cache_id, layer);
  for (size_t h = 0; h < heads.size(); ++h) {
    const std::vector<int32_t> order = heads[h].TimeOrder();
    if (order.empty()) continue;
    for (int32_t& entry : kept[h]) entry = order[static_cast<size_t>(entry)];
    std::ranges::sort(kept[h]);
  }
}

void Shrinker::WidenToHeads(const Task& task, int layer, KeptHeads& kept) const {
  for (size_t h = 0; h < kept.size(); ++h) {
    const HeadCache& head = std::as_const(*core_.cache).head(task.source.cache_id, layer, static_cast<int>(h));
    const auto [first, last] = task.guard.SliceOf(head);
    if (first == 0 && last == head.num_entries()) continue;
    std::vector<int32_t> whole(static_cast<size_t>(first));
    std::iota(whole.begin(), whole.end(), 0);
    for (const int32_t entry : kept[h]) whole.push_back(first + entry);
    for (int32_t entry = last; entry < head.num_entries(); ++entry) whole.push_back(entry);
    kept[h] = std::move(whole);
  }
}

// As many as the policy left room for, fewer where pinned entries took it.
int Shrinker::StandInsBeside(const Task& task, int first_layer, std::span<const KeptHeads> layers,
                             const Budget& budget) const {
  const int wanted = task.policy.StandIns(budget);
  if (wanted == 0) return 0;
  int64_t kept = 0, num_cut = 0;  // heads of which something goes
  size_t num_heads = 0;
  for (size_t l = 0; l < layers.size(); ++l) {
    const int layer = core_.layers.LayerOf(first_layer + static_cast<int>(l));
    num_heads += layers[l].size();
    for (size_t h = 0; h < layers[l].size(); ++h) {
      const auto [first, last] =
          task.guard.SliceOf(std::as_const(*core_.cache).head(task.source.cache_id, layer, static_cast<int>(h)));
      const int n = last - first;
      kept += static_cast<int64_t>(layers[l][h].size());
      num_cut += static_cast<int>(layers[l][h].size()) < n;
    }
  }
  return static_cast<int>(
      std::clamp<int64_t>((TotalEntries(budget, num_heads) - kept) / std::max<int64_t>(num_cut, 1), 0, wanted));
}

Status Shrinker::MakeStandIns(const Task& task, const Shrink& target, int count, int layer, HeadRange range,
                              KeptHeads& kept, const Team& team) {
  const Sequence& source = task.source;
  const ResidueOptions* const options = task.policy.residue();
  if (options == nullptr || source.repeat == nullptr || (count == 0 && !options->match)) return {};
  Status result;
  core_.ops->loops().Lead(team, [&] {
    const LayerShape& shape = core_.shape(layer);
    const LayerOps::LayerParams& params = core_.ops->params(layer);
    const size_t size = range.second - range.first;
    const std::span<HeadCache> heads = core_.cache->heads(target.sequence->cache_id, layer).subspan(range.first, size);
    std::vector<int> num_entries;
    for (const HeadCache& head : std::as_const(*core_.cache).heads(source.cache_id, layer))
      num_entries.push_back(head.num_entries());
    const StandInTask stand_ins{.options = *options,
                                .count = count,
                                .references = source.repeat->references,
                                .global_layer = core_.layers.IndexOf(layer),
                                .first_head = static_cast<int>(range.first),
                                .group = shape.num_heads / shape.num_kv_heads,
                                .num_entries = num_entries,
                                .scale = params.scale,
                                .soft_cap = params.soft_cap,
                                .format = target.format,
                                .guards = [&](int32_t position) { return task.guard.Guards(source, position); }};
    result = MakeStandInEntries(stand_ins, heads, std::span(kept).subspan(range.first, size));
    ForgetValueNorms(*target.sequence, heads);
  });
  return result;
}

// Merging and standing in have changed values.
void Shrinker::ForgetValueNorms(const Sequence& sequence, std::span<HeadCache> heads) const {
  for (const ActiveRecipe& active : sequence.setup->active) {
    if (active.norm_column < 0) continue;
    for (HeadCache& head : heads) {
      head.WriteSharedColumn(active.norm_column,
                             std::vector<float>(static_cast<size_t>(head.num_entries()), kUnknownNorm));
    }
  }
}

}  // namespace pith
