#include "engine/layer_ops.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <utility>

#include "base/check.h"
#include "host/halves.h"
#include "kernels/triangles.h"

namespace pith {
namespace {

constexpr int kP = kPageEntries;
// Query rows whose probabilities are held at once while every query is observed.
constexpr int kObservedRows = 32;
// Pages whose statistics are asked for ahead.
constexpr int kPagesAhead = 4;
constexpr size_t kLine = 64;
// New entries whose value norms are one task.
constexpr size_t kNormStretch = 64;

}  // namespace

LayerOps::LayerOps(const HostModel& model, KvCache& cache)
    : model_(model), cache_(cache), params_(model.info().layers.size()), projections_(model) {
  int most_heads = 0;
  for (const CacheLayer& layer : cache.layers()) most_heads = std::max(most_heads, layer.num_kv_heads);
  buffers_.resize(static_cast<size_t>(most_heads));
  head_inputs_.resize(static_cast<size_t>(most_heads));
  probabilities_.resize(static_cast<size_t>(most_heads));
}

void LayerOps::DescribeHeads(std::span<HeadCache> heads, std::vector<kernels::Segment>& segments,
                             std::vector<kernels::HeadEntries>& entries) {
  segments.resize(std::max(segments.size(), heads.size() * HeadCache::kMaxSegments));
  entries.resize(std::max(entries.size(), heads.size()));
  for (size_t h = 0; h < heads.size(); ++h) {
    kernels::Segment* first = &segments[h * HeadCache::kMaxSegments];
    entries[h].segments = {first, static_cast<size_t>(heads[h].Describe(first))};
  }
}

void LayerOps::BeginLayer() {
  tasks_.clear();
  for (const auto& work : works_) work->observe_seconds = 0;
}

Status LayerOps::Prepare(const AttentionCall& call, const RowGroup& group, size_t index, std::span<const int32_t> positions,
                         int global_layer, uint32_t observed, int num_parts) {
  const int layer = call.cache_layer;
  const LayerShape& shape = model_.info().layers[static_cast<size_t>(layer)];
  params_[static_cast<size_t>(layer)] = {call.scale, call.soft_cap, call.sinks, call.alibi_slopes};
  while (works_.size() <= index) works_.push_back(std::make_unique<GroupWork>());
  GroupWork& work = *works_[index];
  const auto row = static_cast<size_t>(group.first_row);
  work.positions = positions.subspan(row, static_cast<size_t>(group.num_rows));
  const std::span<HeadCache> heads = cache_.heads(group.sequence->cache_id, layer);
  if (call.first) {
    for (HeadCache& head : heads) PITH_RETURN_IF_ERROR(head.Extend(group.num_rows));
    for (HeadCache& head : heads) head.Commit(group.num_rows);
  }
  DescribeHeads(heads, work.segments, work.heads);

  kernels::AttentionTask& task = work.task;
  task = kernels::AttentionTask{};
  task.num_queries = group.num_rows;
  task.num_parts = num_parts;
  task.num_heads = shape.num_heads;
  task.num_kv_heads = shape.num_kv_heads;
  task.key_dim = shape.key_dim;
  task.value_dim = shape.value_dim;
  task.queries = call.queries + row * call.query_token_stride;
  task.query_token_stride = call.query_token_stride;
  task.query_head_stride = call.query_head_stride;
  task.query_positions = work.positions.data();
  task.heads = work.heads.data();
  task.scale = call.scale;
  task.soft_cap = call.soft_cap;
  task.alibi_slopes = call.alibi_slopes;
  task.sinks = call.sinks;
  task.mask = shape.kind == LayerKind::kWindow  ? kernels::MaskKind::kWindow
              : shape.kind == LayerKind::kChunk ? kernels::MaskKind::kChunk
                                                : kernels::MaskKind::kCausal;
  task.window = model_.info().window;
  task.output = call.output + row * call.output_token_stride;
  task.output_token_stride = call.output_token_stride;
  task.output_head_stride = call.output_head_stride;
  const bool prunes = group.sequence->pruner != nullptr && global_layer >= 0;
  work.pruned = PrunedCall{.num_sparse_rows = prunes ? group.num_sparse_rows : 0, .layer = global_layer};
  for (const HeadCache& head : heads) work.pruned.complete &= head.num_entries() == group.sequence->next_position;
  work.observe_seconds = 0;
  // Pruned rows leave no weights behind: Observe() computes them.
  if (work.pruned.num_sparse_rows > 0) return {};
  PlanObserved(work, observed);
  tasks_.push_back(task);
  return {};
}

void LayerOps::EndPrepare(int num_parts) {
  attention_scratch_ = attention_buffer_.Bytes(kernels::AttentionScratchBytes(tasks_, num_parts));
  observe_buffers_.resize(std::max(observe_buffers_.size(), static_cast<size_t>(num_parts)));
}

void LayerOps::PlanObserved(GroupWork& work, uint32_t needs) {
  if ((needs & kNeedEveryQuery) == 0) return;
  const auto num_heads = static_cast<size_t>(work.task.num_kv_heads);
  size_t total = 0;
  for (size_t h = 0; h < num_heads; ++h) total += static_cast<size_t>(work.heads[h].num_entries());
  float* at = work.observed_buffer.Floats(3 * total);
  work.observed.resize(num_heads);
  for (size_t h = 0; h < num_heads; ++h) {
    const auto n = static_cast<size_t>(work.heads[h].num_entries());
    work.observed[h] = {at, (needs & kNeedSquares) != 0 ? at + n : nullptr, (needs & kNeedLargest) != 0 ? at + 2 * n : nullptr};
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

void LayerOps::Attend(std::span<const RowGroup> groups, const Team& team) {
  if (!tasks_.empty()) kernels::RunAttention(tasks_, attention_scratch_, team);
  for (size_t i = 0; i < groups.size(); ++i) {
    if (groups[i].failed() || works_[i]->pruned.num_sparse_rows == 0) continue;
    groups[i].sequence->pruner->Run(works_[i]->task, works_[i]->pruned, team);
  }
}

void LayerOps::Append(const AttentionCall& call, const RowGroup& group, size_t index, const Team& team) {
  const int num_kv_heads = works_[index]->task.num_kv_heads;
  const std::span<const int32_t> positions = works_[index]->positions;
  const std::span<HeadCache> heads = cache_.heads(group.sequence->cache_id, call.cache_layer);
  // Work items are (kv head, page touched by the block), dealt round robin.
  int item = static_cast<int>(index);
  for (int h = 0; h < num_kv_heads; ++h) {
    HeadCache& head = heads[static_cast<size_t>(h)];
    const int end = head.num_entries(), begin = end - group.num_rows;
    for (int at = begin; at < end; item++) {
      const int slot = at % kP, count = std::min(kP - slot, end - at);
      if (item % team.nth == team.ith) {
        const size_t row = static_cast<size_t>(group.first_row + at - begin);
        kernels::WriteEntriesF16(head.layout(), head.page_of(at), slot, count,
                                 call.keys + row * call.key_token_stride + static_cast<size_t>(h) * call.key_head_stride,
                                 call.key_token_stride,
                                 call.values + row * call.value_token_stride + static_cast<size_t>(h) * call.value_head_stride,
                                 call.value_token_stride, positions.data() + (at - begin));
        for (const auto& [column, initial] : group.sequence->setup->column_initials) {
          if (column < head.layout().num_columns) std::fill_n(head.layout().column(head.page_of(at), column) + slot, count, initial);
        }
      }
      at += count;
    }
  }
}

bool LayerOps::Demote(int cache_id, int layer, const Team& team) {
  bool done = true;
  if (cache_.layers()[static_cast<size_t>(layer)].num_kv_heads == 0) return done;
  const std::span<HeadCache> heads = cache_.heads(cache_id, layer);
  for (size_t h = static_cast<size_t>(team.ith); h < heads.size(); h += static_cast<size_t>(team.nth)) {
    done = heads[h].Demote(0).has_value() && done;
  }
  return done;
}

void LayerOps::KeepQueries(const AttentionCall& call, const RowGroup& group, size_t index, int global_layer) {
  QueryRing& ring = group.sequence->queries;
  if (ring.window() == 0) return;
  const kernels::AttentionTask& task = works_[index]->task;
  const int first = std::max(0, group.num_rows - ring.window());
  for (int t = first; t < group.num_rows; ++t) {
    uint16_t* to = ring.row(global_layer, works_[index]->positions[static_cast<size_t>(t)]);
    for (int h = 0; h < task.num_heads; ++h) {
      const float* from = call.queries + static_cast<size_t>(group.first_row + t) * call.query_token_stride +
                          static_cast<size_t>(h) * call.query_head_stride;
      ToHalves(from, static_cast<size_t>(task.key_dim), to + static_cast<size_t>(h * task.key_dim));
    }
  }
}

void LayerOps::AddMoments(const AttentionCall& call, const RowGroup& group, size_t index, int global_layer, const Team& team) {
  const kernels::AttentionTask& task = works_[index]->task;
  const std::span<const int32_t> positions = works_[index]->positions;
  const Rotation& rotation = *model_.info().layers[static_cast<size_t>(call.cache_layer)].rotation;
  const int first = std::clamp(kUncountedQueries - positions.front(), 0, group.num_rows), count = group.num_rows - first;
  const auto dim = static_cast<size_t>(task.key_dim), factors = 2 * rotation.pairs.size();
  if (team.ith == 0) {
    const size_t rows = static_cast<size_t>(team.nth * kObservedRows) * dim;
    moment_scratch_ = moment_buffer_.Floats(rows + static_cast<size_t>(group.num_rows) * factors);
  }
  team.Sync();
  float* rows = moment_scratch_ + static_cast<size_t>(team.ith * kObservedRows) * dim;
  float* turns = moment_scratch_ + static_cast<size_t>(team.nth * kObservedRows) * dim;
  const auto turn = [&](int t) { return std::span(turns + static_cast<size_t>(t) * factors, factors); };
  for (int t = first + team.ith; t < group.num_rows; t += team.nth) rotation.Unturn(positions[static_cast<size_t>(t)], turn(t));
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

void LayerOps::GatherMoments(const Sequence& sequence, int layer, int global_layer, int head_index) {
  const LayerShape& shape = model_.info().layers[static_cast<size_t>(layer)];
  HeadBuffers& buffers = buffers_[static_cast<size_t>(head_index)];
  const int group = shape.num_heads / shape.num_kv_heads;
  const size_t dim = static_cast<size_t>(shape.key_dim), triangle = kernels::TriangleSize(shape.key_dim);
  buffers.query_means.resize(static_cast<size_t>(group) * dim);
  buffers.query_covariances.resize(static_cast<size_t>(group) * triangle);
  for (int g = 0; g < group; ++g) {
    const int head = head_index * group + g;
    std::copy_n(sequence.moments.mean(global_layer, head), dim, buffers.query_means.data() + static_cast<size_t>(g) * dim);
    sequence.moments.Covariance(global_layer, head, sequence.next_position - kUncountedQueries, shape.key_dim,
                                buffers.query_covariances.data() + static_cast<size_t>(g) * triangle);
  }
  head_inputs_[static_cast<size_t>(head_index)].query_means = buffers.query_means.data();
  head_inputs_[static_cast<size_t>(head_index)].query_covariances = buffers.query_covariances.data();
}

void LayerOps::FindProbabilities(const GroupWork& work, std::span<const HeadCache> heads, int from, int rows, const Team& team) {
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
    work.task.observed != nullptr ? ObserveGathered(layer, groups[i], work, team) : ObserveRows(layer, groups[i], work, team);
  }
  team.Sync();
}

void LayerOps::ObserveGathered(int layer, const RowGroup& group, GroupWork& work, const Team& team) {
  const std::span<HeadCache> heads = cache_.heads(group.sequence->cache_id, layer);
  // Where heads cannot be shared out evenly, stretches of them are: what a query does to one entry does not hang on others.
  const size_t parts = heads.size() % static_cast<size_t>(team.nth) != 0 ? static_cast<size_t>(team.nth) : 1;
  for (size_t task = static_cast<size_t>(team.ith); task < heads.size() * parts; task += static_cast<size_t>(team.nth)) {
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
  const auto from = [](const float* statistic, int first) { return statistic == nullptr ? nullptr : statistic + first; };
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

void LayerOps::ObserveRepeat(int layer, int global_layer, const RowGroup& group, size_t index, const RepeatObserver& observer,
                             const Team& team) {
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
    return static_cast<size_t>(std::lower_bound(buffers.positions.begin(), buffers.positions.end(), position) - buffers.positions.begin());
  };
  const RepeatPass& pass = observer.pass;
  const size_t prefix = index_of(pass.prefix_end), begin = index_of(pass.from), end = index_of(pass.to), own = index_of(pass.start);
  if (begin == end) return;
  const int group = work.task.num_heads / work.task.num_kv_heads;
  const auto num_rows = static_cast<size_t>(group * rows);
  buffers.chunk.resize(num_rows * (end - begin));
  for (size_t row = 0; row < num_rows; ++row) {
    const float* from_row = probabilities_[static_cast<size_t>(head_index)] + row * n;
    const double mass = std::accumulate(from_row, from_row + prefix, 0.0) + std::accumulate(from_row + begin, from_row + end, 0.0) +
                        std::accumulate(from_row + own, from_row + n, 0.0);
    const auto scale = static_cast<float>(mass > 0 ? 1 / mass : 0);
    std::transform(from_row + begin, from_row + end, buffers.chunk.data() + row * (end - begin), [scale](float p) { return p * scale; });
  }
  buffers.column_pointers.clear();
  for (size_t c = 0; c < observer.policy.columns().size(); ++c) {
    buffers.column_pointers.push_back(observer.columns.column(global_layer, head_index, static_cast<int>(c)).data() + begin);
  }
  observer.policy.Observe(Observation{.layer = layer,
                                      .kv_head = head_index,
                                      .group = group,
                                      .num_queries = rows,
                                      .num_entries = static_cast<int>(end - begin),
                                      .probabilities = buffers.chunk.data(),
                                      .query_positions = work.positions.subspan(static_cast<size_t>(from), static_cast<size_t>(rows)),
                                      .positions = std::span(buffers.positions).subspan(begin, end - begin)},
                          buffers.column_pointers);
}

void LayerOps::PrepareWindow(const Sequence& sequence, int layer, int global_layer, int window) {
  const LayerShape& shape = model_.info().layers[static_cast<size_t>(layer)];
  const LayerParams& params = params_[static_cast<size_t>(layer)];
  const int rows = std::min({window, sequence.queries.window(), static_cast<int>(sequence.next_position)});
  window_count_ = rows;
  if (rows == 0) return;
  const size_t row_size = sequence.queries.row_size();
  window_rows_.resize(static_cast<size_t>(rows) * row_size);
  window_positions_.resize(static_cast<size_t>(rows));
  for (int t = 0; t < rows; ++t) {
    const int32_t position = sequence.next_position - rows + t;
    window_positions_[static_cast<size_t>(t)] = position;
    ToFloats(sequence.queries.row(global_layer, position), row_size, window_rows_.data() + static_cast<size_t>(t) * row_size);
  }
  kernels::AttentionTask& task = window_task_;
  task = kernels::AttentionTask{};
  task.num_queries = rows;
  task.num_heads = shape.num_heads;
  task.num_kv_heads = shape.num_kv_heads;
  task.key_dim = shape.key_dim;
  task.value_dim = shape.value_dim;
  task.queries = window_rows_.data();
  task.query_token_stride = row_size;
  task.query_head_stride = static_cast<size_t>(shape.key_dim);
  task.query_positions = window_positions_.data();
  task.heads = window_heads_.data();
  task.scale = params.scale;
  task.soft_cap = params.soft_cap;
  task.sinks = params.sinks;
  task.alibi_slopes = params.alibi_slopes;
  const int group = shape.num_heads / shape.num_kv_heads;
  size_t total = 0;
  for (int h = 0; h < shape.num_kv_heads; ++h) total += static_cast<size_t>(group * rows * window_heads_[static_cast<size_t>(h)].num_entries());
  float* at = probability_buffer_.Floats(total);
  for (int h = 0; h < shape.num_kv_heads; ++h) {
    probabilities_[static_cast<size_t>(h)] = at;
    at += static_cast<size_t>(group * rows * window_heads_[static_cast<size_t>(h)].num_entries());
  }
}

void LayerOps::WindowOutputs(const Sequence& queries_of, int cache_id, int layer, int global_layer, int window, float* output,
                             const Team& team) {
  if (team.ith == 0) {
    const LayerShape& shape = model_.info().layers[static_cast<size_t>(layer)];
    DescribeHeads(cache_.heads(cache_id, layer), window_segments_, window_heads_);
    PrepareWindow(queries_of, layer, global_layer, window);
    window_task_.output = output;
    window_task_.output_token_stride = static_cast<size_t>(shape.num_heads * shape.value_dim);
    window_task_.output_head_stride = static_cast<size_t>(shape.value_dim);
    attention_scratch_ = attention_buffer_.Bytes(kernels::AttentionScratchBytes(window_task_, team.nth));
  }
  team.Sync();
  kernels::RunAttention(window_task_, attention_scratch_, team);
  team.Sync();
}

void LayerOps::GatherHead(const Sequence& sequence, int layer, int global_layer, int head_index, const ActiveRecipe& active,
                          const EntryGuard& guard) {
  HeadCache& head = cache_.head(sequence.cache_id, layer, head_index);
  const LayerShape& shape = model_.info().layers[static_cast<size_t>(layer)];
  const uint32_t needs = active.recipe.policy->needs();
  const size_t n = static_cast<size_t>(head.num_entries());
  HeadBuffers& buffers = buffers_[static_cast<size_t>(head_index)];
  HeadInputs& inputs = head_inputs_[static_cast<size_t>(head_index)];
  inputs = HeadInputs{};
  inputs.num_entries = static_cast<int>(n);
  buffers.positions.resize(n);
  head.ReadPositions(buffers.positions);
  inputs.positions = buffers.positions;
  buffers.pinned.assign(n, 0);
  for (size_t i = 0; i < n; ++i) {
    buffers.pinned[i] = guard.Guards(sequence, buffers.positions[i]);
  }
  inputs.pinned = buffers.pinned;
  if (needs & kNeedKeys) {
    buffers.keys.resize(n * static_cast<size_t>(shape.key_dim));
    head.ReadKeys(buffers.keys.data());
    inputs.keys = buffers.keys.data();
  }
  if (needs & kNeedValues) {
    buffers.values.resize(n * static_cast<size_t>(shape.value_dim));
    head.ReadValues(buffers.values.data());
    inputs.values = buffers.values.data();
  }
  if (needs & kNeedValueNorms) {
    buffers.value_norms.assign(n, kUnknownNorm);
    if (active.norm_column >= 0) head.ReadColumn(active.norm_column, buffers.value_norms);
    inputs.value_norms = buffers.value_norms.data();
  }
  if ((needs & kNeedWindowProbs) && window_count_ > 0) inputs.window_probs = probabilities_[static_cast<size_t>(head_index)];
  if ((needs & kNeedWindowQueries) && window_count_ > 0) GatherWindowQueries(shape, head_index);
  if (needs & kNeedQueryMoments) GatherMoments(sequence, layer, global_layer, head_index);
  const auto num_columns = static_cast<size_t>(active.num_columns);
  buffers.columns.resize(n * num_columns);
  buffers.column_pointers.resize(num_columns);
  for (size_t c = 0; c < num_columns; ++c) {
    buffers.column_pointers[c] = buffers.columns.data() + c * n;
    const std::span<float> column(buffers.column_pointers[c], n);
    if (sequence.repeat && active.recipe.policy->repeat() != nullptr) {
      std::ranges::copy(sequence.repeat->column(global_layer, head_index, static_cast<int>(c)), column.begin());
    } else {
      head.ReadColumn(active.first_column + static_cast<int>(c), column);
    }
  }
  inputs.columns = buffers.column_pointers;
}

void LayerOps::GatherWindowQueries(const LayerShape& shape, int head_index) {
  HeadBuffers& buffers = buffers_[static_cast<size_t>(head_index)];
  const size_t dim = static_cast<size_t>(shape.key_dim), rows = static_cast<size_t>(window_count_);
  const size_t group = static_cast<size_t>(shape.num_heads / shape.num_kv_heads);
  buffers.window_queries.resize(group * rows * dim);
  for (size_t g = 0; g < group; ++g) {
    for (size_t t = 0; t < rows; ++t) {
      std::memcpy(buffers.window_queries.data() + (g * rows + t) * dim,
                  window_rows_.data() + t * window_task_.query_token_stride + (static_cast<size_t>(head_index) * group + g) * dim,
                  dim * sizeof(float));
    }
  }
  head_inputs_[static_cast<size_t>(head_index)].window_queries = buffers.window_queries.data();
}

// A value's norm is the same for as long as it lives, and the projection by far the dearest part of an eviction.
void LayerOps::FindValueNorms(int cache_id, int layer, int column) {
  const LayerShape& shape = model_.info().layers[static_cast<size_t>(layer)];
  const auto dim = static_cast<size_t>(shape.value_dim), num_heads = static_cast<size_t>(shape.num_kv_heads);
  const std::span<HeadCache> heads = cache_.heads(cache_id, layer);
  std::vector<std::pair<size_t, size_t>> stretches;  // head and first of its new entries
  for (size_t h = 0; h < num_heads; ++h) {
    HeadBuffers& buffers = buffers_[h];
    buffers.new_entries.clear();
    for (size_t i = 0; i < buffers.value_norms.size(); ++i) {
      if (buffers.value_norms[i] == kUnknownNorm) buffers.new_entries.push_back(static_cast<int32_t>(i));
    }
    for (size_t i = 0; i < buffers.new_entries.size(); i += kNormStretch) stretches.emplace_back(h, i);
  }
  if (stretches.empty()) return;
  const std::span<const kernels::PackedProjection> projections = projections_.Of(layer);
  for (HeadBuffers& buffers : std::span(buffers_).first(num_heads)) {
    buffers.new_values.resize(buffers.new_entries.size() * dim);
    buffers.new_norms.resize(buffers.new_entries.size());
  }
  ParallelFor(stretches.size(), [&](size_t i) {
    const auto [h, from] = stretches[i];
    HeadBuffers& buffers = buffers_[h];
    const size_t count = std::min(kNormStretch, buffers.new_entries.size() - from);
    float* const values = buffers.new_values.data() + from * dim;
    heads[h].ReadValuesOf(std::span(buffers.new_entries).subspan(from, count), values);
    if (!projections.empty()) {
      return kernels::ProjectedNorms(values, static_cast<int>(count), projections[h], buffers.new_norms.data() + from);
    }
    // No projection by that name: the norm of the value itself is what is left of the idea.
    for (size_t j = 0; j < count; ++j) {
      buffers.new_norms[from + j] = std::accumulate(values + j * dim, values + (j + 1) * dim, 0.0F,
                                                    [](float sum, float x) { return sum + std::abs(x); });
    }
  });
  ParallelFor(num_heads, [&](size_t h) {
    HeadBuffers& buffers = buffers_[h];
    for (size_t i = 0; i < buffers.new_entries.size(); ++i) {
      buffers.value_norms[static_cast<size_t>(buffers.new_entries[i])] = buffers.new_norms[i];
    }
    if (column >= 0 && !buffers.new_entries.empty()) heads[h].WriteSharedColumn(column, buffers.value_norms);
  });
}

void LayerOps::Score(const Sequence& sequence, int layer, int global_layer, int num_global_layers, const ActiveRecipe& active,
                     const EntryGuard& guard, const Team& team, LayerScores& scores) {
  const Policy& policy = *active.recipe.policy;
  const LayerShape& shape = model_.info().layers[static_cast<size_t>(layer)];
  const bool windowed = (policy.needs() & (kNeedWindowProbs | kNeedWindowQueries)) != 0;
  if (team.ith == 0) {
    DescribeHeads(cache_.heads(sequence.cache_id, layer), window_segments_, window_heads_);
    window_count_ = 0;
    if (windowed) PrepareWindow(sequence, layer, global_layer, policy.window());
  }
  team.Sync();
  if (windowed && window_count_ > 0 && (policy.needs() & kNeedWindowProbs)) {
    kernels::RunProbabilities(window_task_, probabilities_.data(), team);
    team.Sync();
  }
  loops_.Lead(team, [&] {
    ParallelFor(static_cast<size_t>(shape.num_kv_heads), [&](size_t h) {
      GatherHead(sequence, layer, global_layer, static_cast<int>(h), active, guard);
    });
    if (policy.needs() & kNeedValueNorms) FindValueNorms(sequence.cache_id, layer, active.norm_column);
    inputs_ = LayerInputs{.layer = global_layer,
                          .num_layers = num_global_layers,
                          .group = shape.num_heads / shape.num_kv_heads,
                          .key_dim = shape.key_dim,
                          .value_dim = shape.value_dim,
                          .window = window_count_,
                          .seed = sequence.setup->options.seed,
                          .next_position = sequence.next_position,
                          .attention_scale = params_[static_cast<size_t>(layer)].scale,
                          .rotation = shape.rotation ? &*shape.rotation : nullptr,
                          .heads = {head_inputs_.data(), static_cast<size_t>(shape.num_kv_heads)}};
    policy.Score(inputs_, scores);
  });
}

}  // namespace pith
