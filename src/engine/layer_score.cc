// What a recipe wants to know of a layer's entries, and its scores of them.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <utility>

#include "engine/entry_counts.h"
#include "engine/layer_ops.h"
#include "kernels/triangles.h"
#include "policy/page_division.h"

namespace pith {
namespace {

// New entries whose value norms are one task.
constexpr size_t kNormStretch = 64;

// Rows of n columns, of which [first, last) are left.
void CutColumns(const float* rows, size_t num_rows, size_t n, size_t first, size_t last, std::vector<float>& cut) {
  cut.resize(num_rows * (last - first));
  for (size_t row = 0; row < num_rows; ++row) {
    std::copy_n(rows + row * n + first, last - first, cut.data() + row * (last - first));
  }
}

}  // namespace

std::pair<int, int> EntryGuard::SliceOf(const HeadCache& head) const {
  if (from == 0 && to == INT32_MAX) return {0, head.num_entries()};
  const int first = EntriesBefore(head, from);
  return {first, std::max(first, EntriesBefore(head, to))};
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
    std::copy_n(sequence.moments.mean(global_layer, head), dim,
                buffers.query_means.data() + static_cast<size_t>(g) * dim);
    sequence.moments.Covariance(global_layer, head, sequence.next_position - kUncountedQueries, shape.key_dim,
                                buffers.query_covariances.data() + static_cast<size_t>(g) * triangle);
  }
  head_inputs_[static_cast<size_t>(head_index)].query_means = buffers.query_means.data();
  head_inputs_[static_cast<size_t>(head_index)].query_covariances = buffers.query_covariances.data();
}

void LayerOps::PrepareWindow(const Sequence& sequence, int layer, int global_layer, int window) {
  const LayerShape& shape = model_.info().layers[static_cast<size_t>(layer)];
  const LayerParams& params = params_[static_cast<size_t>(layer)];
  const int rows = std::min(window, sequence.known_queries());
  window_count_ = rows;
  if (rows == 0) return;
  const size_t row_size = sequence.queries.row_size();
  window_rows_.resize(static_cast<size_t>(rows) * row_size);
  window_positions_.resize(static_cast<size_t>(rows));
  std::iota(window_positions_.begin(), window_positions_.end(), sequence.next_position - rows);
  sequence.ReadQueries(global_layer, rows, row_size, window_rows_.data());
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
  for (int h = 0; h < shape.num_kv_heads; ++h)
    total += static_cast<size_t>(group * rows * window_heads_[static_cast<size_t>(h)].num_entries());
  float* at = probability_buffer_.Floats(total);
  for (int h = 0; h < shape.num_kv_heads; ++h) {
    probabilities_[static_cast<size_t>(h)] = at;
    at += static_cast<size_t>(group * rows * window_heads_[static_cast<size_t>(h)].num_entries());
  }
}

void LayerOps::ReadWindowLatents(const Team& team) {
  if (!window_latents_.any()) return;
  team.All([&] { window_latents_.ReadReferences(team); });
  team.All([&] { window_latents_.ReadPages(team); });
}

void LayerOps::WindowOutputs(const Sequence& queries_of, const Sequence& entries_of, int layer, int global_layer,
                             int window, float* output, const Team& team) {
  if (team.ith == 0) {
    const LayerShape& shape = model_.info().layers[static_cast<size_t>(layer)];
    const std::span<HeadCache> heads = cache_.heads(entries_of.cache_id, layer);
    DescribeHeads(heads, window_segments_, window_heads_);
    window_latents_.Prepare(heads, team.nth, window_segments_);
    PrepareWindow(queries_of, layer, global_layer, window);
    AddStates(entries_of, heads, window_heads_, window_features_, window_task_);
    window_task_.output = output;
    window_task_.output_token_stride = static_cast<size_t>(shape.num_heads * shape.value_dim);
    window_task_.output_head_stride = static_cast<size_t>(shape.value_dim);
    attention_scratch_ = attention_buffer_.Bytes(kernels::AttentionScratchBytes(window_task_, team.nth));
  }
  team.Sync();
  ReadWindowLatents(team);
  if (window_task_.features != nullptr) {
    MapQueries(entries_of, global_layer, window_task_, 0, window_features_.Floats(0), team);
    team.Sync();
  }
  kernels::RunAttention(window_task_, attention_scratch_, team);
  team.Sync();
}

void LayerOps::GatherHead(const Sequence& sequence, int layer, int global_layer, int head_index,
                          const ActiveRecipe& active, const EntryGuard& guard) {
  HeadCache& head = cache_.head(sequence.cache_id, layer, head_index);
  const LayerShape& shape = model_.info().layers[static_cast<size_t>(layer)];
  const uint32_t needs = active.recipe.policy->needs();
  const size_t n = static_cast<size_t>(head.num_entries());
  HeadBuffers& buffers = buffers_[static_cast<size_t>(head_index)];
  HeadInputs& inputs = head_inputs_[static_cast<size_t>(head_index)];
  const auto [begin, end] = guard.SliceOf(head);
  const auto first = static_cast<size_t>(begin), count = static_cast<size_t>(end - begin);
  inputs = HeadInputs{};
  inputs.num_entries = end - begin;
  buffers.positions.resize(n);
  head.ReadPositions(buffers.positions);
  inputs.positions = std::span(buffers.positions).subspan(first, count);
  buffers.pinned.assign(n, 0);
  for (size_t i = 0; i < n; ++i) {
    const int32_t position = buffers.positions[i];
    if (guard.GuardsBesideSinks(sequence, position))
      buffers.pinned[i] = 1;
    else if (position < guard.num_sinks)
      buffers.pinned[i] = kPinnedAsSink;
  }
  if (const DemoteOptions* demote = active.recipe.policy->demote(); demote != nullptr && demote->makes_latents()) {
    PinReferences(sequence, head, *demote, buffers);
  }
  inputs.pinned = std::span(buffers.pinned).subspan(first, count);
  if (needs & kNeedKeys) {
    buffers.keys.resize(n * static_cast<size_t>(shape.key_dim));
    head.ReadKeys(buffers.keys.data());
    inputs.keys = buffers.keys.data() + first * static_cast<size_t>(shape.key_dim);
  }
  if (needs & kNeedValues) {
    buffers.values.resize(n * static_cast<size_t>(shape.value_dim));
    head.ReadValues(buffers.values.data());
    inputs.values = buffers.values.data() + first * static_cast<size_t>(shape.value_dim);
  }
  if (needs & kNeedValueNorms) {
    buffers.value_norms.assign(n, kUnknownNorm);
    if (active.norm_column >= 0) head.ReadColumn(active.norm_column, buffers.value_norms);
    inputs.value_norms = buffers.value_norms.data() + first;
  }
  if ((needs & kNeedWindowProbs) && window_count_ > 0) {
    inputs.window_probs = probabilities_[static_cast<size_t>(head_index)];
    if (count != n) {
      const auto rows = static_cast<size_t>(shape.num_heads / shape.num_kv_heads * window_count_);
      CutColumns(inputs.window_probs, rows, n, first, first + count, buffers.window_slice);
      inputs.window_probs = buffers.window_slice.data();
    }
  }
  if ((needs & kNeedWindowQueries) && window_count_ > 0) GatherWindowQueries(shape, head_index);
  if (needs & kNeedQueryMoments) GatherMoments(sequence, layer, global_layer, head_index);
  const auto num_columns = static_cast<size_t>(active.num_columns);
  buffers.columns.resize(n * num_columns);
  buffers.column_pointers.resize(num_columns);
  for (size_t c = 0; c < num_columns; ++c) {
    buffers.column_pointers[c] = buffers.columns.data() + c * n;
    const std::span<float> column(buffers.column_pointers[c], n);
    if (sequence.repeat && sequence.repeat->has_columns() && ObservesRepeat(*active.recipe.policy)) {
      std::ranges::copy(sequence.repeat->column(global_layer, head_index, static_cast<int>(c)),
                        column.begin() + sequence.repeat->entries(global_layer, head_index).first);
    } else {
      head.ReadColumn(active.first_column + static_cast<int>(c), column);
    }
    buffers.column_pointers[c] += first;
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
                  window_rows_.data() + t * window_task_.query_token_stride +
                      (static_cast<size_t>(head_index) * group + g) * dim,
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

void LayerOps::SortByTime(const HeadCache& head, int head_index) {
  HeadBuffers& buffers = buffers_[static_cast<size_t>(head_index)];
  HeadInputs& inputs = head_inputs_[static_cast<size_t>(head_index)];
  buffers.order = head.TimeOrder();
  if (buffers.order.empty()) return;
  const size_t n = buffers.order.size();
  const auto sort = [&]<typename T>(T* data, size_t width) {
    const std::vector<T> before(data, data + n * width);
    for (size_t i = 0; i < n; ++i)
      std::copy_n(before.data() + static_cast<size_t>(buffers.order[i]) * width, width, data + i * width);
  };
  sort(buffers.positions.data(), 1);
  sort(buffers.pinned.data(), 1);
  if (inputs.keys != nullptr) sort(buffers.keys.data(), static_cast<size_t>(head.layout().key_dim));
  if (inputs.values != nullptr) sort(buffers.values.data(), static_cast<size_t>(head.layout().value_dim));
  if (inputs.value_norms != nullptr) sort(buffers.value_norms.data(), 1);
  for (float* column : buffers.column_pointers) sort(column, 1);
  if (inputs.window_probs == nullptr) return;
  const auto rows = static_cast<size_t>(window_count_ * (window_task_.num_heads / window_task_.num_kv_heads));
  for (size_t row = 0; row < rows; ++row) sort(probabilities_[static_cast<size_t>(head_index)] + row * n, 1);
}

void LayerOps::PinReferences(const Sequence& sequence, const HeadCache& head, const DemoteOptions& demote,
                             HeadBuffers& buffers) const {
  const int first = head.num_lower_entries(), last = first + head.num_references();
  for (int i = first; i < head.num_entries(); ++i) {
    const bool is_new = buffers.positions[static_cast<size_t>(i)] >= sequence.next_position - demote.recent;
    if (i < last || is_new) buffers.pinned[static_cast<size_t>(i)] = 1;
  }
}

void LayerOps::LeaveOutLowered(std::span<const HeadCache> heads, LayerScores& scores) const {
  for (size_t h = 0; h < heads.size(); ++h) {
    const std::vector<int32_t>& order = buffers_[h].order;
    for (size_t i = 0; i < scores.heads[h].size(); ++i) {
      const int32_t index = order.empty() ? static_cast<int32_t>(i) : order[i];
      if (index < heads[h].num_lower_entries()) scores.heads[h][i] = std::numeric_limits<float>::lowest();
    }
  }
}

void LayerOps::Score(const Sequence& sequence, int layer, int global_layer, int num_global_layers,
                     const ActiveRecipe& active, const EntryGuard& guard, const Team& team, LayerScores& scores) {
  const Policy& policy = *active.recipe.policy;
  const LayerShape& shape = model_.info().layers[static_cast<size_t>(layer)];
  const bool has_probs = (policy.needs() & kNeedWindowProbs) != 0;
  if (team.ith == 0) {
    const std::span<HeadCache> heads = cache_.heads(sequence.cache_id, layer);
    DescribeHeads(heads, window_segments_, window_heads_);
    window_count_ = 0;
    if (const int window = QueryWindow(policy); window > 0) PrepareWindow(sequence, layer, global_layer, window);
    if (has_probs && window_count_ > 0) window_latents_.Prepare(heads, team.nth, window_segments_);
  }
  team.Sync();
  if (has_probs && window_count_ > 0) {
    ReadWindowLatents(team);
    kernels::RunProbabilities(window_task_, probabilities_.data(), team);
    team.Sync();
  }
  loops_.Lead(team, [&] {
    ParallelFor(static_cast<size_t>(shape.num_kv_heads),
                [&](size_t h) { GatherHead(sequence, layer, global_layer, static_cast<int>(h), active, guard); });
    if (policy.needs() & kNeedValueNorms) FindValueNorms(sequence.cache_id, layer, active.norm_column);
    for (int h = 0; h < shape.num_kv_heads; ++h) SortByTime(cache_.head(sequence.cache_id, layer, h), h);
    inputs_ = LayerInputs{.layer = global_layer,
                          .num_layers = num_global_layers,
                          .group = shape.num_heads / shape.num_kv_heads,
                          .key_dim = shape.key_dim,
                          .value_dim = shape.value_dim,
                          .window = window_count_,
                          .seed = sequence.setup->seed,
                          .next_position = sequence.next_position,
                          .attention_scale = params_[static_cast<size_t>(layer)].scale,
                          .rotation = shape.rotation ? &*shape.rotation : nullptr,
                          .heads = {head_inputs_.data(), static_cast<size_t>(shape.num_kv_heads)}};
    policy.Score(inputs_, scores);
    if (policy.demote() != nullptr)
      LeaveOutLowered(std::as_const(cache_).heads(sequence.cache_id, layer), scores);
    score_failed_ = !scores.fault.empty();
  });
}

}  // namespace pith
