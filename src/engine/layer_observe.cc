// What the queries of a block paid, for recipes that observe them as they come.
#include <algorithm>
#include <numeric>
#include <utility>

#include "cache/page_entries.h"
#include "engine/layer_ops.h"
#include "engine/statistics_undo.h"

namespace pith {
namespace {

// Query rows whose probabilities are held at once while every query is observed.
constexpr int kObservedRows = 32;
// Pages whose statistics are asked for ahead.
constexpr int kPagesAhead = 4;
constexpr size_t kLine = 64;

// An observation's rows and positions, in the order of time; what it shows then is held by the two vectors.
void SortRows(std::span<const int32_t> order, Observation& seen, std::vector<int32_t>& positions,
              std::vector<float>& rows) {
  const size_t n = order.size(), count = static_cast<size_t>(seen.group) * static_cast<size_t>(seen.num_queries);
  rows.resize(count * n);
  for (size_t row = 0; row < count; ++row) {
    for (size_t i = 0; i < n; ++i) rows[row * n + i] = seen.probabilities[row * n + static_cast<size_t>(order[i])];
  }
  std::ranges::sort(positions);
  seen.probabilities = rows.data();
}

}  // namespace

void LayerOps::PlanObserved(GroupWork& work, uint32_t needs) {
  if ((needs & kNeedEveryQuery) == 0 || (needs & kNeedRows) != 0) return;
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
  team.One([&] {
    const size_t rows = static_cast<size_t>(team.nth * kObservedRows) * dim;
    moment_scratch_ = moment_buffer_.Floats(rows + static_cast<size_t>(group.num_rows) * factors);
  });
  float* rows = moment_scratch_ + static_cast<size_t>(team.ith * kObservedRows) * dim;
  float* turns = moment_scratch_ + static_cast<size_t>(team.nth * kObservedRows) * dim;
  const auto turn = [&](int t) { return std::span(turns + static_cast<size_t>(t) * factors, factors); };
  team.All([&] {
    for (int t = first + team.ith; t < group.num_rows; t += team.nth)
      rotation.Unturn(positions[static_cast<size_t>(t)], turn(t));
  });
  for (int h = team.ith; h < task.num_heads; h += team.nth) {
    if (group.undo != nullptr) {
      group.undo->SaveMoments(group.sequence->moments, global_layer, h,
                              std::max(positions.front() + first - kUncountedQueries, 0), count);
    }
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
  team.All([&] { kernels::RunProbabilities(window_task_, probabilities_.data(), team); });
}

void LayerOps::Observe(int layer, int global_layer, std::span<const RowGroup> groups, const Team& team) {
  for (size_t i = 0; i < groups.size(); ++i) {
    if (groups[i].failed() || groups[i].sequence->setup->observed_needs == 0) continue;
    GroupWork& work = *works_[i];
    work.task.observed != nullptr ? ObserveGathered(layer, global_layer, groups[i], work, team)
                                  : ObserveRows(layer, global_layer, groups[i], work, team);
  }
  team.Sync();
}

void LayerOps::ObserveGathered(int layer, int global_layer, const RowGroup& group, GroupWork& work, const Team& team) {
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
                 {group.undo, global_layer, h}, observe_buffers_[static_cast<size_t>(team.ith)]);
  }
}

void LayerOps::ObserveRows(int layer, int global_layer, const RowGroup& group, GroupWork& work, const Team& team) {
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
                       .positions = {},
                       .first_of_chunk = work.positions.front()};
      // Saved is what was there before the first rows.
      ObserveHead(heads[h], seen, group.sequence->setup->active, {from == 0 ? group.undo : nullptr, global_layer, h},
                  observe_buffers_[static_cast<size_t>(team.ith)]);
    }
    team.Sync();
  }
}

// Statistics are brought up to date where they lie.
void LayerOps::ObservePages(HeadCache& head, const kernels::EntryAttention& received, size_t part, size_t num_parts,
                            Observation& seen, std::span<const ActiveRecipe> recipes, const SavedHead& saved,
                            ObserveBuffers& buffers) {
  const int all = head.num_entries();
  const auto num_pages = (static_cast<size_t>(all) + kP - 1) / kP;
  const int begin = static_cast<int>(num_pages * part / num_parts) * kP;
  const int end = std::min(all, static_cast<int>(num_pages * (part + 1) / num_parts) * kP);
  const auto from = [](const float* statistic, int first) {
    return statistic == nullptr ? nullptr : statistic + first;
  };
  size_t before = 0;  // columns of the recipes before
  for (const ActiveRecipe& active : recipes) {
    const Policy& policy = *active.recipe.policy;
    if ((policy.needs() & kNeedEveryQuery) == 0) continue;
    std::vector<float*>& columns = buffers.column_pointers;
    columns.resize(static_cast<size_t>(active.num_columns));
    for (int first = begin; first < end; first += kP) {
      if (first + kPagesAhead * kP < end) {
        const std::byte* next = head.page_of(first + kPagesAhead * kP);
        const PageLayout& layout = head.layout_of(first + kPagesAhead * kP);
        for (size_t at = layout.position_offset; at < layout.state_end(); at += kLine) __builtin_prefetch(next + at, 1);
      }
      const auto count = static_cast<size_t>(std::min(kP, end - first));
      for (size_t c = 0; saved.undo != nullptr && c < columns.size(); ++c) {
        const float* column =
            head.layout_of(first).column(head.page_of(first), active.first_column + static_cast<int>(c));
        saved.undo->SaveColumn(saved.global_layer, saved.head, before + c, first, {column, count});
      }
      // A shared page that cannot be copied keeps its old statistics: a fork under a full budget.
      if (!head.MakeWritable(first)) continue;
      const PageLayout& layout = head.layout_of(first);
      std::byte* page = head.page_of(first);
      for (size_t c = 0; c < columns.size(); ++c) {
        columns[c] = layout.column(page, active.first_column + static_cast<int>(c));
      }
      seen.num_entries = static_cast<int>(count);
      seen.positions = {layout.positions(page), static_cast<size_t>(seen.num_entries)};
      seen.sum = from(received.sum, first);
      seen.squares = from(received.squares, first);
      seen.largest = from(received.largest, first);
      policy.Observe(seen, columns);
    }
    before += columns.size();
  }
}

void LayerOps::ObserveHead(HeadCache& head, Observation& seen, std::span<const ActiveRecipe> recipes,
                           const SavedHead& saved, ObserveBuffers& buffers) {
  const auto n = static_cast<size_t>(head.num_entries());
  buffers.positions.resize(n);
  head.ReadPositions(buffers.positions);
  seen.num_entries = static_cast<int>(n);
  seen.positions = buffers.positions;
  const std::vector<int32_t> order = head.TimeOrder();
  std::vector<float> sorted;
  if (!order.empty()) SortRows(order, seen, buffers.positions, sorted);
  const auto swap = [&](float* column, bool to_time) {
    if (order.empty()) return;
    const std::vector<float> before(column, column + n);
    for (size_t i = 0; i < n; ++i) {
      const auto at = static_cast<size_t>(order[i]);
      (to_time ? column[i] : column[at]) = to_time ? before[at] : before[i];
    }
  };
  size_t before = 0;  // columns of the recipes before
  for (const ActiveRecipe& active : recipes) {
    if ((active.recipe.policy->needs() & kNeedEveryQuery) == 0) continue;
    const auto num_columns = static_cast<size_t>(active.num_columns);
    buffers.columns.resize(n * num_columns);
    buffers.column_pointers.resize(num_columns);
    for (size_t c = 0; c < num_columns; ++c) {
      buffers.column_pointers[c] = buffers.columns.data() + c * n;
      head.ReadColumn(active.first_column + static_cast<int>(c), {buffers.column_pointers[c], n});
      if (saved.undo != nullptr) {
        saved.undo->SaveColumn(saved.global_layer, saved.head, before + c, 0, {buffers.column_pointers[c], n});
      }
      swap(buffers.column_pointers[c], true);
    }
    active.recipe.policy->Observe(seen, buffers.column_pointers);
    for (size_t c = 0; c < num_columns; ++c) {
      swap(buffers.column_pointers[c], false);
      // As in ObservePages.
      (void)head.WriteColumn(active.first_column + static_cast<int>(c), {buffers.column_pointers[c], n});
    }
    before += num_columns;
  }
}

uint32_t LayerOps::RepeatNeeds(const Policy& policy) {
  return ObservesRepeat(policy) ? kNeedEveryQuery | kNeedLargest | (policy.needs() & (kNeedSquares | kNeedRows)) : 0;
}

// Where every token's entry is in its place, pages can be told apart by positions.
void LayerOps::LimitToChunk(std::span<const HeadCache> heads, const RepeatPass& pass, GroupWork& work) {
  const auto end = static_cast<int>(work.positions.back()) + 1;
  const bool in_place = std::ranges::all_of(
      heads, [end](const HeadCache& head) { return head.num_entries() == end && head.num_lower_entries() == 0; });
  if (!in_place || pass.guided) return;
  if (pass.SeesAll()) {
    work.first_of_chunk = pass.from;
    return;
  }
  const bool begins_page = pass.from <= pass.prefix_end || pass.from % kP == 0;
  const auto is_plain = [](const HeadCache& head) { return head.num_low_entries() == 0; };
  if (pass.whole || !begins_page || !std::ranges::all_of(heads, is_plain)) return;
  for (size_t h = 0; h < heads.size(); ++h) {
    const HeadCache& head = heads[h];
    kernels::Segment* segments = &work.segments[h * HeadCache::kMaxSegments];
    size_t count = 0;
    const auto add = [&](int first, int last) {
      if (first < last) segments[count++] = {&head.layout(), head.pages().data() + first / kP, last - first};
    };
    // A pass's own entries may begin within a page.
    const int own = pass.start / kP * kP, from = pass.from <= pass.prefix_end ? 0 : pass.from;
    if (from > 0) add(0, std::min(pass.prefix_end, from));
    add(from, std::min(pass.to, own));
    add(pass.to > own ? std::max(own, from) : own, end);
    work.heads[h].segments = {segments, count};
  }
  work.first_of_chunk = pass.from <= pass.prefix_end ? pass.from : pass.prefix_end;
}

void LayerOps::ObserveGatheredChunk(const GroupWork& work, int head_index, int rows, int layer, int global_layer,
                                    const RepeatObserver& observer) {
  HeadBuffers& buffers = buffers_[static_cast<size_t>(head_index)];
  const RepeatPass& pass = observer.pass;
  buffers.positions.resize(static_cast<size_t>(pass.to - pass.from));
  std::iota(buffers.positions.begin(), buffers.positions.end(), pass.from);
  buffers.column_pointers.clear();
  for (size_t c = 0; c < observer.policy.columns().size(); ++c) {
    buffers.column_pointers.push_back(
        observer.columns.ColumnFrom(global_layer, head_index, static_cast<int>(c), pass.from));
  }
  const kernels::EntryAttention& seen = work.observed[static_cast<size_t>(head_index)];
  const auto from = [&work](const float* statistic) {
    return statistic == nullptr ? nullptr : statistic + work.first_of_chunk;
  };
  observer.policy.Observe(Observation{.layer = layer,
                                      .kv_head = head_index,
                                      .group = work.task.num_heads / work.task.num_kv_heads,
                                      .num_queries = rows,
                                      .num_entries = pass.to - pass.from,
                                      .query_positions = work.positions,
                                      .positions = buffers.positions,
                                      .sum = from(seen.sum),
                                      .squares = from(seen.squares),
                                      .largest = from(seen.largest)},
                          buffers.column_pointers);
}

void LayerOps::ObserveRepeat(int layer, int global_layer, const RowGroup& group, size_t index,
                             const RepeatObserver& observer, const Team& team) {
  const GroupWork& work = *works_[index];
  const std::span<const HeadCache> heads = std::as_const(cache_).heads(group.sequence->cache_id, layer);
  if (work.task.observed != nullptr) {
    for (int h = team.ith; h < static_cast<int>(heads.size()); h += team.nth) {
      ObserveGatheredChunk(work, h, group.num_rows, layer, global_layer, observer);
    }
    return team.Sync();
  }
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
  if (!head.TimeOrder().empty()) return ObserveScattered(work, head_index, from, rows, layer, global_layer, observer);
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
    buffers.column_pointers.push_back(
        observer.columns.ColumnFrom(global_layer, head_index, static_cast<int>(c), static_cast<int>(begin)));
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

// The same where entries stand in another order than that of time.
void LayerOps::ObserveScattered(const GroupWork& work, int head_index, int from, int rows, int layer, int global_layer,
                                const RepeatObserver& observer) {
  HeadBuffers& buffers = buffers_[static_cast<size_t>(head_index)];
  const RepeatPass& pass = observer.pass;
  const size_t n = buffers.positions.size();
  std::vector<size_t> chunk, softmax;  // indices of the chunk's entries, and of all that share a softmax
  std::vector<int32_t> positions;
  for (size_t i = 0; i < n; ++i) {
    const int32_t position = buffers.positions[i];
    const bool inside = position >= pass.from && position < pass.to;
    if (inside) chunk.push_back(i), positions.push_back(position);
    if (inside || position < pass.prefix_end || (position >= pass.start && !pass.guided)) softmax.push_back(i);
  }
  if (chunk.empty()) return;
  const int group = work.task.num_heads / work.task.num_kv_heads;
  const auto num_rows = static_cast<size_t>(group * rows);
  buffers.chunk.resize(num_rows * chunk.size());
  for (size_t row = 0; row < num_rows; ++row) {
    const float* from_row = probabilities_[static_cast<size_t>(head_index)] + row * n;
    double mass = 0;
    for (const size_t i : softmax) mass += static_cast<double>(from_row[i]);
    const auto scale = static_cast<float>(mass > 0 ? 1 / mass : 0);
    for (size_t c = 0; c < chunk.size(); ++c) buffers.chunk[row * chunk.size() + c] = from_row[chunk[c]] * scale;
  }
  const size_t num_columns = observer.policy.columns().size();
  const auto at = [&](int column, size_t entry) {
    return observer.columns.ColumnFrom(global_layer, head_index, column, static_cast<int>(entry));
  };
  std::vector<std::vector<float>> columns(num_columns, std::vector<float>(chunk.size()));
  buffers.column_pointers.clear();
  for (size_t c = 0; c < num_columns; ++c) {
    for (size_t i = 0; i < chunk.size(); ++i) columns[c][i] = *at(static_cast<int>(c), chunk[i]);
    buffers.column_pointers.push_back(columns[c].data());
  }
  observer.policy.Observe(
      Observation{.layer = layer,
                  .kv_head = head_index,
                  .group = group,
                  .num_queries = rows,
                  .num_entries = static_cast<int>(chunk.size()),
                  .probabilities = buffers.chunk.data(),
                  .query_positions = work.positions.subspan(static_cast<size_t>(from), static_cast<size_t>(rows)),
                  .positions = positions},
      buffers.column_pointers);
  for (size_t c = 0; c < num_columns; ++c) {
    for (size_t i = 0; i < chunk.size(); ++i) *at(static_cast<int>(c), chunk[i]) = columns[c][i];
  }
}

}  // namespace pith
