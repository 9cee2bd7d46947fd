// The parts of DefensiveKV's last steps (arXiv:2510.13334; github.com/FFY0/DefensiveKV
// efficient_defensivekv_press.py).
#ifndef PITH_POLICY_MODIFY_CERTAIN_ENTRIES_H_
#define PITH_POLICY_MODIFY_CERTAIN_ENTRIES_H_

#include <vector>

#include "policy/stage.h"

namespace pith {

// Scores times each head's share of the projected value norms at the entry's position. Nothing where
// the inputs have no norms.
void WeighByValueShares(const LayerInputs& inputs, LayerScores& scores);

// means: [kv heads][entries before the window], mean attention of the last `window` queries over all
// of them, scaled to sum 1. Returns the mean attention that a query pays to the entries just before
// the window, as many as the window has.
double MeanAttention(const LayerInputs& inputs, int window, std::vector<std::vector<float>>& means);

// The entries of largest mean attention, as long as their sum stays below certain_mass and
// their number within the budget beside the window.
std::vector<size_t> CertainEntries(const std::vector<float>& mean, double certain_mass, int window,
                                   const Budget& budget);

}  // namespace pith

#endif  // PITH_POLICY_MODIFY_CERTAIN_ENTRIES_H_
