// Whole pages of several heads by what is in them.
#ifndef PITH_POLICY_PAGE_DIVISION_H_
#define PITH_POLICY_PAGE_DIVISION_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>

#include "policy/stage.h"

namespace pith {

// Of HeadInputs::pinned: one of the first tokens, which stays because recipes want these, not because somebody pinned
// it.
inline constexpr uint8_t kPinnedAsSink = 2;

// How many of a head's first entries stay as soon as it holds a page, pinned or not.
using FirstEntries = std::function<int(const LayerScores& layer, size_t head)>;

// Of budget.page_entries > 1. Each head keeps what is pinned; then pages go, one by one, to the head in which the next
// best entries have the largest sum of scores (0 at least each) for what the page takes, as long as all are within
// TotalEntries(), which heads without a page and their rests are part of. A head's first page begins with its first
// entries. Heads are filled up with budget.stand_ins, which are part of their pages; budget.keep and keep_exact are
// what stays beside these.
void DividePages(std::span<const LayerScores> layers, const Budget& budget, const FirstEntries& first, Allocation& out);

// These budgets are as DividePages() makes them: whole pages, what must stay, or all, in no more than there is.
bool AreInPages(std::span<const LayerScores> layers, const Budget& budget, const Allocation& budgets);

}  // namespace pith

#endif  // PITH_POLICY_PAGE_DIVISION_H_
