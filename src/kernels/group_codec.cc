#include "kernels/group_codec.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <vector>

#include "base/check.h"
#include "kernels/attention.h"
#include "kernels/coded_pages.h"

namespace pith::kernels {
namespace {

// Scales are 2^(b >> 3) * (1 + (b & 7) / 8) * 2^-18: the upper bits of a float32.
constexpr int kScaleShift = 20;
constexpr uint32_t kLowestScaleBits = (127 - 18) << 23;
constexpr float kLowestScale = 0x1p-18f;

float ScaleOf(uint8_t byte) {
  const uint32_t bits = (static_cast<uint32_t>(byte) << kScaleShift) + kLowestScaleBits;
  float scale = 0;
  std::memcpy(&scale, &bits, sizeof(scale));
  return scale;
}

// The least scale that is at least `scale`, or the largest there is.
uint8_t ByteAtLeast(float scale, ScaleGrid grid) {
  const int shift = grid == ScaleGrid::kFine ? kScaleShift : 23;
  uint32_t bits = 0;
  scale = std::max(scale, kLowestScale);
  std::memcpy(&bits, &scale, sizeof(bits));
  const uint32_t steps = (bits - kLowestScaleBits + (1U << shift) - 1) >> shift << (shift - kScaleShift);
  return static_cast<uint8_t>(std::min(steps, grid == ScaleGrid::kFine ? 255U : 248U));
}

struct Group {
  uint8_t scale = 0;
  int8_t zero = 0;
  std::array<uint8_t, kGroupElements> codes = {};
};

// Nearest integer, ties to even, of |x| < 2^22.
float Round(float x) { return (x + 0x1.8p23f) - 0x1.8p23f; }

struct Range {
  float low, high;
};
Range RangeOf(std::span<const float> values) {
  Range range = {values[0], values[0]};
  for (const float value : values) {
    range.low = value < range.low ? value : range.low;
    range.high = value > range.high ? value : range.high;
  }
  return range;
}

// Rounds values to the codes of a scale and a zero. Returns the squared error.
double Encode(std::span<const float> values, KvFormat format, uint8_t scale_byte, int zero, Group* group) {
  const auto most = static_cast<float>((1 << BitsOf(format)) - 1);
  const float scale = ScaleOf(scale_byte), inverse = 1.0f / scale;
  const float offset = static_cast<float>(zero) / static_cast<float>(ZeroUnits(format));
  group->scale = scale_byte;
  group->zero = static_cast<int8_t>(zero);
  float error = 0;
  for (size_t i = 0; i < values.size(); ++i) {
    const float exact = values[i] * inverse - offset;
    float code = exact < 0.0f ? 0.0f : exact;
    code = Round(code > most ? most : code);
    group->codes[i] = static_cast<uint8_t>(code);
    error += (code - exact) * (code - exact);
  }
  return static_cast<double>(error) * scale * scale;
}

// The scale of which `levels` steps reach over a range, and of whose units a zero's 7 bits reach its low end.
Group QuantizeRange(std::span<const float> values, KvFormat format, Range range, double* error) {
  const auto levels = static_cast<float>((1 << BitsOf(format)) - 1), units = static_cast<float>(ZeroUnits(format));
  const float needed = std::max((range.high - range.low) / levels, std::abs(range.low) * units / 127);
  Group group;
  const uint8_t scale = ByteAtLeast(needed, ScaleGrid::kFine);
  const float zero = std::clamp(std::nearbyint(range.low / ScaleOf(scale) * units), -127.0f, 127.0f);
  *error = Encode(values, format, scale, static_cast<int>(zero), &group);
  return group;
}

// With three steps, cutting off what lies far out serves the rest: of normal elements it takes a quarter of the
// squared error away, with seven a fifth. With fifteen it hardly matters.
Group QuantizeClipped(std::span<const float> values, KvFormat format, Range range) {
  double least = 0, error = 0;
  Group best = QuantizeRange(values, format, range, &least);
  const float middle = (range.low + range.high) / 2, half = range.high - middle;
  for (const float share : {0.9f, 0.8f, 0.7f, 0.6f}) {
    const Group group = QuantizeRange(values, format, {middle - share * half, middle + share * half}, &error);
    if (error >= least) continue;
    least = error;
    best = group;
  }
  return best;
}

// The power of two and the zero with the least squared error: where few elements lie far out, a smaller
// scale that cuts them off may be the better one.
Group QuantizeNested(std::span<const float> values, KvFormat format, Range range) {
  const int units = ZeroUnits(format), largest_zero = 127 / units;
  const auto levels = static_cast<float>((1 << BitsOf(format)) - 1);
  const float needed =
      std::max((range.high - range.low) / levels, std::abs(range.low) / static_cast<float>(largest_zero));
  const int upper = ByteAtLeast(needed, ScaleGrid::kNested);
  Group best, candidate;
  double least = -1;
  for (const int scale : {upper, upper + 8, upper - 8}) {
    if (scale < 0 || scale > 248) continue;
    const int low = static_cast<int>(std::nearbyint(range.low / ScaleOf(static_cast<uint8_t>(scale))));
    for (const int zero : {low, low + 1}) {
      if (std::abs(zero) > largest_zero) continue;
      const double error = Encode(values, format, static_cast<uint8_t>(scale), zero * units, &candidate);
      if (least >= 0 && error >= least) continue;
      least = error;
      best = candidate;
      if (error == 0) return best;
    }
  }
  return best;
}

Group Quantize(std::span<const float> values, KvFormat format, ScaleGrid grid) {
  const Range range = RangeOf(values);
  double error = 0;
  switch (grid) {
    case ScaleGrid::kFine: return QuantizeRange(values, format, range, &error);
    case ScaleGrid::kClipped:
      return InfoOf(format).clips_keys ? QuantizeClipped(values, format, range)
                                       : QuantizeRange(values, format, range, &error);
    case ScaleGrid::kNested: return QuantizeNested(values, format, range);
  }
  return {};
}

// Codes of kBits bits in their planes (page_layout.h).
template <int kBits>
void Pack(const Group& group, std::byte* to) {
  int below = 0;
  for (int width = 4; width > 0; width /= 2) {
    if ((kBits & width) == 0) continue;
    const int bytes = kGroupElements * width / 8;
    for (int i = 0; i < bytes; ++i) {
      int byte = 0;
      for (int shift = 0; shift < 8; shift += width) {
        const int code = group.codes[static_cast<size_t>(i + shift / width * bytes)];
        byte |= (code >> below & ((1 << width) - 1)) << shift;
      }
      *to++ = static_cast<std::byte>(byte);
    }
    below += width;
  }
}

template <int kBits>
int CodeAt(const std::byte* group, int i) {
  int code = 0, below = 0;
  for (int width = 4; width > 0; width /= 2) {
    if ((kBits & width) == 0) continue;
    const int bytes = kGroupElements * width / 8;
    const int part = static_cast<int>(group[i % bytes]) >> (i / bytes * width) & ((1 << width) - 1);
    code |= part << below;
    group += bytes;
    below += width;
  }
  return code;
}

// Calls to_do<bits>() with those of a format in groups, so that loops are compiled for each.
template <int kBits = 1, class ToDo>
void WithBits(KvFormat format, const ToDo& to_do) {
  if constexpr (kBits < 8) {
    BitsOf(format) == kBits ? to_do.template operator()<kBits>() : WithBits<kBits + 1>(format, to_do);
  } else {
    PITH_CHECK(false);
  }
}

// A group's place in a page: its codes and the byte of its scale, with the zero `zero_distance` further on.
template <class Byte>
struct GroupPlace {
  Byte* codes;
  Byte* scale;
  size_t zero_distance;
};

template <class Byte>
GroupPlace<Byte> KeyGroup(const PageLayout& layout, Byte* page, int channel) {
  const auto d = static_cast<size_t>(channel);
  return {page + layout.key_offset + d * static_cast<size_t>(kGroupElements * BitsOf(layout.format.key) / 8),
          page + layout.key_scale_offset + d, static_cast<size_t>(layout.key_dim)};
}

template <class Byte>
GroupPlace<Byte> ValueGroup(const PageLayout& layout, Byte* page, int slot, int group) {
  return {page + layout.value_offset + static_cast<size_t>(slot) * layout.value_row_bytes() +
              static_cast<size_t>(group * kGroupElements * BitsOf(layout.format.value) / 8),
          page + layout.value_scale_offset + group * kPageEntries + slot,
          static_cast<size_t>(layout.value_groups() * kPageEntries)};
}

void Store(const Group& group, KvFormat format, const GroupPlace<std::byte>& place) {
  *place.scale = static_cast<std::byte>(group.scale);
  place.scale[place.zero_distance] = static_cast<std::byte>(group.zero);
  WithBits(format, [&]<int kBits>() { Pack<kBits>(group, place.codes); });
}

// x = scale * code + offset
struct Affine {
  float scale, offset;
};
Affine AffineOf(KvFormat format, const GroupPlace<const std::byte>& place) {
  const float scale = ScaleOf(static_cast<uint8_t>(*place.scale));
  const auto zero = static_cast<float>(static_cast<int8_t>(place.scale[place.zero_distance]));
  return {scale, zero / static_cast<float>(ZeroUnits(format)) * scale};
}

float HalfToFloat(uint16_t bits) {
  const uint32_t magnitude = static_cast<uint32_t>(bits & 0x7FFF) << 13, sign = static_cast<uint32_t>(bits & 0x8000)
                                                                                << 16;
  float value = 0;
  std::memcpy(&value, &magnitude, sizeof(value));
  value = (bits & 0x7C00) == 0x7C00 ? ((bits & 1023) != 0 ? NAN : INFINITY) : value * 0x1p112f;
  return sign != 0 ? -value : value;
}

float Bf16ToFloat(uint16_t bits) {
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float value = 0;
  std::memcpy(&value, &wide, sizeof(value));
  return value;
}

float PlainElement(KvFormat format, const std::byte* part, size_t at, float scale) {
  switch (InfoOf(format).element) {
    case KvElement::kHalf:
      return HalfToFloat(reinterpret_cast<const uint16_t*>(part)[at]);
    case KvElement::kBfloat:
      return Bf16ToFloat(reinterpret_cast<const uint16_t*>(part)[at]);
    case KvElement::kByte:
      return static_cast<float>(reinterpret_cast<const int8_t*>(part)[at]) * scale;
    case KvElement::kCode:
      break;
  }
  PITH_CHECK(false);
}

float EntryScale(KvFormat format, const std::byte* scales, int slot) {
  return HasEntryScales(format) ? reinterpret_cast<const float*>(scales)[slot] : 1.0f;
}

void CopyState(const PageLayout& to_layout, std::byte* to, int to_slot, const PageLayout& from_layout,
               const std::byte* from, int from_slot) {
  to_layout.positions(to)[to_slot] = from_layout.positions(from)[from_slot];
  for (int c = 0; c < to_layout.num_columns; ++c) {
    to_layout.column(to, c)[to_slot] = from_layout.column(from, c)[from_slot];
  }
}

// Channels begin .. begin + count - 1 of a value.
void ReadValueRange(const PageLayout& layout, const std::byte* page, int slot, int begin, int count, float* value) {
  const KvFormat format = layout.format.value;
  const std::byte* part = page + layout.value_offset;
  const float scale = EntryScale(format, page + layout.value_scale_offset, slot);
  if (!IsGrouped(format)) {
    for (int i = 0; i < count; ++i) {
      value[i] = PlainElement(format, part, static_cast<size_t>(slot * layout.value_dim + begin + i), scale);
    }
    return;
  }
  WithBits(format, [&]<int kBits>() {
    for (int i = 0; i < count; ++i) {
      const int c = begin + i;
      const auto place = ValueGroup(layout, page, slot, c / kGroupElements);
      const Affine affine = AffineOf(format, place);
      value[i] = affine.scale * static_cast<float>(CodeAt<kBits>(place.codes, c % kGroupElements)) + affine.offset;
    }
  });
}

// A key channel of a whole page of 16-bit keys.
void ReadKeyChannel(const PageLayout& layout, const std::byte* page, int channel, float* values) {
  const std::byte* part = page + layout.key_offset;
  for (int j = 0; j < kPageEntries; ++j) {
    values[j] = PlainElement(layout.format.key, part, static_cast<size_t>(channel * kPageEntries + j), 1.0f);
  }
}

}  // namespace

void WriteKeyGroup(const PageLayout& layout, std::byte* page, int channel, const float* values, ScaleGrid grid) {
  const KvFormat format = layout.format.key;
  Store(Quantize({values, kGroupElements}, format, grid), format, KeyGroup(layout, page, channel));
}

void WriteValueGroup(const PageLayout& layout, std::byte* page, int slot, int group, std::span<const float> values) {
  const KvFormat format = layout.format.value;
  Store(Quantize(values, format, ScaleGrid::kFine), format, ValueGroup(layout, page, slot, group));
}

void ReadKey(const PageLayout& layout, const std::byte* page, int slot, float* key, size_t stride) {
  const KvFormat format = layout.format.key;
  if (IsCoded(format)) {
    std::vector<float> all(static_cast<size_t>(layout.key_dim) * kPageEntries);
    DecodeKeys(layout, page, all.data());
    for (size_t d = 0; d < static_cast<size_t>(layout.key_dim); ++d) {
      key[d * stride] = all[d * kPageEntries + static_cast<size_t>(slot)];
    }
    return;
  }
  if (!IsGrouped(format)) {
    const float scale = EntryScale(format, page + layout.key_scale_offset, slot);
    for (int d = 0; d < layout.key_dim; ++d) {
      const auto at = static_cast<size_t>(d * kPageEntries + slot);
      key[static_cast<size_t>(d) * stride] = PlainElement(format, page + layout.key_offset, at, scale);
    }
    return;
  }
  WithBits(format, [&]<int kBits>() {
    for (int d = 0; d < layout.key_dim; ++d) {
      const GroupPlace<const std::byte> place = KeyGroup(layout, page, d);
      const Affine affine = AffineOf(format, place);
      key[static_cast<size_t>(d) * stride] =
          affine.scale * static_cast<float>(CodeAt<kBits>(place.codes, slot)) + affine.offset;
    }
  });
}

void ReadValue(const PageLayout& layout, const std::byte* page, int slot, float* value) {
  if (layout.format.coded()) {
    std::vector<float> all(static_cast<size_t>(layout.value_dim) * kPageEntries);
    ReadCodedValues(layout, page, kPageEntries, all.data());
    std::copy_n(all.begin() + static_cast<ptrdiff_t>(slot) * layout.value_dim, layout.value_dim, value);
    return;
  }
  ReadValueRange(layout, page, slot, 0, layout.value_dim, value);
}

void CopyEntry(const PageLayout& layout, std::byte* to, int to_slot, const std::byte* from, int from_slot) {
  PITH_CHECK(!layout.format.whole_pages());
  const size_t bytes = static_cast<size_t>(BitsOf(layout.format.key)) / 8;
  std::byte* to_keys = to + layout.key_offset + static_cast<size_t>(to_slot) * bytes;
  const std::byte* from_keys = from + layout.key_offset + static_cast<size_t>(from_slot) * bytes;
  const auto dim = static_cast<size_t>(layout.key_dim);
  if (bytes == 2) {
    for (size_t d = 0; d < dim; ++d) std::memcpy(to_keys + d * 2 * kPageEntries, from_keys + d * 2 * kPageEntries, 2);
  } else {
    for (size_t d = 0; d < dim; ++d) to_keys[d * kPageEntries] = from_keys[d * kPageEntries];
    reinterpret_cast<float*>(to + layout.key_scale_offset)[to_slot] =
        reinterpret_cast<const float*>(from + layout.key_scale_offset)[from_slot];
  }
  CopyValueAndState(layout, to, to_slot, layout, from, from_slot);
}

void CopyValueAndState(const PageLayout& to_layout, std::byte* to, int to_slot, const PageLayout& from_layout,
                       const std::byte* from, int from_slot) {
  const KvFormat format = to_layout.format.value;
  PITH_DCHECK(to_layout.value_dim == from_layout.value_dim && !IsCoded(format));
  CopyState(to_layout, to, to_slot, from_layout, from, from_slot);
  if (format == from_layout.format.value) {
    // Within one page the two rows may be the same one.
    const size_t row = to_layout.value_row_bytes();
    std::memmove(to + to_layout.value_offset + static_cast<size_t>(to_slot) * row,
                 from + from_layout.value_offset + static_cast<size_t>(from_slot) * row, row);
    if (HasEntryScales(format)) {
      reinterpret_cast<float*>(to + to_layout.value_scale_offset)[to_slot] =
          reinterpret_cast<const float*>(from + from_layout.value_scale_offset)[from_slot];
    } else if (IsGrouped(format)) {
      for (int group = 0; group < to_layout.value_groups(); ++group) {
        const auto to_place = ValueGroup(to_layout, to, to_slot, group);
        const auto from_place = ValueGroup(from_layout, from, from_slot, group);
        *to_place.scale = *from_place.scale;
        to_place.scale[to_place.zero_distance] = from_place.scale[from_place.zero_distance];
      }
    }
    return;
  }
  if (!IsGrouped(format)) {
    std::vector<float> value(static_cast<size_t>(to_layout.value_dim));
    ReadValue(from_layout, from, from_slot, value.data());
    WriteValueRow(to_layout, to, to_slot, value.data());
    return;
  }
  float values[kGroupElements];
  std::vector<float> decoded(from_layout.format.coded() ? static_cast<size_t>(to_layout.value_dim) : 0);
  if (!decoded.empty()) ReadValue(from_layout, from, from_slot, decoded.data());
  for (int group = 0; group < to_layout.value_groups(); ++group) {
    const int begin = group * kGroupElements, count = std::min(kGroupElements, to_layout.value_dim - begin);
    if (decoded.empty()) {
      ReadValueRange(from_layout, from, from_slot, begin, count, values);
    } else {
      std::copy_n(decoded.begin() + begin, count, values);
    }
    WriteValueGroup(to_layout, to, to_slot, group, {values, static_cast<size_t>(count)});
  }
}

void ConvertEntry(const PageLayout& to_layout, std::byte* to, int to_slot, const PageLayout& from_layout,
                  const std::byte* from, int from_slot) {
  if (to_layout.format == from_layout.format) {
    CopyEntry(to_layout, to, to_slot, from, from_slot);
    return;
  }
  std::vector<float> key(static_cast<size_t>(to_layout.key_dim)), value(static_cast<size_t>(to_layout.value_dim));
  ReadKey(from_layout, from, from_slot, key.data(), 1);
  ReadValue(from_layout, from, from_slot, value.data());
  WriteEntryF32(to_layout, to, to_slot, key.data(), value.data(), 0);
  CopyState(to_layout, to, to_slot, from_layout, from, from_slot);
}

void ConvertPage(const PageLayout& from_layout, const std::byte* from, const PageLayout& to_layout, std::byte* to) {
  PITH_DCHECK(to_layout.key_dim == from_layout.key_dim);
  PITH_DCHECK(BitsOf(from_layout.format.key) == 16 || !to_layout.format.whole_pages());
  if (to_layout.format.coded()) {
    std::vector<float> keys(static_cast<size_t>(to_layout.key_dim) * kPageEntries);
    std::vector<float> values(static_cast<size_t>(to_layout.value_dim) * kPageEntries);
    ReadPage(from_layout, from, keys.data(), values.data());
    EncodePage(to_layout, keys.data(), values.data(), to);
    for (int slot = 0; slot < kPageEntries; ++slot) CopyState(to_layout, to, slot, from_layout, from, slot);
    return;
  }
  if (from_layout.format.coded()) {  // decoded once for all
    const auto dim = static_cast<size_t>(to_layout.key_dim), value_dim = static_cast<size_t>(to_layout.value_dim);
    std::vector<float> keys(dim * kPageEntries), values(value_dim * kPageEntries), key(dim);
    ReadPage(from_layout, from, keys.data(), values.data());
    for (int slot = 0; slot < kPageEntries; ++slot) {
      for (size_t d = 0; d < dim; ++d) key[d] = keys[d * kPageEntries + static_cast<size_t>(slot)];
      WriteEntryF32(to_layout, to, slot, key.data(), values.data() + static_cast<size_t>(slot) * value_dim, 0);
      CopyState(to_layout, to, slot, from_layout, from, slot);
    }
    return;
  }
  if (!to_layout.format.whole_pages()) {
    for (int slot = 0; slot < kPageEntries; ++slot) ConvertEntry(to_layout, to, slot, from_layout, from, slot);
    return;
  }
  float channel[kPageEntries];
  for (int d = 0; d < to_layout.key_dim; ++d) {
    ReadKeyChannel(from_layout, from, d, channel);
    WriteKeyGroup(to_layout, to, d, channel, ScaleGrid::kClipped);
  }
  for (int slot = 0; slot < kPageEntries; ++slot) CopyValueAndState(to_layout, to, slot, from_layout, from, slot);
}

}  // namespace pith::kernels
