// ThinK (arXiv:2407.21018): which key channels matter to the recent queries. Channel c of a kv head adds
// q_c k_c to every logit; the squared Frobenius norm of that rank-1 term over queries and keys is, up to a
// constant, energy of the queries times energy of the keys. One choice per kv head, as kvpress makes it;
// the authors' code repeats the keys for every query head first.
#ifndef PITH_POLICY_ACT_THINK_H_
#define PITH_POLICY_ACT_THINK_H_

#include <cstdint>
#include <span>
#include <vector>

namespace pith {

// scores[c] = mean over the group's queries of q_c^2 times mean over keys of k_c^2.
// queries: [num_queries, D] of all query heads of the group, after RoPE; keys: [num_keys, D]; scores: [D].
void ChannelImportance(std::span<const float> queries, std::span<const float> keys, std::span<float> scores);

// The channels that stay when floor(D * share) of them go, ascending; of equal ones the lower goes first.
std::vector<int32_t> KeptChannels(std::span<const float> scores, double share);

// Rows [n, D] with those channels alone, in their order: [n, channels].
std::vector<float> PackChannels(std::span<const float> rows, size_t dim, std::span<const int32_t> channels);

// query . key / sqrt(D) over packed keys, then over whole ones; D is the query's. [packed keys + whole keys]
std::vector<float> PackedLogits(std::span<const float> query, std::span<const int32_t> channels,
                                std::span<const float> packed, std::span<const float> whole);

}  // namespace pith

#endif  // PITH_POLICY_ACT_THINK_H_
