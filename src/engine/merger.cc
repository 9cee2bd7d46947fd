#include "engine/merger.h"

#include <algorithm>

namespace pith {

void Merger::Run(std::span<HeadCache> heads, const KeptHeads& kept, const MergeOptions& options, double* threshold,
                 const Team& team) {
  if (team.ith == 0) {
    buffers_.resize(heads.size());
    plans_.resize(heads.size());
  }
  team.Sync();
  const auto mine = [&](const auto& visit) {
    for (size_t h = static_cast<size_t>(team.ith); h < heads.size(); h += static_cast<size_t>(team.nth)) visit(h);
  };
  mine([&](size_t h) {
    const auto n = static_cast<size_t>(heads[h].num_entries());
    plans_[h] = MergePlan{};
    buffers_[h].status = Status{};
    if (kept[h].empty() || kept[h].size() == n) return;
    buffers_[h].keys.resize(n * static_cast<size_t>(heads[h].layout().key_dim));
    buffers_[h].values.resize(n * static_cast<size_t>(heads[h].layout().value_dim));
    heads[h].ReadKeys(buffers_[h].keys.data());
    heads[h].ReadValues(buffers_[h].values.data());
    FindNearest(buffers_[h].keys.data(), static_cast<int>(n), heads[h].layout().key_dim, kept[h], plans_[h]);
  });
  team.Sync();
  if (team.ith == 0) {
    *threshold = NextThreshold(options, *threshold, plans_);
    ChooseMerged(options, *threshold, plans_);
  }
  team.Sync();
  mine([&](size_t h) {
    if (plans_[h].evicted.empty()) return;
    Buffers& own = buffers_[h];
    MergeEntries(options, plans_[h], own.keys.data(), heads[h].layout().key_dim, own.values.data(),
                 heads[h].layout().value_dim, own.changed);
    own.status = heads[h].Rewrite(own.changed, own.keys.data(), own.values.data());
  });
  team.Sync();
  if (team.ith == 0) {
    status_ = Status{};
    for (size_t h = 0; h < heads.size(); ++h) {
      if (status_ && !buffers_[h].status) status_ = buffers_[h].status;
      num_merged_ += std::count(plans_[h].merged.begin(), plans_[h].merged.end(), uint8_t{1});
    }
  }
  team.Sync();
}

}  // namespace pith
