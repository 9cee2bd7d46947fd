#include "policy/prefill/criti.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "kernels/page_layout.h"
#include "policy/stage.h"

namespace pith {

Status CheckCritiOptions(const CritiOptions& options) {
  if (options.block % kPageEntries != 0) {
    return InvalidArgument(fmt::format("prefill=criti skips whole pages, so its block must be a multiple of {}, not {}",
                                       kPageEntries, options.block));
  }
  if (options.segment % options.block != 0) {
    return InvalidArgument(
        fmt::format("the segment of prefill=criti must be a multiple of its block, and {} is none of {}",
                    options.segment, options.block));
  }
  if (options.budget < options.block) {
    return InvalidArgument(fmt::format("the budget of prefill=criti must hold one block: {} is less than {}",
                                       options.budget, options.block));
  }
  return {};
}

void BlockCriticality(const float* scores, size_t stride, int group, std::span<double> criticality) {
  double greatest = -INFINITY;
  for (size_t j = 0; j < criticality.size(); ++j) {
    double sum = 0;
    for (int g = 0; g < group; ++g) sum += scores[static_cast<size_t>(g) * stride + j];
    criticality[j] = sum / group;
    greatest = std::max(greatest, criticality[j]);
  }
  double total = 0;
  for (double& value : criticality) total += value = std::exp(value - greatest);
  // A value that is no number never wins, so that the order of blocks stays total.
  for (double& value : criticality) value = value >= 0 ? value / total : 0;
}

void FuseCriticality(std::span<const double> before, std::span<double> criticality) {
  constexpr double kBefore = 0.25;
  for (size_t j = 0; j < criticality.size(); ++j) {
    criticality[j] = kBefore * before[j] + (1 - kBefore) * criticality[j];
  }
}

void ChooseBlocks(std::span<const double> criticality, int count, bool keep_first, std::vector<int32_t>& chosen) {
  chosen.resize(criticality.size());
  std::iota(chosen.begin(), chosen.end(), 0);
  const auto kept = std::min(static_cast<ptrdiff_t>(std::max(count, 0)), static_cast<ptrdiff_t>(chosen.size()));
  std::partial_sort(chosen.begin(), chosen.begin() + kept, chosen.end(), [&](int32_t a, int32_t b) {
    const double left = criticality[static_cast<size_t>(a)], right = criticality[static_cast<size_t>(b)];
    return left != right ? left > right : a < b;
  });
  chosen.resize(static_cast<size_t>(kept));
  if (keep_first && !chosen.empty() && std::find(chosen.begin(), chosen.end(), 0) == chosen.end()) chosen.back() = 0;
}

StageInfo<CritiOptions> CritiStage() {
  return {
      "while a prompt is read, segments of queries attend only to the earlier blocks that matter; nothing is dropped",
      {IntParam("segment", 512, kPageEntries, 4096, "queries that share one selection"),
       IntParam("block", 32, kPageEntries, 4096, "keys per block, a multiple of 32"),
       IntParam("budget", 2048, kPageEntries, 1 << 24, "earlier entries that a segment attends to"),
       IntParam("threshold", 4096, 0, 1 << 24, "segments with fewer earlier entries attend to all"),
       IntParam("skip", 1, 0, 1000, "lowest layers that attend to all"),
       ChoiceParam("fusion", "on|off", "moving average of the blocks' criticality over layers"),
       ChoiceParam("first", "off|on", "the first block is always chosen")},
      [](const Params& p) -> std::unique_ptr<CritiOptions> {
        return std::make_unique<CritiOptions>(CritiOptions{.segment = p.Int("segment"),
                                                           .block = p.Int("block"),
                                                           .budget = p.Int("budget"),
                                                           .threshold = p.Int("threshold"),
                                                           .skip = p.Int("skip"),
                                                           .fusion = p.Choice("fusion") == 0,
                                                           .keep_first = p.Choice("first") == 1});
      }};
}

}  // namespace pith
