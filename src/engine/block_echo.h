// What a block's entries would be paid if its text came once more, without reading it again (RepeatOptions::by_echo).
//
//   what is seen   [prefix | the block's entries | their echo]
//                              n ... n + T - 1     n + T ... n + 2 T - 1
//   by whom        the block's own queries, turned on by T positions, as the echo's keys are
//
// A repetition's queries are these, but for what layers below have made of the text before them: in the first layer
// they are the same. What remains of its cost are the products of queries and keys. Where entries stand in for what
// goes, they are fitted to these queries, as long as much of what was read stays: else blocks wait for a repetition.
#ifndef PITH_ENGINE_BLOCK_ECHO_H_
#define PITH_ENGINE_BLOCK_ECHO_H_

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "base/aligned.h"
#include "base/team.h"
#include "cache/kv_cache.h"
#include "engine/engine_core.h"
#include "engine/repeat.h"
#include "engine/row_group.h"
#include "host/context.h"
#include "kernels/attention.h"
#include "policy/policy.h"

namespace pith {

class BlockEcho {
 public:
  explicit BlockEcho(EngineCore& core) : core_(core) {}

  // The group's sequence judges blocks so, and this one has rows enough to compete with each other.
  static bool Wants(const RowGroup& group);

  // All threads, when a group that Wants() has attended in a global layer, before pages are converted: the policy's
  // columns of its new entries. They stay as they are where entries before them wait for a repetition, which then takes
  // these, too, where it is not known how the layer turns keys, and where chosen entries stand in lower pages. Syncs.
  void Observe(const AttentionCall& call, const RowGroup& group, const Team& team);

  // The turned queries of the last block's rows of a sequence, which are nobody else's from now on; none where it was
  // not judged so in every layer.
  ReferenceQueries TakeQueries(const Sequence& sequence);

 private:
  struct Kept {
    const Sequence* sequence;
    ReferenceQueries queries;
    int num_layers = 0;  // that they are of
  };

  struct Head {
    std::vector<std::byte*> echo_pages;
    std::vector<kernels::Segment> segments;
    int first = 0;  // of the block's entries, among what is seen
    std::vector<float> paid, columns;
    std::vector<float*> column_pointers;
  };

  bool CanObserve(std::span<const HeadCache> heads, const RowGroup& group, int layer) const;
  // Thread 0.
  void Describe(const AttentionCall& call, const RowGroup& group);
  void DescribeHead(const HeadCache& cache, const RowGroup& group, size_t h);
  void MakeRoomForRows();
  // Of the group's rows in a layer, where the recipe fits entries to them.
  void DescribeKept(const RowGroup& group, int global_layer);
  // All threads, their shares.
  void WriteEcho(const AttentionCall& call, const RowGroup& group, const Team& team);
  void TurnQueries(const AttentionCall& call, const RowGroup& group, int from, int count, const Team& team);
  // Of `count` of the block's queries, from one on.
  void ObserveHead(const Policy& policy, int layer, size_t h, int from, int count);
  void WriteColumns(const ActiveRecipe& active, size_t h, HeadCache& cache) const;

  EngineCore& core_;
  bool observes_ = false;
  int num_rows_ = 0;
  kernels::AttentionTask task_;  // of some rows
  std::vector<Head> heads_;
  std::vector<kernels::HeadEntries> entries_;
  std::vector<float> factors_;                       // that turn queries and keys on
  std::vector<int32_t> positions_, echo_positions_;  // of the block
  Scratch page_buffer_, query_buffer_, probability_buffer_;
  std::vector<float*> probabilities_;
  std::vector<Kept> kept_;             // of the sequences of a block
  ReferenceQueries* keeps_ = nullptr;  // that this layer's go to
};

}  // namespace pith

#endif  // PITH_ENGINE_BLOCK_ECHO_H_
