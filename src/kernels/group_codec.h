// Groups of a few bits in and out of pages, and entries between pages of any formats.
#ifndef PITH_KERNELS_GROUP_CODEC_H_
#define PITH_KERNELS_GROUP_CODEC_H_

#include <cstddef>
#include <cstdint>
#include <span>

#include "kernels/page_layout.h"

namespace pith::kernels {

// Which scales a group may take.
enum class ScaleGrid : uint8_t {
  // As fine as the scale's byte allows: every element within half a scale.
  kFine,
  // As fine, but in formats with clips_keys (q3, q2) the one of least squared error, which may cut off what lies far
  // out. Of keys it takes a third to a half of the loss in KL; values lose by it: their outliers are what they say.
  kClipped,
  // Powers of two, zeros at multiples of the scale. What was stored so is stored again without error
  // unless the new group needs a larger scale, so that the error of survivors does not add up however often
  // evictions regroup them: over 50 rounds it grows to 2.2 times that of the first storing in q4 and 1.5 times
  // in q2, where the fine grid comes to 6 and 23 times (group_codec_test.cc).
  kNested,
};

// Writes one key channel of a whole page: values [P] of its entries. The format of keys is in groups.
void WriteKeyGroup(const PageLayout& layout, std::byte* page, int channel, const float* values, ScaleGrid grid);

// Writes channels 32*group .. of one entry's value; at most 32 of them. The format of values is in groups.
void WriteValueGroup(const PageLayout& layout, std::byte* page, int slot, int group, std::span<const float> values);

// Writes one entry's value [Dv] in any format, and nothing else of it.
void WriteValueRow(const PageLayout& layout, std::byte* page, int slot, const float* value);

// One entry of a page in any format as float32: its key [D], channels `stride` floats apart, or its value [Dv].
void ReadKey(const PageLayout& layout, const std::byte* page, int slot, float* key, size_t stride);
void ReadValue(const PageLayout& layout, const std::byte* page, int slot, float* value);

// Copies an entry's value, position and columns between pages of any formats but coded ones; exact where they are the
// same.
void CopyValueAndState(const PageLayout& to_layout, std::byte* to, int to_slot, const PageLayout& from_layout,
                       const std::byte* from, int from_slot);

// Copies an entry between pages of any formats but for keys in groups in `to`, and coded entries there.
void ConvertEntry(const PageLayout& to_layout, std::byte* to, int to_slot, const PageLayout& from_layout,
                  const std::byte* from, int from_slot);

// A whole page in another format: keys, values, positions and columns. Both have the same shape, and either the keys
// have 16 bits or the other format is not written whole.
void ConvertPage(const PageLayout& from_layout, const std::byte* from, const PageLayout& to_layout, std::byte* to);

}  // namespace pith::kernels

#endif  // PITH_KERNELS_GROUP_CODEC_H_
