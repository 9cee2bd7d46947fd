// FlowKV (arXiv:2505.15347): what earlier turns left is frozen, and only the turn just finished is compressed, once, by
// any host. Of the host's window the whole cache is seen, but it judges and pools over the turn's entries alone; what
// is pinned (the system prompt) is no part of a turn. cap is ours: the paper's cache grows for ever.
#include <algorithm>
#include <cmath>

#include "policy/stage.h"
#include "policy/turns/turns.h"

namespace pith {

int TurnKeep(const TurnOptions& options, int m, int window) {
  if (m < std::max(window, options.min_keep)) return m;
  // 1e-9: 100 * (1 - 0.8) is 20, whatever the binary fraction says.
  return std::min(m, std::max(options.min_keep, static_cast<int>(m * (1 - options.drop) + 1e-9)));
}

CapPlan PlanCap(const TurnOptions& options, const std::vector<double>& frozen, double keep, double cap) {
  double held = 0;
  for (const double turn : frozen) held += turn;
  CapPlan plan{.keep = keep};
  if (held + keep <= cap) return plan;
  plan.keep =
      std::min(keep, std::max<double>(options.min_keep, std::floor(cap / static_cast<double>(frozen.size() + 1))));
  for (const double turn : frozen) {
    if (held + plan.keep <= cap) break;
    held -= turn;
    ++plan.num_dropped;
  }
  return plan;
}

StageInfo<TurnOptions> FlowKvStage() {
  return {
      "each turn is compressed once, when it is over, among its own entries; what earlier turns left stays as it is",
      {RealParam("drop", 0.5, 0, 0.99, "share of each turn that goes (rho)"),
       RealParam("cap", 0.5, 0.05, 0.9, "share of the budget for turns that are over; then the oldest go"),
       IntParam("min", 4, 1, 4096, "entries of a turn and head that stay in any case")},
      [](const Params& p) -> std::unique_ptr<TurnOptions> {
        return std::make_unique<TurnOptions>(TurnOptions{.method = TurnMethod::kFlowKv,
                                                         .drop = p.Real("drop"),
                                                         .cap = p.Real("cap"),
                                                         .min_keep = p.Int("min"),
                                                         .embedder = {}});
      }};
}

}  // namespace pith
