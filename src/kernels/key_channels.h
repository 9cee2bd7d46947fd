// Keys of which a page holds some channels only (act=prune, after ThinK, arXiv:2407.21018): a page's key_dim is their
// number, and a list beside it says which of the head's D channels they are. What is left out is 0.
#ifndef PITH_KERNELS_KEY_CHANNELS_H_
#define PITH_KERNELS_KEY_CHANNELS_H_

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>

#include "kernels/page_layout.h"

namespace pith {

// Channels that are left of `dim` when floor(dim * share) go. 1e-9: the share may be a little less than was written.
inline int ChannelsLeft(int dim, double share) { return dim - static_cast<int>(std::floor(dim * share + 1e-9)); }

namespace kernels {

// Those that are stored, ascending.
using KeyChannels = std::span<const uint16_t>;

// A whole page of all channels as one of the same formats with these alone. Exact.
void SelectChannels(const PageLayout& from_layout, const std::byte* from, KeyChannels channels,
                    const PageLayout& to_layout, std::byte* to);

// An entry's key of a page with all channels, or with these alone, as float32 [D], `stride` floats apart.
void ReadWholeKey(const PageLayout& layout, const std::byte* page, int slot, KeyChannels channels, int dim, float* key,
                  size_t stride);

// ConvertEntry (group_codec.h) where either page, or both, has these channels alone. Exact where the formats are equal.
void ConvertPrunedEntry(const PageLayout& to_layout, std::byte* to, int to_slot, const PageLayout& from_layout,
                        const std::byte* from, int from_slot, KeyChannels channels, int dim);

// [count, channels] becomes [count, dim] in place, zeros in between.
void SpreadKeys(KeyChannels channels, int count, int dim, float* keys);
// [channels, width] becomes [dim, width] in place, likewise.
void SpreadChannels(KeyChannels channels, size_t width, int dim, float* keys);

}  // namespace kernels
}  // namespace pith

#endif  // PITH_KERNELS_KEY_CHANNELS_H_
