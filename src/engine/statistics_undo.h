// What a step's queries change in a sequence's statistics, as it was before: columns of recipes that observe every
// query, and moments of queries. A step that fails in a later layer is taken back with it.
#ifndef PITH_ENGINE_STATISTICS_UNDO_H_
#define PITH_ENGINE_STATISTICS_UNDO_H_

#include <cstddef>
#include <span>
#include <vector>

#include "cache/kv_cache.h"
#include "engine/sequence.h"

namespace pith {

class StatisticsUndo {
 public:
  // For a step of the sequence whose rows are not there yet; global_layers: the model's layers that have statistics.
  // Returns the floats that it takes, 0: nothing would change.
  size_t Plan(const KvCache& cache, const Sequence& sequence, std::span<const int> global_layers);
  void SetMemory(float* memory) { memory_ = memory; }

  // Threads: one at a time for a page, or a head's moments. column: counts those of all recipes that observe.
  void SaveColumn(int global_layer, size_t head, size_t column, int first_entry, std::span<const float> values);
  // Before `count` queries follow `before` others of the head.
  void SaveMoments(const QueryMoments& moments, int global_layer, int head, int64_t before, int count);
  // All of the layer, which has so many query heads, is saved and may have changed.
  void NoteLayer(int global_layer, int num_query_heads) {
    query_heads_[static_cast<size_t>(global_layer)] = num_query_heads;
  }

  // When the step's rows are gone.
  void Restore(KvCache& cache, Sequence& sequence, std::span<const int> global_layers) const;

 private:
  struct Head {
    int num_entries = 0;
    size_t offset = 0;
  };
  const Head& head(int global_layer, size_t index) const {
    return heads_[first_head_[static_cast<size_t>(global_layer)] + index];
  }
  void RestoreColumns(HeadCache& head, const Sequence& sequence, const Head& saved) const;

  std::vector<size_t> first_head_;  // of each global layer
  std::vector<Head> heads_;         // [columns][entries] from offset on
  std::vector<int> query_heads_;    // of each global layer that is noted, -1: it is not
  size_t moments_offset_ = 0;
  bool sums_changed_ = false;
  float* memory_ = nullptr;
};

}  // namespace pith

#endif  // PITH_ENGINE_STATISTICS_UNDO_H_
