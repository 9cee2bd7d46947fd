// act=residue and act=match on the cache of one layer (policy/act/residue.h, match.h).
#ifndef PITH_ENGINE_STAND_INS_H_
#define PITH_ENGINE_STAND_INS_H_

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <vector>

#include "cache/kv_cache.h"
#include "engine/repeat.h"
#include "pith/types.h"
#include "policy/act/residue.h"
#include "policy/policy.h"

namespace pith {

// What is the same for all heads of a layer.
struct StandInTask {
  const ResidueOptions& options;
  int count;  // of new entries of each head
  const ReferenceQueries& references;
  int global_layer;
  int first_head;                       // kv head of the first of the heads
  int group;                            // query heads per kv head
  std::span<const int> num_entries;     // [kv heads] that were scored; newer ones are left alone
  float scale, soft_cap;                // of attention
  std::optional<PageFormat> format;     // that what stays is converted to
  std::function<bool(int32_t)> guards;  // of a position: no recipe may drop it, so that it is no part of this
};

// Before the entries that are not kept are dropped: new ones are written over some of these, whose indices join `kept`;
// values of kept ones may change, with act=match keys, too. Nothing is written to pages of a low format. kOutOfBudget
// where a shared page could not be copied; entries of earlier pages are rewritten already.
Status MakeStandInEntries(const StandInTask& task, std::span<HeadCache> heads, std::span<std::vector<int32_t>> kept);

}  // namespace pith

#endif  // PITH_ENGINE_STAND_INS_H_
