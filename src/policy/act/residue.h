// Entries that stand in for those that do not stay (act=residue). Those that stay may do so as well (act=match,
// match.h).
//
// What is dropped is cut into a few clusters of keys, by the variance over queries of the difference of their logits.
// Each cluster becomes one entry: a key whose logits follow the logarithm of the cluster's mass, by weighted least
// squares over the queries of a second reading, and the value that the cluster gives on average. Kept entries' keys
// stay as they are; their values may be refitted together with the new ones, so that the outputs of all are those of
// before.
//
// Attention over [what was compressed, later tokens] is the average of the two parts' outputs weighted by their masses:
// whoever keeps both for a query is exact for it, whatever comes later.
#ifndef PITH_POLICY_ACT_RESIDUE_H_
#define PITH_POLICY_ACT_RESIDUE_H_

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "kernels/page_layout.h"
#include "policy/act/least_squares.h"
#include "policy/repeat.h"

namespace pith {

// How entries that stay speak for the others (match.h).
struct MatchOptions {
  double ridge = 0.1;           // of biases towards none, times the mean diagonal of the regression's matrix
  double least = -3, most = 3;  // biases
  int steps = -1;               // >= 0: as the authors' code: no ridge, clamped, so many steps of projected gradient
  int pursuit = 0;              // > 0: which entries stay is found by matching pursuit, so many at a time
};

struct ResidueOptions {
  int entries = 4;            // of each head
  int rounds = 8;             // of clustering
  int rows = 2000;            // queries of a second reading, of each kv head
  bool refits = true;         // values of all entries
  double key_ridge = 1e-3;    // times the mean diagonal of the regression's matrix
  double value_ridge = 3e-2;  // towards the values that entries have, likewise
  // What format=auto takes last, of a whole prompt. The values that stay and stand in speak for all.
  PageFormat auto_last = PageFormat(KvFormat::kQ4, KvFormat::kQ2);
  RepeatOptions repeat = {};  // where the scorer reads nothing again
  std::optional<MatchOptions> match = {};  // there are no new entries then
};

// The entries of one kv head, and queries to fit to.
struct ResidueInputs {
  int key_dim = 0, value_dim = 0;
  const float* keys = nullptr;       // [n, D], after RoPE
  const float* values = nullptr;     // [n, Dv]
  std::span<const int32_t> fixed;    // indices into these, ascending: entries that stay as they are, pinned ones
  std::span<const int32_t> kept;     // others that stay
  std::span<const int32_t> dropped;  // what does not; at least one
  MatrixView queries;                // [N, D], after RoPE
  float scale = 1;                   // of q.k
  float soft_cap = 0;                // 0: none
};

// New entries, cluster by cluster; a cluster without members has none.
struct Residues {
  std::vector<int32_t> labels;   // [dropped] cluster of each entry
  std::vector<int32_t> members;  // [r] each one's heaviest dropped entry, whose place it takes
  std::vector<float> keys;       // [r, D]
  std::vector<float> values;     // [r, Dv]
  std::vector<float> outputs;    // [N, Dv] attention of the queries over all entries
  std::vector<double> weights;   // [dropped] what each gets of that attention, on average
};

// At most `count` of them. O(N n (D + Dv)).
Residues MakeResidues(const ResidueOptions& options, int count, const ResidueInputs& inputs);

// Moves values [u, Dv] of entries with those keys, but for the first num_fixed, so that attention of the queries over
// them gives the outputs. ridge: towards the values that they have, times the mean diagonal of the regression's matrix.
// False (where that fails): they are as they were. O(N u min(N, u)).
bool RefitValues(double ridge, const ResidueInputs& inputs, const MatrixView& keys, size_t num_fixed,
                 const std::vector<float>& outputs, std::span<float> values);

}  // namespace pith

#endif  // PITH_POLICY_ACT_RESIDUE_H_
