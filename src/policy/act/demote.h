// Entries that do not stay as they are go to fewer bits (act=demote, after MiKV, arXiv:2402.18096) or become latents
// against those that stay (act=delta, after DeltaKV, arXiv:2602.08005), and none is dropped.
//
// MiKV quantises a key over its channels, so that outlier channels coarsen all others, and moves these into the query
// by a balancer. Here a group is one channel of 32 entries: multiplying a channel by any number multiplies its grid
// with it, but for the rounding of its scale. So there is no balancer (tests/golden_mikv_test.cc compares both).
#ifndef PITH_POLICY_ACT_DEMOTE_H_
#define PITH_POLICY_ACT_DEMOTE_H_

#include <memory>

#include "kernels/page_layout.h"

namespace pith {

class DeltaMaps;

struct DemoteOptions {
  PageFormat high;                 // of entries that matter; not f16: their full pages
  PageFormat low = KvFormat::kQ2;  // of the others
  double share = 1;                // of the entries may be high at most, if bytes allow more
  int recent = 0;                  // of latents: the newest entries stay as they are, beside first ones and that share
  std::shared_ptr<const DeltaMaps> maps = nullptr;  // of latents; null: each head finds its own

  bool makes_latents() const { return low.latents > 0; }

  // The share that is high where all entries take `bytes`, in f16 entries, as those of the two formats cost; below 0:
  // not even all of them in the low format do.
  double ShareFor(double bytes, double high_cost, double low_cost) const {
    const double allowed = (bytes - low_cost) / (high_cost - low_cost);
    return allowed < share ? allowed : share;
  }
};

}  // namespace pith

#endif  // PITH_POLICY_ACT_DEMOTE_H_
