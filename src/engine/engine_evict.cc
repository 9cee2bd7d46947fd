// When entries go, and which: eviction while blocks run, and compression of what was read.
#include <algorithm>
#include <utility>

#include <fmt/format.h>

#include "engine/engine_impl.h"

namespace pith {

// Window layers of models that share caches, and recipes that need every layer's scores.
void EngineImpl::FinishBlock() {
  for (RowGroup& group : groups_) {
    Sequence& sequence = *group.sequence;
    if (!style_.in_layer) {
      for (size_t layer = 0; layer < cache_->layers().size(); ++layer) {
        const LayerKind kind = model_->info().layers[layer].kind;
        if (kind != LayerKind::kWindow && kind != LayerKind::kChunk) continue;
        for (HeadCache& head : cache_->heads(sequence.cache_id, static_cast<int>(layer))) {
          head.DropPagesBefore(sequence.next_position - model_->info().window + 1);
        }
      }
    }
    if (!evicts_while_running() || (style_.in_layer && !style_.cascades)) continue;
    EvictAcrossLayers(sequence);
    if (!formats_.low || failed_) continue;
    if (const Status status = DemoteAll(sequence); !status) Fail(Explained(status.error()));
  }
}

void EngineImpl::EvictAcrossLayers(Sequence& sequence) {
  if (!eviction_on_ || GlobalEntriesOf(sequence) <= MostEntries()) return;
  const Clock::time_point start = Clock::now();
  const Shrink shrink{.sequence = &sequence, .budget = std::nullopt, .format = std::nullopt};
  const Status status = ScoreAndKeepOnTeam(sequence, active_.front(), SinksOf(active_.front().recipe), {&shrink, 1});
  if (!status) Fail(status.error());
  times_.policy += SecondsSince(start);
}

void EngineImpl::DemoteLayer(const Sequence& sequence, int layer, const Team& team) {
  team.Sync();
  if (!ops_->Demote(sequence.cache_id, layer, team)) out_of_pages_.store(true, std::memory_order_relaxed);
  team.Sync();
  FailIfOutOfPages(team);
}

void EngineImpl::FailIfOutOfPages(const Team& team) {
  if (team.ith == 0 && out_of_pages_.exchange(false)) Fail(Explained(OutOfBudget("").value()));
}

Status EngineImpl::DemoteAll(const Sequence& sequence) {
  context_->RunOnTeam([&](const Team& team) {
    for (size_t layer = 0; layer < global_index_.size(); ++layer) {
      const bool done = ops_->Demote(sequence.cache_id, static_cast<int>(layer), team);
      if (!done) out_of_pages_.store(true, std::memory_order_relaxed);
    }
  });
  if (out_of_pages_.exchange(false)) return OutOfBudget("the KV budget has no free page left");
  return {};
}

double EngineImpl::KeptBytes(SequenceId id) const {
  const Sequence& sequence = sequences_.at(id);
  return ContentShare(*cache_, sequence.cache_id, global_index_, sequence.next_position);
}

int64_t EngineImpl::EntriesOf(const Sequence& sequence, int layer) const {
  int64_t entries = 0;
  for (const HeadCache& head : cache_->heads(sequence.cache_id, layer)) entries += head.num_entries();
  return entries;
}

int64_t EngineImpl::GlobalEntriesOf(const Sequence& sequence) const {
  int64_t entries = 0;
  for (size_t layer = 0; layer < global_index_.size(); ++layer) {
    if (global_index_[layer] >= 0) entries += EntriesOf(sequence, static_cast<int>(layer));
  }
  return entries;
}

Budget EngineImpl::BlockBudget(int64_t entries, int heads) const {
  const double mean = static_cast<double>(entries) / heads;
  return Budget{.keep = plan_.keep_entries, .keep_fraction = std::min(1.0, plan_.keep_entries / std::max(1.0, mean))};
}

Status EngineImpl::KeepHeads(const Policy& policy, const Sequence& source, Sequence& target, int layer, KeptHeads& kept,
                             const Team& team) {
  const std::span<const HeadCache> scored = std::as_const(*cache_).heads(source.cache_id, layer);
  const std::span<HeadCache> heads = cache_->heads(target.cache_id, layer);
  // Of the scored sequence itself nothing is newer; its own count changes as it is shrunk.
  for (size_t h = 0; h < heads.size() && team.ith == 0 && &source != &target; ++h) {
    for (int i = scored[h].num_entries(); i < heads[h].num_entries(); ++i) kept[h].push_back(i);
  }
  Status result;
  ops_->loops().Lead(team, [&] {
    if (policy.merge() != nullptr) {
      double& threshold = target.merge_thresholds[static_cast<size_t>(global_index_[static_cast<size_t>(layer)])];
      result = merger_.Run(heads, kept, *policy.merge(), &threshold);
      ForgetValueNorms(heads);
    }
    if (!result) return;
    std::vector<Status> kept_well(heads.size());
    ParallelFor(heads.size(), [&](size_t h) { kept_well[h] = heads[h].Keep(kept[h]); });
    const auto failed = std::ranges::find_if(kept_well, [](const Status& status) { return !status; });
    if (failed != kept_well.end()) result = *failed;
  });
  return result;
}

// Merging has changed values.
void EngineImpl::ForgetValueNorms(std::span<HeadCache> heads) {
  for (const ActiveRecipe& active : active_) {
    if (active.norm_column < 0) continue;
    for (HeadCache& head : heads) {
      head.WriteSharedColumn(active.norm_column, std::vector<float>(static_cast<size_t>(head.num_entries()), kUnknownNorm));
    }
  }
}

bool EngineImpl::HoldsTooMuch(const Sequence& sequence, int layer) const {
  if (!style_.in_layer || style_.cascades || !evicts_while_running() || !eviction_on_) return false;
  const int num_kv_heads = cache_->layers()[static_cast<size_t>(layer)].num_kv_heads;
  return EntriesOf(sequence, layer) > static_cast<int64_t>(plan_.keep_entries + plan_.slack_entries) * num_kv_heads;
}

void EngineImpl::EvictInLayer(const AttentionCall& call, RowGroup& group, const Team& team) {
  const int layer = call.cache_layer;
  Sequence& sequence = *group.sequence;
  const int num_kv_heads = cache_->layers()[static_cast<size_t>(layer)].num_kv_heads;
  const ActiveRecipe& active = active_.front();
  ops_->Score(sequence, layer, global_index_[static_cast<size_t>(layer)], num_global_layers_, active, options_.seed,
              SinksOf(active.recipe), team, scores_);
  ops_->loops().Lead(team, [&] {
    const Budget budget = BlockBudget(EntriesOf(sequence, layer), num_kv_heads);
    kept_ = active.recipe.policy->Select(ops_->inputs(), scores_, budget);
  });
  const Status status = KeepHeads(*active.recipe.policy, sequence, sequence, layer, kept_, team);
  if (team.ith == 0 && !status) Fail(status.error());
  team.Sync();
}

void EngineImpl::PrepareCascade(RowGroup& group) {
  if (!style_.cascades || !eviction_on_ || group.num_rows == 1) return;
  const int64_t entries = GlobalEntriesOf(*group.sequence) + group.num_rows * num_global_heads_;
  if (entries <= MostEntries()) return;
  group.cascades = true;
  cascades_.resize(groups_.size());
  cascades_[static_cast<size_t>(&group - groups_.data())].Begin(BlockBudget(entries, static_cast<int>(num_global_heads_)));
}

void EngineImpl::CascadeInLayer(const AttentionCall& call, RowGroup& group, const Team& team) {
  const int layer = call.cache_layer, global = global_index_[static_cast<size_t>(layer)];
  const bool last = global + 1 == num_global_layers_;
  Sequence& sequence = *group.sequence;
  const ActiveRecipe& active = active_.front();
  ops_->Score(sequence, layer, global, num_global_layers_, active, options_.seed, SinksOf(active.recipe), team, scores_);
  ops_->loops().Lead(team, [&] {
    Cascade& cascade = cascades_[static_cast<size_t>(&group - groups_.data())];
    cascade.Add(*active.recipe.policy, std::move(scores_));
    const int64_t in_block = static_cast<int64_t>(group.num_rows) * cache_->layers()[static_cast<size_t>(layer)].num_kv_heads;
    const int64_t waiting = last ? 0 : (style_.layers_in_flight - 1) * in_block;
    all_kept_.clear();
    if (GlobalEntriesOf(sequence) > MostEntries() + waiting) {
      int64_t left = last ? plan_.keep_entries * num_global_heads_ : MostEntries();
      for (int later = global + 1; later < num_global_layers_; ++later) left -= EntriesOf(sequence, LayerOf(later));
      all_kept_ = cascade.Shrink(*active.recipe.policy, left);
    }
  });
  for (size_t i = 0; i < all_kept_.size(); ++i) {
    const std::span<HeadCache> heads = cache_->heads(sequence.cache_id, LayerOf(static_cast<int>(i)));
    for (size_t h = static_cast<size_t>(team.ith); h < heads.size(); h += static_cast<size_t>(team.nth)) {
      if (!heads[h].Keep(all_kept_[i][h])) out_of_pages_.store(true, std::memory_order_relaxed);
    }
  }
  team.Sync();
  FailIfOutOfPages(team);
}

// Every member must reach every sync, so thread 0 carries an error to the end.
Status EngineImpl::ScoreAndKeep(Sequence& source, const ActiveRecipe& active, int num_sinks, std::span<const Shrink> targets,
                                const Team& team) {
  const Policy& policy = *active.recipe.policy;
  Status result;
  if (team.ith == 0) all_scores_.assign(static_cast<size_t>(num_global_layers_), {});
  team.Sync();
  for (size_t i = 0; i < global_index_.size(); ++i) {
    const int global = global_index_[i], layer = static_cast<int>(i);
    if (global < 0) continue;
    LayerScores& scores = all_scores_[static_cast<size_t>(global)];
    ops_->Score(source, layer, global, num_global_layers_, active, options_.seed, num_sinks, team, scores);
    const Budget own = BlockBudget(EntriesOf(source, layer), cache_->layers()[i].num_kv_heads);
    for (const Shrink& target : targets) {
      if (!policy.layer_local()) break;
      ops_->loops().Lead(team, [&] { kept_ = policy.Select(ops_->inputs(), scores, target.budget.value_or(own)); });
      Status status = KeepHeads(policy, source, *target.sequence, layer, kept_, team);
      if (result && !status) result = std::move(status);
      team.Sync();
    }
    team.Sync();
  }
  if (policy.layer_local()) return result;
  const Budget own = BlockBudget(GlobalEntriesOf(source), static_cast<int>(num_global_heads_));
  for (const Shrink& target : targets) {
    ops_->loops().Lead(team, [&] { all_kept_ = policy.SelectAll(all_scores_, target.budget.value_or(own)); });
    for (size_t i = 0; i < global_index_.size(); ++i) {
      if (global_index_[i] < 0) continue;
      Status status = KeepHeads(policy, source, *target.sequence, static_cast<int>(i),
                                all_kept_[static_cast<size_t>(global_index_[i])], team);
      if (result && !status) result = std::move(status);
      team.Sync();
    }
  }
  return result;
}

const ActiveRecipe* EngineImpl::FindRecipe(const Recipe& recipe) const {
  for (const ActiveRecipe& active : active_) {
    if (active.recipe.text == recipe.text) return &active;
  }
  return nullptr;
}

Result<double> EngineImpl::Compress(SequenceId id, const Recipe& recipe, double keep_fraction) {
  const CompressTarget target{.sequence = id, .keep_fraction = keep_fraction};
  PITH_ASSIGN_OR_RETURN(const std::vector<double> kept, CompressForks(id, recipe, {&target, 1}));
  return kept.front();
}

Result<std::vector<double>> EngineImpl::CompressForks(SequenceId id, const Recipe& recipe,
                                                      std::span<const CompressTarget> targets) {
  Sequence& source = sequences_.at(id);
  const ActiveRecipe* active = FindRecipe(recipe);
  if (active == nullptr) return InvalidArgument("the recipe " + recipe.text + " was not announced to the engine");
  std::vector<double> kept(targets.size(), 1.0);
  const int64_t before = GlobalEntriesOf(source);
  const bool selects = !active->recipe.policy->keeps_everything();
  if ((!selects && !Converts(active->recipe, formats_.entry)) || before == 0) return kept;
  const double mean = static_cast<double>(before) / static_cast<double>(num_global_heads_);
  std::vector<Shrink> shrinks;
  std::vector<int64_t> newer;
  for (const CompressTarget& target : targets) {
    double keep = target.keep_fraction;
    if (!(keep > 0 && keep <= 1)) return InvalidArgument(fmt::format("a kept fraction of {} is not in (0, 1]", keep));
    bool in_pages = false;
    double rest_cost = 1;
    std::optional<PageFormat> to = WithFormatFor(model_->info(), active->recipe, mean, keep).format;
    if (to == formats_.entry) to.reset();
    if (to) {
      rest_cost = TokenBytes(model_->info(), formats_.entry) / TokenBytes(model_->info(), *to);
      const double with_rests = EntriesInBytes(model_->info(), *to, true, mean, keep);
      in_pages = with_rests < mean && active->recipe.policy->ragged();
      keep = (in_pages ? EntriesInBytes(model_->info(), *to, false, mean, keep) : with_rests) / mean;
    }
    // 1e-9: 0.2 * 515 is 103, whatever the binary fraction says.
    shrinks.push_back({&sequences_.at(target.sequence), Budget{.keep = std::max(1, static_cast<int>(mean * keep + 1e-9)),
                                                               .keep_fraction = keep,
                                                               .keep_exact = std::max(1.0, mean * keep),
                                                               .page_entries = in_pages ? kPageEntries : 1,
                                                               .rest_cost = rest_cost}, to});
    newer.push_back(GlobalEntriesOf(*shrinks.back().sequence) - before);
  }
  if (active->recipe.policy->repeat() != nullptr) {
    const EngineTimes times = times_;
    const Clock::time_point began = Clock::now();
    PITH_RETURN_IF_ERROR(ReadAgain(source, *active));
    // All of it is the recipe's cost.
    const double seconds = SecondsSince(began);
    times_ = {.attention = times.attention, .policy = times.policy + seconds, .total = times.total + seconds};
  }
  // The source's entries are what the selections count from, so it goes last.
  std::stable_partition(shrinks.begin(), shrinks.end(), [&source](const Shrink& shrink) { return shrink.sequence != &source; });
  const Clock::time_point start = Clock::now();
  Status result;
  if (selects) result = ScoreAndKeepOnTeam(source, *active, std::max(active->recipe.num_sinks, 0), shrinks);
  for (const Shrink& shrink : shrinks) {
    if (!shrink.format || !result) continue;
    result = cache_->SetLow(shrink.sequence->cache_id, *shrink.format);
    if (result) result = DemoteAll(*shrink.sequence);
  }
  times_.policy += SecondsSince(start);
  for (const Shrink& shrink : shrinks) shrink.sequence->repeat.reset();  // of entries that may be gone
  if (!result) return tl::unexpected<Error>(result.error());
  for (size_t i = 0; i < targets.size(); ++i) {
    kept[i] = static_cast<double>(GlobalEntriesOf(sequences_.at(targets[i].sequence)) - newer[i]) / static_cast<double>(before);
  }
  return kept;
}

// The model's layer that is the i-th with a global cache.
int EngineImpl::LayerOf(int global_layer) const {
  return static_cast<int>(std::find(global_index_.begin(), global_index_.end(), global_layer) - global_index_.begin());
}

Result<std::vector<float>> EngineImpl::AttentionOutputs(SequenceId queries_of, SequenceId entries_of, int global_layer,
                                                        int num_queries) {
  Sequence& from = sequences_.at(queries_of);
  const Sequence& over = sequences_.at(entries_of);
  if (num_queries < 1 || num_queries > std::min(ring_window_, static_cast<int>(from.next_position))) {
    return InvalidArgument(fmt::format("the last {} queries are not remembered", num_queries));
  }
  const int layer = LayerOf(global_layer);
  const LayerShape& shape = model_->info().layers[static_cast<size_t>(layer)];
  std::vector<float> outputs(static_cast<size_t>(num_queries * shape.num_heads * shape.value_dim));
  context_->RunOnTeam([&](const Team& team) {
    ops_->WindowOutputs(from, over.cache_id, layer, global_layer, num_queries, outputs.data(), team);
  });
  return outputs;
}

std::vector<int32_t> EngineImpl::EntryPositions(SequenceId id, int global_layer, int kv_head) const {
  const HeadCache& head = std::as_const(*cache_).head(sequences_.at(id).cache_id, LayerOf(global_layer), kv_head);
  std::vector<int32_t> positions(static_cast<size_t>(head.num_entries()));
  head.ReadPositions(positions);
  return positions;
}

}  // namespace pith
