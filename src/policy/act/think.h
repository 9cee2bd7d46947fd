// ThinK (arXiv:2407.21018): which key channels matter to the recent queries (act=prune). Channel c of a kv head adds
// q_c k_c to every logit; the squared Frobenius norm of that rank-1 term over queries and keys is, up to a constant,
// energy of the queries times energy of the keys. One choice per kv head, as kvpress makes it; the authors' code
// repeats the keys for every query head first.
//
// Two differences from the authors' code, which prunes once, when the prompt has been read: entries that come later
// lose the same channels once they are no longer among the newest (as in its 2-bit variant), and pages are pruned
// whole.
#ifndef PITH_POLICY_ACT_THINK_H_
#define PITH_POLICY_ACT_THINK_H_

#include <cstdint>
#include <span>
#include <vector>

namespace pith {

struct PruneOptions {
  double share = 0.4;  // of the channels that go
  int window = 32;     // queries that choose
  int recent = 32;     // the newest entries keep all channels
};

// What a kv head's channels amount to.
class ChannelEnergies {
 public:
  explicit ChannelEnergies(size_t dim) : queries_(dim, 0), keys_(dim, 0) {}

  // Rows [.., D] after RoPE: queries of all query heads of the group, keys that stay. Sums are in double since they run
  // over thousands of rows.
  void AddQueries(std::span<const float> rows) { Add(rows, queries_, num_queries_); }
  void AddKeys(std::span<const float> rows) { Add(rows, keys_, num_keys_); }

  // Of each channel the mean of q_c^2 times the mean of k_c^2. [D]
  std::vector<float> Scores() const;

 private:
  static void Add(std::span<const float> rows, std::vector<double>& sums, size_t& count);

  std::vector<double> queries_, keys_;
  size_t num_queries_ = 0, num_keys_ = 0;
};

// The channels that stay when floor(D * share) of them go, ascending; of equal ones the lower goes first.
std::vector<uint16_t> KeptChannels(std::span<const float> scores, double share);

}  // namespace pith

#endif  // PITH_POLICY_ACT_THINK_H_
