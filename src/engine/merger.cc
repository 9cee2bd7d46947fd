#include "engine/merger.h"

#include <algorithm>

#include "base/parallel.h"

namespace pith {

Status Merger::Run(std::span<HeadCache> heads, const KeptHeads& kept, const MergeOptions& options, double* threshold) {
  buffers_.resize(heads.size());
  plans_.resize(heads.size());
  ParallelFor(heads.size(), [&](size_t h) {
    const auto n = static_cast<size_t>(heads[h].num_entries());
    plans_[h] = MergePlan{};
    buffers_[h].status = Status{};
    if (kept[h].empty() || kept[h].size() == n) return;
    buffers_[h].keys.resize(n * static_cast<size_t>(heads[h].layout().key_dim));
    heads[h].ReadKeys(buffers_[h].keys.data());
    FindNearest(buffers_[h].keys.data(), static_cast<int>(n), heads[h].layout().key_dim, kept[h], plans_[h]);
  });
  *threshold = NextThreshold(options, *threshold, plans_);
  ChooseMerged(options, *threshold, plans_);
  ParallelFor(heads.size(), [&](size_t h) {
    if (plans_[h].evicted.empty()) return;
    Buffers& own = buffers_[h];
    ReadMergedValues(heads[h], plans_[h], own.values);
    MergeEntries(options, plans_[h], own.keys.data(), heads[h].layout().key_dim, own.values.data(),
                 heads[h].layout().value_dim, own.changed);
    own.status = heads[h].Rewrite(own.changed, own.keys.data(), own.values.data());
  });
  for (const MergePlan& plan : plans_) num_merged_ += std::count(plan.merged.begin(), plan.merged.end(), uint8_t{1});
  const auto failed = std::ranges::find_if(buffers_, [](const Buffers& own) { return !own.status; });
  return failed == buffers_.end() ? Status{} : failed->status;
}

void Merger::ReadMergedValues(const HeadCache& head, const MergePlan& plan, std::vector<float>& values) {
  const auto dim = static_cast<size_t>(head.layout().value_dim);
  values.resize(static_cast<size_t>(head.num_entries()) * dim);
  for (size_t i = 0; i < plan.evicted.size(); ++i) {
    if (plan.merged[i] == 0) continue;
    for (const int32_t entry : {plan.evicted[i], plan.target[i]}) {
      head.ReadValuesOf({&entry, 1}, values.data() + static_cast<size_t>(entry) * dim);
    }
  }
}

}  // namespace pith
