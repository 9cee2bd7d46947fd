// From scores and budgets to kept entries.
#ifndef PITH_POLICY_SELECT_H_
#define PITH_POLICY_SELECT_H_

#include <algorithm>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

#include "base/parallel.h"
#include "policy/stage.h"

namespace pith {

inline constexpr float kProtected = std::numeric_limits<float>::infinity();

// Orders numbers as integers, largest first; equal for both zeros.
uint32_t Falling(float number);

// Entries over `num_heads` heads: keep * heads, or int(keep_exact * heads) where given.
int64_t TotalEntries(const Budget& budget, size_t num_heads);

// The share of n that stays, for formulas that want a ratio.
double KeepFraction(const Budget& budget, int num_entries);

// Budgets within 0..n, room for pinned entries, and the total at most `limit` save for pinned
// entries: what is too much is taken evenly from the heads with most beside their pinned ones.
void FitBudgets(std::span<const LayerScores> layers, int64_t limit, Allocation& budgets);

// Fitted budgets, with the entries that stand in, as multiples of page_entries that cost `total` at most: down, then up
// again where most of what was given fits for what a page takes. A head that must hold more keeps just that. Not 0:
// what that costs beyond the total, and nothing has changed; with `overdraws` it is taken from heads of several pages.
double RoundToPages(std::span<const LayerScores> layers, const Budget& budget, double total, bool overdraws,
                    Allocation& budgets);

// Fitted budgets, such that what a head does not keep is a multiple of page_entries: fewer stay, then more again where
// most was lost, as far as all keep `total` at most. What heads must keep beyond their budgets is taken from the
// largest.
void RoundRests(std::span<const LayerScores> layers, int page_entries, int64_t total, Allocation& budgets);

// The `keep` best entries of one head, ascending: pinned first, then by score, then by tie, then
// newer. Pinned entries stay even where they are more than `keep`. ties, pinned: [n] or empty.
std::vector<int32_t> SelectTop(std::span<const float> scores, std::span<const float> ties,
                               std::span<const uint8_t> pinned, int keep);

// Of the entries [first, end) of one head those that are not among the kept ones; both ascending.
std::vector<int32_t> NotKept(int32_t first, int32_t end, std::span<const int32_t> kept);

// Entries of all heads of all layers compete for `total` places after each head got its `floor`
// best. Fills out[layer][head]; ties as in SelectTop, across heads the newer one, then the first.
void AllocatePooled(std::span<const LayerScores> layers, int64_t total, double floor, Allocation& out);

// The newest w entries get +infinity.
void ProtectNewest(std::span<float> scores, int w);

// Where a layer has negative scores (key norms, cosines), s -> exp(s - max), for stages that weigh
// scores by factors. Protected entries stay as they are.
void MakePositive(LayerScores& scores);

int CountPinned(std::span<const uint8_t> pinned);
inline std::span<const uint8_t> PinnedOf(const LayerScores& scores, size_t head) {
  if (scores.pinned.empty()) return {};
  return scores.pinned[head];
}
inline std::span<const float> TiesOf(const LayerScores& scores, size_t head) {
  if (scores.ties.empty()) return {};
  return scores.ties[head];
}

// Entries of a head that are neither pinned nor counted for pinned ones: what methods call budget.
int CompetingBudget(const HeadRank& rank);

// [n] -> [n], stride 1, centred window. Mean pooling counts zero padding in the divisor.
void Pool(std::span<const float> in, const Pooling& pooling, std::span<float> out);

// Mean over the group of what fill(g, row) writes, pooled. out: [n], as each row. Query heads side by side.
template <typename Fill>
void MeanOfPooled(int group, const Pooling& pooling, const Fill& fill, std::span<float> out) {
  const auto count = static_cast<size_t>(group);
  std::vector<std::vector<float>> pooled(count, std::vector<float>(out.size()));
  ParallelFor(count, [&](size_t g) {
    std::vector<float> row(out.size());
    fill(static_cast<int>(g), std::span<float>(row));
    Pool(row, pooling, pooled[g]);
  });
  std::fill(out.begin(), out.end(), 0.0F);
  for (const std::vector<float>& row : pooled) {
    for (size_t j = 0; j < out.size(); ++j) out[j] += row[j] / static_cast<float>(group);
  }
}

// Largest over the group of what fill(g, row) leaves in its row of zeros. out: [n], as each row. Query heads side by
// side.
template <typename Fill>
void LargestOf(int group, const Fill& fill, std::span<float> out) {
  std::vector<std::vector<float>> rows(static_cast<size_t>(group), std::vector<float>(out.size()));
  ParallelFor(rows.size(), [&](size_t g) { fill(static_cast<int>(g), std::span<float>(rows[g])); });
  std::fill(out.begin(), out.end(), 0.0F);
  for (const std::vector<float>& row : rows) {
    for (size_t j = 0; j < out.size(); ++j) out[j] = std::max(out[j], row[j]);
  }
}

// In double.
double SumOf(std::span<const float> values);

}  // namespace pith

#endif  // PITH_POLICY_SELECT_H_
