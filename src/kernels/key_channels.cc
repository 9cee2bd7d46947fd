#include "kernels/key_channels.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "base/check.h"
#include "kernels/attention.h"
#include "kernels/group_codec.h"

namespace pith::kernels {
namespace {

// Keys that lie one by one, of one format: channel i of `to` is channels[i] of `from`, or the other way round.
template <typename T>
void MoveElements(std::byte* to, int to_slot, const std::byte* from, int from_slot, KeyChannels channels, int dim,
                  bool spreads) {
  T* const out = reinterpret_cast<T*>(to) + to_slot;
  const T* const in = reinterpret_cast<const T*>(from) + from_slot;
  for (int d = 0; d < dim && spreads; ++d) out[d * kPageEntries] = 0;
  for (size_t i = 0; i < channels.size(); ++i) {
    const size_t packed = i * kPageEntries, whole = static_cast<size_t>(channels[i]) * kPageEntries;
    out[spreads ? whole : packed] = in[spreads ? packed : whole];
  }
}

}  // namespace

void SelectChannels(const PageLayout& from_layout, const std::byte* from, KeyChannels channels,
                    const PageLayout& to_layout, std::byte* to) {
  PITH_DCHECK(to_layout.format == from_layout.format && static_cast<size_t>(to_layout.key_dim) == channels.size() &&
              to_layout.num_columns == from_layout.num_columns);
  const KvFormat format = to_layout.format.key;
  const size_t row = static_cast<size_t>(kPageEntries * BitsOf(format)) / 8;
  const auto* groups_from = from + from_layout.key_scale_offset;
  auto* groups_to = to + to_layout.key_scale_offset;
  const auto from_dim = static_cast<size_t>(from_layout.key_dim);
  for (size_t i = 0; i < channels.size(); ++i) {
    const size_t channel = channels[i];
    std::memcpy(to + to_layout.key_offset + i * row, from + from_layout.key_offset + channel * row, row);
    if (!IsGrouped(format)) continue;
    groups_to[i] = groups_from[channel];
    groups_to[channels.size() + i] = groups_from[from_dim + channel];
  }
  if (HasEntryScales(format)) std::memcpy(groups_to, groups_from, sizeof(float) * kPageEntries);
  // Values, and all from their scales to the end of the page, are alike.
  std::memcpy(to + to_layout.value_offset, from + from_layout.value_offset,
              to_layout.value_row_bytes() * kPageEntries);
  std::memcpy(to + to_layout.value_scale_offset, from + from_layout.value_scale_offset,
              to_layout.page_bytes - to_layout.value_scale_offset);
}

void ReadWholeKey(const PageLayout& layout, const std::byte* page, int slot, KeyChannels channels, int dim, float* key,
                  size_t stride) {
  if (layout.key_dim == dim) return ReadKey(layout, page, slot, key, stride);
  std::vector<float> packed(channels.size());
  ReadKey(layout, page, slot, packed.data(), 1);
  for (int d = 0; d < dim; ++d) key[static_cast<size_t>(d) * stride] = 0;
  for (size_t i = 0; i < packed.size(); ++i) key[channels[i] * stride] = packed[i];
}

void ConvertPrunedEntry(const PageLayout& to_layout, std::byte* to, int to_slot, const PageLayout& from_layout,
                        const std::byte* from, int from_slot, KeyChannels channels, int dim) {
  if (to_layout.key_dim == from_layout.key_dim) {
    return ConvertEntry(to_layout, to, to_slot, from_layout, from, from_slot);
  }
  const bool spreads = to_layout.key_dim == dim;
  if (to_layout.format.key == from_layout.format.key) {
    PITH_DCHECK(!to_layout.format.whole_pages());
    std::byte* const keys_to = to + to_layout.key_offset;
    const std::byte* const keys_from = from + from_layout.key_offset;
    if (BitsOf(to_layout.format.key) == 16) {
      MoveElements<uint16_t>(keys_to, to_slot, keys_from, from_slot, channels, dim, spreads);
    } else {
      MoveElements<int8_t>(keys_to, to_slot, keys_from, from_slot, channels, dim, spreads);
      reinterpret_cast<float*>(to + to_layout.key_scale_offset)[to_slot] =
          reinterpret_cast<const float*>(from + from_layout.key_scale_offset)[from_slot];
    }
  } else {
    std::vector<float> key(static_cast<size_t>(dim)), value(static_cast<size_t>(to_layout.value_dim));
    ReadWholeKey(from_layout, from, from_slot, channels, dim, key.data(), 1);
    for (size_t i = 0; i < channels.size() && !spreads; ++i) key[i] = key[channels[i]];
    ReadValue(from_layout, from, from_slot, value.data());
    WriteEntryF32(to_layout, to, to_slot, key.data(), value.data(), 0);
  }
  CopyValueAndState(to_layout, to, to_slot, from_layout, from, from_slot);
}

// From the end: a channel never moves towards the front.
void SpreadChannels(KeyChannels channels, size_t width, int dim, float* keys) {
  size_t left = channels.size();
  for (int d = dim - 1; d >= 0; --d) {
    float* const to = keys + static_cast<size_t>(d) * width;
    if (left > 0 && channels[left - 1] == d) {
      --left;
      if (to != keys + left * width) std::memcpy(to, keys + left * width, width * sizeof(float));
    } else {
      std::fill_n(to, width, 0.0F);
    }
  }
}

void SpreadKeys(KeyChannels channels, int count, int dim, float* keys) {
  const size_t packed = channels.size(), whole = static_cast<size_t>(dim);
  for (size_t row = static_cast<size_t>(count); row-- > 0;) {
    float* const to = keys + row * whole;
    std::memmove(to, keys + row * packed, packed * sizeof(float));
    SpreadChannels(channels, 1, dim, to);
  }
}

}  // namespace pith::kernels
