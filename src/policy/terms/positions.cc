#include "policy/terms/positions.h"

#include <algorithm>
#include <limits>

namespace pith {
namespace {

bool SamePositions(const LayerInputs& layer) {
  const HeadInputs& first = layer.heads.front();
  return std::all_of(layer.heads.begin(), layer.heads.end(), [&](const HeadInputs& head) {
    return head.num_entries == first.num_entries &&
           std::equal(head.positions.begin(), head.positions.end(), first.positions.begin(), first.positions.end());
  });
}

}  // namespace

std::vector<std::vector<float>> MeanOverHeads(const LayerInputs& layer, const std::vector<std::vector<float>>& values) {
  std::vector<std::vector<float>> means = values;
  if (layer.heads.empty()) return means;
  if (SamePositions(layer)) {
    for (size_t i = 0; i < values.front().size(); ++i) {
      float sum = 0;
      for (const auto& head : values) sum += head[i];
      for (auto& head : means) head[i] = sum / static_cast<float>(values.size());
    }
    return means;
  }
  struct Sum {
    float sum = 0;
    float count = 0;
  };
  int32_t first = std::numeric_limits<int32_t>::max(), last = -1;
  for (const HeadInputs& head : layer.heads) {
    if (head.positions.empty()) continue;
    first = std::min(first, head.positions.front());
    last = std::max(last, head.positions.back());
  }
  std::vector<Sum> sums(static_cast<size_t>(std::max(last - first + 1, 0)));
  for (size_t h = 0; h < values.size(); ++h) {
    for (size_t i = 0; i < values[h].size(); ++i) {
      Sum& s = sums[static_cast<size_t>(layer.heads[h].positions[i] - first)];
      s.sum += values[h][i];
      s.count += 1;
    }
  }
  for (size_t h = 0; h < values.size(); ++h) {
    for (size_t i = 0; i < values[h].size(); ++i) {
      const Sum& s = sums[static_cast<size_t>(layer.heads[h].positions[i] - first)];
      means[h][i] = s.sum / s.count;
    }
  }
  return means;
}

}  // namespace pith
