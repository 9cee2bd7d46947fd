// act=merge on the cache of one layer (D2O, policy/act/merge.h).
#ifndef PITH_ENGINE_MERGER_H_
#define PITH_ENGINE_MERGER_H_

#include <span>
#include <vector>

#include "cache/kv_cache.h"
#include "pith/types.h"
#include "policy/act/merge.h"
#include "policy/policy.h"

namespace pith {

class Merger {
 public:
  // Before the entries that are not kept are dropped: adds them to kept ones. threshold: the layer's, NaN before its
  // first eviction; updated. kOutOfBudget where a shared page could not be copied; then entries of that head from that
  // page on are as they were.
  Status Run(std::span<HeadCache> heads, const KeptHeads& kept, const MergeOptions& options, double* threshold);

  int64_t num_merged() const { return num_merged_; }  // since creation

 private:
  struct Buffers {
    std::vector<float> keys, values;
    std::vector<int32_t> changed;
    Status status;
  };
  // [n, Dv], of which only the rows that merging reads are filled.
  static void ReadMergedValues(const HeadCache& head, const MergePlan& plan, std::vector<float>& values);

  std::vector<Buffers> buffers_;  // [kv heads]
  std::vector<MergePlan> plans_;
  int64_t num_merged_ = 0;
};

}  // namespace pith

#endif  // PITH_ENGINE_MERGER_H_
