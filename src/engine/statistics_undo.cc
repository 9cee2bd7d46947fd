#include "engine/statistics_undo.h"

#include <algorithm>
#include <utility>

#include "cache/page_entries.h"

namespace pith {
namespace {

bool Observes(const ActiveRecipe& active) { return (active.recipe.policy->needs() & kNeedEveryQuery) != 0; }

}  // namespace

size_t StatisticsUndo::Plan(const KvCache& cache, const Sequence& sequence, std::span<const int> global_layers) {
  const SequenceSetup& setup = *sequence.setup;
  first_head_.clear(), heads_.clear();
  query_heads_.assign(global_layers.size(), -1);
  memory_ = nullptr;
  size_t num_columns = 0, floats = 0;
  for (const ActiveRecipe& active : setup.active)
    num_columns += Observes(active) ? static_cast<size_t>(active.num_columns) : 0;
  for (const int layer : global_layers) {
    first_head_.push_back(heads_.size());
    for (const HeadCache& head : cache.heads(sequence.cache_id, layer)) {
      heads_.push_back({head.num_entries(), floats});
      floats += static_cast<size_t>(head.num_entries()) * num_columns;
    }
  }
  moments_offset_ = floats;
  return floats + (setup.counts_moments ? sequence.moments.data().size() : 0);
}

void StatisticsUndo::SaveColumn(int global_layer, size_t index, size_t column, int first_entry,
                                std::span<const float> values) {
  const Head& to = head(global_layer, index);
  if (first_entry >= to.num_entries) return;  // the step's own rows
  const auto n = static_cast<size_t>(to.num_entries), first = static_cast<size_t>(first_entry);
  std::copy_n(values.begin(), std::min(values.size(), n - first), memory_ + to.offset + column * n + first);
}

void StatisticsUndo::SaveMoments(const QueryMoments& moments, int global_layer, int head, int64_t before, int count) {
  const bool sums = QueryMoments::ChangesSums(before, count);
  if (head == 0) sums_changed_ = sums;  // of all heads and layers of a step
  moments.CopyHead(global_layer, head, sums, moments.data().data(), memory_ + moments_offset_);
}

void StatisticsUndo::RestoreColumns(HeadCache& head, const Sequence& sequence, const Head& saved) const {
  const auto n = static_cast<size_t>(saved.num_entries);
  for (int first = 0; first < saved.num_entries; first += kP) {
    // One that could not be copied has kept its statistics.
    if (!head.MakeWritable(first)) continue;
    const auto count = static_cast<size_t>(std::min(kP, saved.num_entries - first));
    const float* from = memory_ + saved.offset + first;
    for (const ActiveRecipe& active : sequence.setup->active) {
      for (int c = 0; Observes(active) && c < active.num_columns; ++c, from += n) {
        std::copy_n(from, count, head.layout_of(first).column(head.page_of(first), active.first_column + c));
      }
    }
  }
}

void StatisticsUndo::Restore(KvCache& cache, Sequence& sequence, std::span<const int> global_layers) const {
  for (int global = 0; global < static_cast<int>(global_layers.size()); ++global) {
    const int query_heads = query_heads_[static_cast<size_t>(global)];
    if (query_heads < 0) continue;
    const std::span<HeadCache> heads = cache.heads(sequence.cache_id, global_layers[static_cast<size_t>(global)]);
    for (size_t h = 0; sequence.setup->observed_needs != 0 && h < heads.size(); ++h) {
      RestoreColumns(heads[h], sequence, head(global, h));
    }
    for (int h = 0; sequence.setup->counts_moments && h < query_heads; ++h) {
      sequence.moments.CopyHead(global, h, sums_changed_, memory_ + moments_offset_, sequence.moments.data().data());
    }
  }
}

}  // namespace pith
