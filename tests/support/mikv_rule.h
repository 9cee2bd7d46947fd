// MiKV as its paper has it (No Token Left Behind, arXiv:2402.18096; no authors' code): the balancer that moves outlier
// channels of the keys into the query, the quantiser over channels of one entry, and the tiers. act=demote is measured
// against it: its groups are entries of one channel, where a balancer has nothing to move.
#ifndef PITH_TESTS_SUPPORT_MIKV_RULE_H_
#define PITH_TESTS_SUPPORT_MIKV_RULE_H_

#include <cstdint>
#include <span>
#include <vector>

namespace pith::testing {

// Step 2: b[c] = sqrt(max |q_c| / max |k_c|) of one kv head, within 1e-4..1e4; 1 where either is 0.
// Keys are multiplied by it before they are quantised, queries divided. queries: [.., D] of the group's
// query heads over the prompt, after RoPE; keys: [.., D]; balancer: [D].
void Balance(std::span<const float> queries, std::span<const float> keys, std::span<float> balancer);

// Step 5, one row of D channels in groups: code = round((x - beta) / alpha) with beta the group's least,
// alpha its range / (2^bits - 1), both float16 and rounded before the codes are fitted to them. A constant
// group has the smallest alpha and codes 0. Ties of rounding to even. bits: 1..8.
struct GroupCodes {
  std::vector<int32_t> codes;       // [D]
  std::vector<float> alpha, beta;   // [D / group], values that float16 holds
};
GroupCodes QuantizeRow(std::span<const float> row, int group, int bits);
void DequantizeRow(const GroupCodes& codes, std::span<float> row);

// The same for keys in balanced space, back in their own scale: what a retained key is worth.
GroupCodes QuantizeKey(std::span<const float> key, std::span<const float> balancer, int group, int bits);
void DequantizeKey(const GroupCodes& codes, std::span<const float> balancer, std::span<float> key);

// Step 3: of n entries floor(ratio n) are in the high tier, the newer half of them (rounded down) as the
// newest entries.
struct TierSizes {
  int high = 0;
  int recent = 0;
};
TierSizes TierSizesFor(double ratio, int num_entries);

// Step 4: 1 = high tier. sums: accumulated attention [n], in time order.
std::vector<uint8_t> FormTiers(std::span<const float> sums, TierSizes sizes);

// Step 8: the entry of the high tier with the smallest sum, the newest `recent` entries apart; ties to the
// older. -1: the high tier holds no more than it may.
int ChooseDemoted(std::span<const float> sums, std::span<const uint8_t> high, TierSizes sizes);

}  // namespace pith::testing

#endif  // PITH_TESTS_SUPPORT_MIKV_RULE_H_
