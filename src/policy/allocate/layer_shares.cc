#include "policy/allocate/layer_shares.h"

#include <fmt/format.h>

#include <algorithm>

#include "policy/select.h"
#include "policy/words.h"

namespace pith {
namespace {

// Entries per head that a layer can use. Heads that compete use what shorter ones leave, so that all entries count.
int RoomPerHead(const LayerScores& layer, bool pair) {
  size_t most = 0, all = 0;
  for (const auto& head : layer.heads) {
    most = std::max(most, head.size());
    all += head.size();
  }
  const size_t count = std::max<size_t>(layer.heads.size(), 1);
  return static_cast<int>(pair ? (all + count - 1) / count : most);
}

void SpreadEvenly(int amount, const std::vector<int>& room, std::vector<int>& share) {
  std::vector<size_t> open;
  for (size_t l = 0; l < share.size(); ++l) {
    if (share[l] < room[l]) open.push_back(l);
  }
  const int num_open = static_cast<int>(open.size());
  for (int k = 0; k < num_open; ++k) {
    share[open[static_cast<size_t>(k)]] += amount / num_open + (k < amount % num_open ? 1 : 0);
  }
}

void Settle(int total, const std::vector<int>& room, std::vector<int>& share) {
  int excess = 0;
  for (size_t l = 0; l < share.size(); ++l) {
    excess += std::max(0, share[l] - room[l]);
    share[l] = std::min(share[l], room[l]);
  }
  SpreadEvenly(excess, room, share);
  int left = total;
  for (int s : share) left -= s;
  if (left > 0) SpreadEvenly(left, room, share);
}

}  // namespace

void FillRooms(int total, const std::vector<int>& room, bool again, std::vector<int>& share) {
  Settle(total, room, share);
  while (again) {
    int left = total;
    bool open = false;
    for (size_t l = 0; l < share.size(); ++l) {
      share[l] = std::min(share[l], room[l]);
      left -= share[l];
      open |= share[l] < room[l];
    }
    if (left <= 0 || !open) return;
    SpreadEvenly(left, room, share);
  }
}

void AllocateLayers(std::span<const LayerScores> layers, const Budget& budget, std::vector<int> per_head, bool pair,
                    Allocation& out) {
  int spare = 0;
  for (int round = 0; round < 2 && budget.keep_exact == 0; ++round) {
    for (size_t l = 0; l < layers.size(); ++l) {
      const int given = std::min(per_head[l] + spare, RoomPerHead(layers[l], pair));
      spare += per_head[l] - given;
      per_head[l] = given;
    }
  }
  for (size_t l = 0; l < layers.size(); ++l) {
    for (HeadBudget& head : out[l]) head = {per_head[l], 0};
    if (!pair) continue;
    Allocation layer(1, out[l]);
    AllocatePooled(layers.subspan(l, 1), int64_t{per_head[l]} * static_cast<int64_t>(out[l].size()), 0, layer);
    out[l] = layer.front();
  }
}

Status CheckLayerCount(std::string_view stage, const std::string& path, size_t count, int num_layers) {
  if (count == static_cast<size_t>(num_layers)) return {};
  return InvalidArgument(fmt::format("alloc={}: {} has {} layers, and this model has {} with a cache to share", stage,
                                     Printable(path), count, num_layers));
}

}  // namespace pith
