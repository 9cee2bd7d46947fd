// What the queries of a block paid, for recipes that observe them as they come.
#include <algorithm>
#include <numeric>
#include <utility>

#include "engine/layer_ops.h"

namespace pith {
namespace {

constexpr int kP = kPageEntries;
// Query rows whose probabilities are held at once while every query is observed.
constexpr int kObservedRows = 32;
// Pages whose statistics are asked for ahead.
constexpr int kPagesAhead = 4;
constexpr size_t kLine = 64;

}  // namespace

void LayerOps::PlanObserved(GroupWork& work, uint32_t needs) {
  if ((needs & kNeedEveryQuery) == 0) return;
  const auto num_heads = static_cast<size_t>(work.task.num_kv_heads);
  size_t total = 0;
  for (size_t h = 0; h < num_heads; ++h) total += static_cast<size_t>(work.heads[h].num_entries());
  float* at = work.observed_buffer.Floats(3 * total);
  work.observed.resize(num_heads);
  for (size_t h = 0; h < num_heads; ++h) {
    const auto n = static_cast<size_t>(work.heads[h].num_entries());
    work.observed[h] = {at, (needs & kNeedSquares) != 0 ? at + n : nullptr,
                        (needs & kNeedLargest) != 0 ? at + 2 * n : nullptr};
    at += 3 * n;
  }
  work.task.observed = work.observed.data();
  work.task.observe_seconds = &work.observe_seconds;
}

double LayerOps::observe_seconds() const {
  double seconds = 0;
  for (const auto& work : works_) seconds += work->observe_seconds;
  return seconds;
}

void LayerOps::AddMoments(const AttentionCall& call, const RowGroup& group, size_t index, int global_layer,
                          const Team& team) {
  const kernels::AttentionTask& task = works_[index]->task;
  const std::span<const int32_t> positions = works_[index]->positions;
  const Rotation& rotation = *model_.info().layers[static_cast<size_t>(call.cache_layer)].rotation;
  const int first = std::clamp(kUncountedQueries - positions.front(), 0, group.num_rows),
            count = group.num_rows - first;
  const auto dim = static_cast<size_t>(task.key_dim), factors = 2 * rotation.pairs.size();
  if (team.ith == 0) {
    const size_t rows = static_cast<size_t>(team.nth * kObservedRows) * dim;
    moment_scratch_ = moment_buffer_.Floats(rows + static_cast<size_t>(group.num_rows) * factors);
  }
  team.Sync();
  float* rows = moment_scratch_ + static_cast<size_t>(team.ith * kObservedRows) * dim;
  float* turns = moment_scratch_ + static_cast<size_t>(team.nth * kObservedRows) * dim;
  const auto turn = [&](int t) { return std::span(turns + static_cast<size_t>(t) * factors, factors); };
  for (int t = first + team.ith; t < group.num_rows; t += team.nth)
    rotation.Unturn(positions[static_cast<size_t>(t)], turn(t));
  team.Sync();
  for (int h = team.ith; h < task.num_heads; h += team.nth) {
    for (int from = 0; from < count; from += kObservedRows) {
      const int some = std::min(kObservedRows, count - from);
      for (int i = 0; i < some; ++i) {
        const int t = first + from + i;
        const float* query = task.queries + static_cast<size_t>(t) * task.query_token_stride +
                             static_cast<size_t>(h) * task.query_head_stride;
        float* row = std::copy_n(query, dim, rows + static_cast<size_t>(i) * dim) - dim;
        rotation.Apply(turn(t), row);
      }
      const int64_t before = positions.front() + first + from - kUncountedQueries;
      group.sequence->moments.Add(global_layer, h, before, rows, some, task.key_dim);
    }
  }
  team.Sync();
}

void LayerOps::FindProbabilities(const GroupWork& work, std::span<const HeadCache> heads, int from, int rows,
                                 const Team& team) {
  if (team.ith == 0) {
    const kernels::AttentionTask& task = work.task;
    const int heads_per_group = task.num_heads / task.num_kv_heads;
    window_task_ = task;
    window_task_.num_queries = rows;
    window_task_.queries = task.queries + static_cast<size_t>(from) * task.query_token_stride;
    window_task_.query_positions = task.query_positions + from;
    size_t total = 0;
    for (const HeadCache& head : heads) total += static_cast<size_t>(heads_per_group * rows * head.num_entries());
    float* at = probability_buffer_.Floats(total);
    for (size_t h = 0; h < heads.size(); ++h) {
      probabilities_[h] = at;
      at += static_cast<size_t>(heads_per_group * rows * heads[h].num_entries());
    }
  }
  team.Sync();
  kernels::RunProbabilities(window_task_, probabilities_.data(), team);
  team.Sync();
}

void LayerOps::Observe(int layer, std::span<const RowGroup> groups, const Team& team) {
  for (size_t i = 0; i < groups.size(); ++i) {
    if (groups[i].failed() || groups[i].sequence->setup->observed_needs == 0) continue;
    GroupWork& work = *works_[i];
    work.task.observed != nullptr ? ObserveGathered(layer, groups[i], work, team)
                                  : ObserveRows(layer, groups[i], work, team);
  }
  team.Sync();
}

void LayerOps::ObserveGathered(int layer, const RowGroup& group, GroupWork& work, const Team& team) {
  const std::span<HeadCache> heads = cache_.heads(group.sequence->cache_id, layer);
  // Where heads cannot be shared out evenly, stretches of them are: what a query does to one entry does not hang on
  // others.
  const size_t parts = heads.size() % static_cast<size_t>(team.nth) != 0 ? static_cast<size_t>(team.nth) : 1;
  for (size_t task = static_cast<size_t>(team.ith); task < heads.size() * parts;
       task += static_cast<size_t>(team.nth)) {
    const size_t h = task / parts;
    Observation seen{.layer = layer,
                     .kv_head = static_cast<int>(h),
                     .group = work.task.num_heads / work.task.num_kv_heads,
                     .num_queries = group.num_rows,
                     .query_positions = work.positions,
                     .positions = {}};
    ObservePages(heads[h], work.observed[h], task % parts, parts, seen, group.sequence->setup->active,
                 observe_buffers_[static_cast<size_t>(team.ith)]);
  }
}

void LayerOps::ObserveRows(int layer, const RowGroup& group, GroupWork& work, const Team& team) {
  const std::span<HeadCache> heads = cache_.heads(group.sequence->cache_id, layer);
  for (int from = 0; from < group.num_rows; from += kObservedRows) {
    const int rows = std::min(kObservedRows, group.num_rows - from);
    FindProbabilities(work, heads, from, rows, team);
    for (size_t h = static_cast<size_t>(team.ith); h < heads.size(); h += static_cast<size_t>(team.nth)) {
      Observation seen{.layer = layer,
                       .kv_head = static_cast<int>(h),
                       .group = work.task.num_heads / work.task.num_kv_heads,
                       .num_queries = rows,
                       .probabilities = probabilities_[h],
                       .query_positions = work.positions.subspan(static_cast<size_t>(from), static_cast<size_t>(rows)),
                       .positions = {}};
      ObserveHead(heads[h], seen, group.sequence->setup->active, observe_buffers_[static_cast<size_t>(team.ith)]);
    }
    team.Sync();
  }
}

// Statistics are brought up to date where they lie.
void LayerOps::ObservePages(HeadCache& head, const kernels::EntryAttention& received, size_t part, size_t num_parts,
                            Observation& seen, std::span<const ActiveRecipe> recipes, ObserveBuffers& buffers) {
  const int all = head.num_entries();
  const auto num_pages = (static_cast<size_t>(all) + kP - 1) / kP;
  const int begin = static_cast<int>(num_pages * part / num_parts) * kP;
  const int end = std::min(all, static_cast<int>(num_pages * (part + 1) / num_parts) * kP);
  const auto from = [](const float* statistic, int first) {
    return statistic == nullptr ? nullptr : statistic + first;
  };
  for (const ActiveRecipe& active : recipes) {
    const Policy& policy = *active.recipe.policy;
    if ((policy.needs() & kNeedEveryQuery) == 0) continue;
    std::vector<float*>& columns = buffers.column_pointers;
    columns.resize(static_cast<size_t>(active.num_columns));
    for (int first = begin; first < end; first += kP) {
      if (first + kPagesAhead * kP < end) {
        const std::byte* next = head.page_of(first + kPagesAhead * kP);
        const PageLayout& layout = head.layout_of(first + kPagesAhead * kP);
        for (size_t at = layout.position_offset; at < layout.page_bytes; at += kLine) __builtin_prefetch(next + at, 1);
      }
      // A shared page that cannot be copied keeps its old statistics: a fork under a full budget.
      if (!head.MakeWritable(first)) continue;
      const PageLayout& layout = head.layout_of(first);
      std::byte* page = head.page_of(first);
      for (size_t c = 0; c < columns.size(); ++c) {
        columns[c] = layout.column(page, active.first_column + static_cast<int>(c));
      }
      seen.num_entries = std::min(kP, end - first);
      seen.positions = {layout.positions(page), static_cast<size_t>(seen.num_entries)};
      seen.sum = from(received.sum, first);
      seen.squares = from(received.squares, first);
      seen.largest = from(received.largest, first);
      policy.Observe(seen, columns);
    }
  }
}

void LayerOps::ObserveHead(HeadCache& head, Observation& seen, std::span<const ActiveRecipe> recipes,
                           ObserveBuffers& buffers) {
  const auto n = static_cast<size_t>(head.num_entries());
  buffers.positions.resize(n);
  head.ReadPositions(buffers.positions);
  seen.num_entries = static_cast<int>(n);
  seen.positions = buffers.positions;
  for (const ActiveRecipe& active : recipes) {
    if ((active.recipe.policy->needs() & kNeedEveryQuery) == 0) continue;
    const auto num_columns = static_cast<size_t>(active.num_columns);
    buffers.columns.resize(n * num_columns);
    buffers.column_pointers.resize(num_columns);
    for (size_t c = 0; c < num_columns; ++c) {
      buffers.column_pointers[c] = buffers.columns.data() + c * n;
      head.ReadColumn(active.first_column + static_cast<int>(c), {buffers.column_pointers[c], n});
    }
    active.recipe.policy->Observe(seen, buffers.column_pointers);
    for (size_t c = 0; c < num_columns; ++c) {
      // As in ObservePages.
      (void)head.WriteColumn(active.first_column + static_cast<int>(c), {buffers.column_pointers[c], n});
    }
  }
}

void LayerOps::ObserveRepeat(int layer, int global_layer, const RowGroup& group, size_t index,
                             const RepeatObserver& observer, const Team& team) {
  const GroupWork& work = *works_[index];
  const std::span<const HeadCache> heads = std::as_const(cache_).heads(group.sequence->cache_id, layer);
  for (int from = 0; from < group.num_rows; from += kObservedRows) {
    const int rows = std::min(kObservedRows, group.num_rows - from);
    FindProbabilities(work, heads, from, rows, team);
    for (int h = team.ith; h < static_cast<int>(heads.size()); h += team.nth) {
      ObserveChunk(work, h, heads[static_cast<size_t>(h)], from, rows, layer, global_layer, observer);
    }
    team.Sync();
  }
}

// A softmax over some of the entries is the one over all, divided by what those entries get of it.
void LayerOps::ObserveChunk(const GroupWork& work, int head_index, const HeadCache& head, int from, int rows, int layer,
                            int global_layer, const RepeatObserver& observer) {
  HeadBuffers& buffers = buffers_[static_cast<size_t>(head_index)];
  const auto n = static_cast<size_t>(head.num_entries());
  buffers.positions.resize(n);
  head.ReadPositions(buffers.positions);
  const auto index_of = [&](int32_t position) {
    return static_cast<size_t>(std::lower_bound(buffers.positions.begin(), buffers.positions.end(), position) -
                               buffers.positions.begin());
  };
  const RepeatPass& pass = observer.pass;
  const size_t prefix = index_of(pass.prefix_end), begin = index_of(pass.from), end = index_of(pass.to),
               own = index_of(pass.start);
  if (begin == end) return;
  const size_t own_end = pass.guided ? own : n;
  const int group = work.task.num_heads / work.task.num_kv_heads;
  const auto num_rows = static_cast<size_t>(group * rows);
  buffers.chunk.resize(num_rows * (end - begin));
  for (size_t row = 0; row < num_rows; ++row) {
    const float* from_row = probabilities_[static_cast<size_t>(head_index)] + row * n;
    const double mass = std::accumulate(from_row, from_row + prefix, 0.0) +
                        std::accumulate(from_row + begin, from_row + end, 0.0) +
                        std::accumulate(from_row + own, from_row + own_end, 0.0);
    const auto scale = static_cast<float>(mass > 0 ? 1 / mass : 0);
    std::transform(from_row + begin, from_row + end, buffers.chunk.data() + row * (end - begin),
                   [scale](float p) { return p * scale; });
  }
  buffers.column_pointers.clear();
  for (size_t c = 0; c < observer.policy.columns().size(); ++c) {
    buffers.column_pointers.push_back(observer.columns.column(global_layer, head_index, static_cast<int>(c)).data() +
                                      begin);
  }
  observer.policy.Observe(
      Observation{.layer = layer,
                  .kv_head = head_index,
                  .group = group,
                  .num_queries = rows,
                  .num_entries = static_cast<int>(end - begin),
                  .probabilities = buffers.chunk.data(),
                  .query_positions = work.positions.subspan(static_cast<size_t>(from), static_cast<size_t>(rows)),
                  .positions = std::span(buffers.positions).subspan(begin, end - begin)},
      buffers.column_pointers);
}

}  // namespace pith
