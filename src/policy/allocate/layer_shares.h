// What allocators with a fixed number per layer share.
#ifndef PITH_POLICY_ALLOCATE_LAYER_SHARES_H_
#define PITH_POLICY_ALLOCATE_LAYER_SHARES_H_

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "policy/stage.h"

namespace pith {

// Gives each layer its number of entries per head. pair: its heads compete for them (EpiCache's level
// `pair`), else each head has so many. With Budget::keep_exact 0, a hard limit, what goes beyond a
// layer's entries is handed to the layers after it and then to those before.
void AllocateLayers(std::span<const LayerScores> layers, const Budget& budget, std::vector<int> per_head, bool pair,
                    Allocation& out);

// Shares of layers, within the room that each has, from shares that may go beyond it: what is too much is
// spread evenly, first layers first, and so is what is missing to the total. The authors of CAKE do that
// once and lose what goes beyond a room again; `again` repeats it until everything has found its place.
void FillRooms(int total, const std::vector<int>& room, bool again, std::vector<int>& share);

// One sentence where a file's numbers are not one per layer of the model.
Status CheckLayerCount(std::string_view stage, const std::string& path, size_t count, int num_layers);

}  // namespace pith

#endif  // PITH_POLICY_ALLOCATE_LAYER_SHARES_H_
