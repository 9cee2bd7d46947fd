#include "policy/cascade.h"

#include <algorithm>
#include <utility>

namespace pith {
namespace {

// A head's numbers may end before its newest entries, or not be there.
template <typename T>
void Trim(const KeptHeads& kept, std::vector<std::vector<T>>& heads) {
  for (size_t h = 0; h < heads.size(); ++h) {
    std::vector<T>& numbers = heads[h];
    size_t to = 0;
    for (const int32_t from : kept[h]) {
      if (static_cast<size_t>(from) < numbers.size()) numbers[to++] = numbers[static_cast<size_t>(from)];
    }
    numbers.resize(to);
  }
}

}  // namespace

void TrimScores(const KeptHeads& kept, LayerScores& scores) {
  Trim(kept, scores.heads);
  Trim(kept, scores.pinned);
  Trim(kept, scores.ties);
  for (StageNotes& notes : scores.notes) Trim(kept, notes.column);
}

void Cascade::Begin(const Budget& budget) {
  budget_ = budget;
  layers_.clear();
}

void Cascade::Add(const Policy& policy, LayerScores scores) {
  policy.Refine(budget_, scores);
  layers_.push_back(std::move(scores));
}

Result<std::vector<KeptHeads>> Cascade::Shrink(const Policy& policy, int64_t num_entries) {
  int64_t num_heads = 0;
  for (const LayerScores& layer : layers_) num_heads += static_cast<int64_t>(layer.heads.size());
  Budget budget = budget_;
  budget.keep = static_cast<int>(std::max<int64_t>(num_entries / std::max<int64_t>(num_heads, 1), 1));
  PITH_ASSIGN_OR_RETURN(std::vector<KeptHeads> kept, policy.SelectAll(layers_, budget));
  for (size_t l = 0; l < layers_.size(); ++l) TrimScores(kept[l], layers_[l]);
  return kept;
}

}  // namespace pith
