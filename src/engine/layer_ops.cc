#include "engine/layer_ops.h"

#include <algorithm>
#include <utility>

#include "cache/page_entries.h"
#include "host/halves.h"

namespace pith {
namespace {

// Queries of a head whose features one thread finds in one go.
constexpr int kMappedRows = 32;

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
    entries[h].key_channels = heads[h].key_channels().data();
    entries[h].state = nullptr;
  }
}

void LayerOps::AddStates(const Sequence& sequence, std::span<const HeadCache> heads,
                         std::vector<kernels::HeadEntries>& entries, Scratch& features, kernels::AttentionTask& task) {
  const LessMaps* const maps = sequence.setup->maps;
  if (maps == nullptr) return;
  bool any = false;
  for (size_t h = 0; h < heads.size(); ++h) {
    entries[h].state = heads[h].state().numbers();
    any = any || entries[h].state != nullptr;
  }
  if (!any) return;
  task.rank = maps->rank();
  task.features = features.Floats(static_cast<size_t>(task.num_queries * task.num_heads * task.rank));
}

void LayerOps::MapQueries(const Sequence& sequence, int global_layer, const kernels::AttentionTask& task,
                          int first_item, float* features, const Team& team) {
  if (task.features == nullptr) return;
  const auto rank = static_cast<size_t>(task.rank), row = static_cast<size_t>(task.num_heads) * rank;
  int item = first_item;
  for (int t = 0; t < task.num_queries; t += kMappedRows) {
    const auto count = static_cast<size_t>(std::min(kMappedRows, task.num_queries - t));
    for (int h = 0; h < task.num_heads; ++h, ++item) {
      if (item % team.nth != team.ith) continue;
      kernels::MapFeatures(sequence.setup->maps->QueryMap(global_layer, h),
                           task.queries + static_cast<size_t>(t) * task.query_token_stride +
                               static_cast<size_t>(h) * task.query_head_stride,
                           task.query_token_stride, count,
                           features + static_cast<size_t>(t) * row + static_cast<size_t>(h) * rank, row);
    }
  }
}

void LayerOps::MapQueries(const RowGroup& group, size_t index, int global_layer, const Team& team) {
  GroupWork& work = *works_[index];
  if (work.task.features == nullptr) return;
  MapQueries(*group.sequence, global_layer, work.task, static_cast<int>(index), work.feature_buffer.Floats(0), team);
}

void LayerOps::BeginLayer() {
  tasks_.clear();
  has_latents_ = false;
  for (const auto& work : works_) work->observe_seconds = 0;
}

Status LayerOps::Prepare(const AttentionCall& call, const RowGroup& group, size_t index,
                         std::span<const int32_t> positions, int global_layer, uint32_t observed,
                         const RepeatPass* pass, int num_parts) {
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
  work.latents.Prepare(heads, num_parts, work.segments);
  has_latents_ = has_latents_ || work.latents.any();
  work.first_of_chunk = -1;
  if (pass != nullptr && (observed & kNeedRows) == 0) LimitToChunk(heads, *pass, work);

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
  // Second readings judge the entries that are there.
  if (pass == nullptr && global_layer >= 0) AddStates(*group.sequence, heads, work.heads, work.feature_buffer, task);
  // Bounds of blocks are those of whole keys.
  const bool whole_keys = std::ranges::none_of(heads, &HeadCache::prunes) && !work.latents.any();
  const bool prunes = group.sequence->pruner != nullptr && global_layer >= 0 && whole_keys;
  work.pruned = PrunedCall{.num_sparse_rows = prunes ? group.num_sparse_rows : 0, .layer = global_layer};
  for (const HeadCache& head : heads) {
    work.pruned.complete &= head.num_entries() == group.sequence->next_position && head.num_lower_entries() == 0;
  }
  work.observe_seconds = 0;
  // Pruned rows leave no weights behind: Observe() computes them.
  if (work.pruned.num_sparse_rows > 0) return {};
  if (pass == nullptr || work.first_of_chunk >= 0) PlanObserved(work, observed);
  tasks_.push_back(task);
  return {};
}

void LayerOps::EndPrepare(int num_parts) {
  attention_scratch_ = attention_buffer_.Bytes(kernels::AttentionScratchBytes(tasks_, num_parts));
  observe_buffers_.resize(std::max(observe_buffers_.size(), static_cast<size_t>(num_parts)));
}

void LayerOps::ReadLatents(std::span<const RowGroup> groups, const Team& team) {
  const auto for_each = [&](const auto& read) {
    team.All([&] {
      for (size_t i = 0; i < groups.size(); ++i) {
        if (!groups[i].failed() && works_[i]->latents.any()) read(works_[i]->latents);
      }
    });
  };
  for_each([&](LatentReader& latents) { latents.ReadReferences(team); });
  for_each([&](LatentReader& latents) { latents.ReadPages(team); });
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
        kernels::WriteEntriesF16(
            head.layout(), head.page_of(at), slot, count,
            call.keys + row * call.key_token_stride + static_cast<size_t>(h) * call.key_head_stride,
            call.key_token_stride,
            call.values + row * call.value_token_stride + static_cast<size_t>(h) * call.value_head_stride,
            call.value_token_stride, positions.data() + (at - begin));
        for (const auto& [column, initial] : group.sequence->setup->column_initials) {
          if (column < head.layout().num_columns)
            std::fill_n(head.layout().column(head.page_of(at), column) + slot, count, initial);
        }
      }
      at += count;
    }
  }
}

bool LayerOps::Demote(int cache_id, int layer, const Team& team) {
  bool done = true;
  const std::span<HeadCache> heads = cache_.heads(cache_id, layer);
  for (size_t h = static_cast<size_t>(team.ith); h < heads.size(); h += static_cast<size_t>(team.nth)) {
    done = heads[h].Demote(0).has_value() && done;
  }
  return done;
}

bool LayerOps::Prune(int cache_id, int layer, const Team& team) {
  bool done = true;
  const std::span<HeadCache> heads = cache_.heads(cache_id, layer);
  for (size_t h = static_cast<size_t>(team.ith); h < heads.size(); h += static_cast<size_t>(team.nth)) {
    done = heads[h].Prune().has_value() && done;
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

void LayerOps::KeepReferences(const AttentionCall& call, const RowGroup& group, size_t index, int global_layer,
                              const RepeatPass& pass, ReferenceQueries& references) {
  const kernels::AttentionTask& task = works_[index]->task;
  const auto dim = static_cast<size_t>(task.key_dim);
  for (int t = 0; t < group.num_rows; ++t) {
    const int token = pass.first_token + works_[index]->positions[static_cast<size_t>(t)] - pass.start;
    if (!references.Keeps(token)) continue;
    uint16_t* to = references.row(global_layer, token);
    const float* from = call.queries + static_cast<size_t>(group.first_row + t) * call.query_token_stride;
    for (int h = 0; h < task.num_heads; ++h, to += dim) {
      ToHalves(from + static_cast<size_t>(h) * call.query_head_stride, dim, to);
    }
  }
}

}  // namespace pith
