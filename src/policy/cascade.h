// Eviction across layers while a block is still on its way through them (CAKE's cascade, arXiv:2503.12491; as well for
// Layer-DefensiveKV).
//
// Layers are scored once, each right after its own attention. Whenever too many entries are there, the layers so far
// are selected from together, within what the layers to come leave of the total. Scores are fixed (what the budget
// changes in them is done at once, by the budget of the end) and a layer's share only falls as further layers join, so
// that what went early would have gone at the end, too: the result is that of one selection over all layers, and the
// peak is the total and the block of a few layers. In later blocks the layers to come still hold what they had: a layer
// whose part of the total grows by more than the slack ends with less.
#ifndef PITH_POLICY_CASCADE_H_
#define PITH_POLICY_CASCADE_H_

#include <cstdint>
#include <span>
#include <vector>

#include "policy/policy.h"

namespace pith {

class Cascade {
 public:
  // Before the first layer of a block. budget: of the selection at its end.
  void Begin(const Budget& budget);
  // Scores of the next layer.
  void Add(const Policy& policy, LayerScores scores);

  // What stays in each of the layers so far: at most num_entries in all (save for pinned ones), of those that stayed
  // the last time. kInvalidArgument: a registered stage failed; nothing has changed.
  Result<std::vector<KeptHeads>> Shrink(const Policy& policy, int64_t num_entries);

 private:
  Budget budget_;
  std::vector<LayerScores> layers_;
};

// The scores of the entries that stay.
void TrimScores(const KeptHeads& kept, LayerScores& scores);

}  // namespace pith

#endif  // PITH_POLICY_CASCADE_H_
