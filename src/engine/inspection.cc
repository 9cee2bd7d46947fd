#include "engine/inspection.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "engine/cache_formats.h"
#include "engine/entry_counts.h"

namespace pith {
namespace {

bool HasLayer(const EngineCore& core, int global_layer) {
  return global_layer >= 0 && global_layer < core.layers.count();
}

std::span<const HeadCache> HeadsOf(const EngineCore& core, const Sequence& sequence, int global_layer) {
  if (!HasLayer(core, global_layer)) return {};
  return std::as_const(*core.cache).heads(sequence.cache_id, core.layers.LayerOf(global_layer));
}

// Null: there is none.
const HeadCache* HeadOf(const EngineCore& core, const Sequence& sequence, int global_layer, int kv_head) {
  const std::span<const HeadCache> heads = HeadsOf(core, sequence, global_layer);
  return kv_head >= 0 && static_cast<size_t>(kv_head) < heads.size() ? &heads[static_cast<size_t>(kv_head)] : nullptr;
}

double ShareOf(int64_t entries, int64_t seen) {
  return seen > 0 ? static_cast<double>(entries) / static_cast<double>(seen) : 1;
}

// Keys, or values, of a head in the order in which they came: [entries, channels].
std::vector<float> RowsInTime(const HeadCache& head, bool values) {
  const auto dim = static_cast<size_t>(values ? head.layout().value_dim : head.layout().key_dim);
  std::vector<float> rows(static_cast<size_t>(head.num_entries()) * dim);
  values ? head.ReadValues(rows.data()) : head.ReadKeys(rows.data());
  const std::vector<int32_t> order = head.TimeOrder();
  if (order.empty()) return rows;
  std::vector<float> sorted;
  sorted.reserve(rows.size());
  for (const int32_t entry : order) {
    const auto row = rows.begin() + static_cast<ptrdiff_t>(static_cast<size_t>(entry) * dim);
    sorted.insert(sorted.end(), row, row + static_cast<ptrdiff_t>(dim));
  }
  return sorted;
}

// False: there is nothing by which its recipe could judge entries now.
bool CanJudge(const Sequence& sequence) {
  const Policy& policy = sequence.setup->policy();
  // What a second reading finds is not there any more, unless it lies in the pages.
  if (policy.keeps_everything() || (policy.repeat() != nullptr && !sequence.setup->rereads_blocks())) return false;
  return sequence.queries.window() == 0 || sequence.known_queries() > 0;
}

}  // namespace

double KeptBytes(const EngineCore& core, const Sequence& sequence) {
  return ContentShare(*core.cache, sequence.cache_id, core.layers.layers(), sequence.next_position);
}

std::vector<float> EntryRows(const EngineCore& core, const Sequence& sequence, int global_layer, bool values) {
  std::vector<float> all;
  for (const HeadCache& head : HeadsOf(core, sequence, global_layer)) {
    const std::vector<float> rows = RowsInTime(head, values);
    all.insert(all.end(), rows.begin(), rows.end());
  }
  return all;
}

std::vector<int32_t> EntryPositions(const EngineCore& core, const Sequence& sequence, int global_layer, int kv_head) {
  const HeadCache* const head = HeadOf(core, sequence, global_layer, kv_head);
  if (head == nullptr) return {};
  std::vector<int32_t> positions(static_cast<size_t>(head->num_entries()));
  head->ReadPositions(positions);
  std::ranges::sort(positions);
  return positions;
}

std::vector<float> Keys(const EngineCore& core, const Sequence& sequence, int global_layer, int kv_head, int32_t from,
                        int32_t to) {
  const HeadCache* const head = HeadOf(core, sequence, global_layer, kv_head);
  if (head == nullptr) return {};
  const auto dim = static_cast<size_t>(head->layout().key_dim);
  const std::vector<float> keys = RowsInTime(*head, false);
  const auto first = static_cast<size_t>(EntriesBefore(*head, from)),
             last = static_cast<size_t>(EntriesBefore(*head, to));
  return {keys.begin() + static_cast<std::ptrdiff_t>(first * dim),
          keys.begin() + static_cast<std::ptrdiff_t>(std::max(first, last) * dim)};
}

LayerQueries Queries(const EngineCore& core, const Sequence& sequence, int global_layer, int num_queries) {
  if (!HasLayer(core, global_layer)) return {};
  const int layer = core.layers.LayerOf(global_layer);
  const LayerShape& shape = core.shape(layer);
  const LayerOps::LayerParams& params = core.ops->params(layer);
  LayerQueries queries{
      .num_heads = shape.num_heads, .dim = shape.key_dim, .scale = params.scale, .soft_cap = params.soft_cap};
  const int count = std::clamp(num_queries, 0, sequence.known_queries());
  const auto width = static_cast<size_t>(shape.num_heads * shape.key_dim);
  queries.rows.resize(static_cast<size_t>(count) * width);
  sequence.ReadQueries(global_layer, count, width, queries.rows.data());
  return queries;
}

Result<std::vector<float>> AttentionOutputs(EngineCore& core, const Sequence& queries_of, const Sequence& entries_of,
                                            int global_layer, int num_queries) {
  if (num_queries < 1 || num_queries > queries_of.known_queries()) {
    return InvalidArgument(fmt::format("the last {} queries are not remembered", num_queries));
  }
  if (!HasLayer(core, global_layer)) return InvalidArgument(fmt::format("there is no global layer {}", global_layer));
  const int layer = core.layers.LayerOf(global_layer);
  const LayerShape& shape = core.shape(layer);
  std::vector<float> outputs(static_cast<size_t>(num_queries * shape.num_heads * shape.value_dim));
  core.context->RunOnTeam([&](const Team& team) {
    core.ops->WindowOutputs(queries_of, entries_of, layer, global_layer, num_queries, outputs.data(), team);
  });
  return outputs;
}

Result<std::vector<std::vector<EntryView>>> EntriesAt(EngineCore& core, const Sequence& sequence, int32_t position) {
  if (position < 0 || position >= sequence.next_position) {
    return InvalidArgument(
        fmt::format("position {} is none of the {} that the sequence has read", position, sequence.next_position));
  }
  const ActiveRecipe& active = sequence.setup->active.front();
  const EntryGuard guard{.num_sinks = active.recipe.num_running_sinks};
  std::vector<LayerScores> scores;
  bool is_judged = CanJudge(sequence);
  if (is_judged) {
    scores.resize(static_cast<size_t>(core.layers.count()));
    core.context->RunOnTeam([&](const Team& team) {
      for (int global = 0; global < core.layers.count(); ++global) {
        core.ops->Score(sequence, core.layers.LayerOf(global), global, core.layers.count(), active, guard, team,
                        scores[static_cast<size_t>(global)]);
        if (!core.ops->score_failed()) continue;
        if (team.ith == 0) is_judged = false;
        return;
      }
    });
  }
  std::vector<std::vector<EntryView>> views(static_cast<size_t>(core.layers.count()));
  std::vector<int32_t> positions;
  for (int global = 0; global < core.layers.count(); ++global) {
    const std::span<const HeadCache> heads =
        std::as_const(*core.cache).heads(sequence.cache_id, core.layers.LayerOf(global));
    for (size_t h = 0; h < heads.size(); ++h) {
      EntryView& view = views[static_cast<size_t>(global)].emplace_back();
      positions.resize(static_cast<size_t>(heads[h].num_entries()));
      heads[h].ReadPositions(positions);
      const auto found = std::ranges::find(positions, position);
      if (found == positions.end()) continue;
      const PageLayout& layout = heads[h].layout_of(static_cast<int>(found - positions.begin()));
      view.held = true;
      view.format = layout.format;
      view.key_channels = layout.key_dim;
      view.pinned = guard.Guards(sequence, position);
      if (!is_judged) continue;
      // Scores stand in the order of time.
      const std::vector<float>& of_head = scores[static_cast<size_t>(global)].heads[h];
      const auto before = std::ranges::count_if(positions, [position](int32_t other) { return other < position; });
      const float score = of_head[static_cast<size_t>(before)];
      view.score = score;
      view.rank = static_cast<float>(std::ranges::count_if(of_head, [score](float other) { return other < score; })) /
                  static_cast<float>(of_head.size());
    }
  }
  return views;
}

std::span<const float> LogitsOf(const EngineCore& core, const Sequence& sequence) {
  if (!sequence.kept_logits.empty()) return sequence.kept_logits;
  return sequence.logits_row >= 0 ? core.context->logits(sequence.logits_row) : std::span<const float>();
}

KvStats StatsOf(const EngineCore& core, const SequenceTable& table) {
  KvStats stats;
  ReadLedger(*core.ledger, stats);
  table.ForEach([&](const Sequence& sequence) {
    stats.entries += GlobalEntriesOf(core, sequence);
    stats.entries_seen += sequence.entries_seen;
  });
  stats.kept_fraction = ShareOf(stats.entries, stats.entries_seen);
  stats.promised_bytes = core.ledger->limit_bytes() - core.ledger->used_bytes() - core.ledger->uncommitted_bytes();
  stats.keep_entries = core.plan.keep_entries;
  stats.block_tokens = core.plan.block_tokens;
  stats.format = core.default_setup->turn_format;
  return stats;
}

SequenceStats StatsOf(const EngineCore& core, const Sequence& sequence) {
  SequenceStats stats;
  stats.used_bytes = sequence.account->used_bytes();
  stats.floor_bytes = sequence.floor_bytes;
  stats.ceiling_bytes = sequence.ceiling_bytes;
  stats.entries = GlobalEntriesOf(core, sequence);
  stats.entries_seen = sequence.entries_seen;
  stats.kept_fraction = ShareOf(stats.entries, stats.entries_seen);
  stats.keep_entries = sequence.share.keep_entries;
  stats.num_tokens = sequence.next_position;
  stats.num_pinned = static_cast<int>(sequence.num_pinned());
  const SequenceSetup& setup = *sequence.setup;
  // A recipe may have converted what stays (format=auto).
  stats.format = setup.converts_turns() ? setup.turn_format : core.cache->layout(sequence.cache_id).full();
  stats.recipe = setup.recipe.text;
  return stats;
}

}  // namespace pith
