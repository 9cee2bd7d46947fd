// How keys, values and metadata lie in one page.
//
// A page holds kPageEntries entries of one (sequence, layer, kv head) in one
// storage format of keys and one of values. Keys are stored channel-major, so
// that one vector register holds the same channel of neighbouring entries: a
// query's dot products need no horizontal sums. Values are stored entry-major,
// since the output is a weighted sum of whole rows.
//
//   f16, bf16  keys [D][P] 16 bits           values [P][Dv] 16 bits
//   q8         keys [D][P] int8              values [P][Dv] int8
//              key scales [P] f32            value scales [P] f32       (absmax / 127 per entry)
//   q4 to q2   keys [D] groups               values [P][N] groups       (N = ceil(Dv / 32))
//              scales [D] u8, zeros [D] i8   scales [N][P] u8, zeros [N][P] i8
//   latents    references [P][k] u16         latents [P][r] f16         (no kernel reads them: cache/latents.h)
//   all        positions [P] int32           columns [C][P] f32         (policy state)
//
// Pages of coded entries (kCoded + n, kernels/coded_pages.h) differ in size: positions and columns come first, then
// codes.
//
// Groups are of 32 elements, as in KIVI (arXiv:2402.02750, section 3.2): of a key channel the
// entries of the page, of a value 32 neighbouring channels. An element is
//
//   x = scale * (code + zero / F),   scale = 2^(b >> 3) * (1 + (b & 7) / 8) * 2^-18 for the byte b,
//
// F being zero_units of the format (kv_formats.inc): 2 in q4, 4 in q3, 8 in q2. A group has 16 bits beside its codes.
//
// Codes lie in planes of 4, 2 and 1 of their bits, the lowest bits first, of which a format has those that add up to
// its bits. A plane of b bits takes 4 b bytes: byte i holds elements i, i + 4 b, i + 8 b .., lowest bits first.
//
//   q4  16 bytes: byte i holds element i in its low and element i + 16 in its high half
//   q3  12 bytes: 8 as in q2, then 4 of the highest bits: byte i holds those of elements i, i + 4 .. i + 28
//   q2   8 bytes: byte i holds elements i, i + 8, i + 16, i + 24
//
// Every part starts at a multiple of 64 bytes.
#ifndef PITH_KERNELS_PAGE_LAYOUT_H_
#define PITH_KERNELS_PAGE_LAYOUT_H_

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <string>

#include "kernels/kv_formats.h"

namespace pith {

inline constexpr int kPageEntries = 32;  // P
inline constexpr int kGroupElements = 32;
inline constexpr size_t kCodedHeaderBytes = 64;

// The formats of a page's keys and values.
struct PageFormat {
  KvFormat key = KvFormat::kF16;
  KvFormat value = KvFormat::kF16;
  // Not 0: entries are latents beside others that stay (act=delta), of so many 256ths of the numbers of a key and a
  // value; `key` and `value` are what they are read back as.
  uint8_t latents = 0;
  uint8_t references = 0;  // of a latent, at most

  constexpr PageFormat() = default;
  static constexpr PageFormat Latents(uint8_t latents_of_256, uint8_t num_references) {
    PageFormat format;
    format.latents = latents_of_256;
    format.references = num_references;
    return format;
  }
  constexpr PageFormat(KvFormat both) : key(both), value(both) {}  // NOLINT(google-explicit-constructor)
  constexpr PageFormat(KvFormat key_format, KvFormat value_format) : key(key_format), value(value_format) {}
  friend constexpr bool operator==(const PageFormat&, const PageFormat&) = default;

  // Of a key's and a value's element together.
  constexpr int bits() const { return BitsOf(key) + BitsOf(value); }

  // Keys and values alike.
  constexpr bool coded() const { return IsCoded(key); }
  // Keys are quantised over the entries of a page, so it is written whole and its entries can't move alone.
  constexpr bool whole_pages() const { return IsGrouped(key) || coded(); }

  // As a number, for files.
  constexpr uint32_t number() const {
    return static_cast<uint32_t>(key) | static_cast<uint32_t>(value) << 8 | uint32_t{latents} << 16 |
           uint32_t{references} << 24;
  }
  static constexpr std::optional<PageFormat> FromNumber(uint32_t number) {
    const PageFormat read(static_cast<KvFormat>(number % 256), static_cast<KvFormat>(number / 256 % 256));
    const auto has_steps = [](KvFormat one) {
      return IsCoded(one) && CodedSteps(one) >= kFewestCodedSteps && CodedSteps(one) <= kMostCodedSteps;
    };
    if (has_steps(read.key) && has_steps(read.value) && number <= 0xffff) return read;
    if (number % 256 >= kNumKvFormats || number / 256 % 256 >= kNumKvFormats) return std::nullopt;
    PageFormat format = read;
    format.latents = static_cast<uint8_t>(number >> 16);
    format.references = static_cast<uint8_t>(number >> 24);
    const bool half = format.key == KvFormat::kF16 && format.value == KvFormat::kF16;
    const bool known = format.latents == 0 ? format.references == 0 : format.references > 0 && half;
    return known ? std::optional(format) : std::nullopt;
  }

  // "q4", or "q8/q4" where keys and values differ, or "comp:ek=1/16,ev=1/16".
  std::string Name() const {
    if (latents > 0) return "latents";
    if (coded()) {
      return "comp:ek=1/" + std::to_string(CodedSteps(key)) + ",ev=1/" + std::to_string(CodedSteps(value));
    }
    const std::string of_keys(KvFormatName(key));
    return key == value ? of_keys : of_keys + "/" + std::string(KvFormatName(value));
  }
};

struct PageLayout {
  PageFormat format;
  int key_dim = 0;    // D
  int value_dim = 0;  // Dv
  int num_columns = 0;

  size_t key_offset = 0;
  size_t value_offset = 0;
  size_t key_scale_offset = 0;    // of bytes and groups only
  size_t value_scale_offset = 0;  // likewise
  size_t position_offset = 0;
  size_t column_offset = 0;
  size_t page_bytes = 0;  // multiple of 64. Of coded pages: the most that one takes

  static PageLayout Make(PageFormat format, int key_dim, int value_dim, int num_columns) {
    PageLayout layout;
    layout.format = format;
    layout.key_dim = key_dim;
    layout.value_dim = value_dim;
    layout.num_columns = num_columns;
    size_t at = 0;
    const auto take = [&at](size_t bytes) {
      const size_t offset = at;
      at += (bytes + 63) / 64 * 64;
      return offset;
    };
    if (format.coded()) {
      take(sizeof(int32_t) * kPageEntries);
      layout.column_offset = take(sizeof(float) * kPageEntries * static_cast<size_t>(num_columns));
      layout.key_offset = layout.value_offset = at;
      // Numbers without a code stay in 16 bits.
      take(kCodedHeaderBytes + sizeof(uint16_t) * kPageEntries * static_cast<size_t>(key_dim + value_dim));
      layout.page_bytes = at;
      return layout;
    }
    layout.key_offset = take(layout.key_bytes());
    layout.value_offset = take(layout.value_row_bytes() * kPageEntries);
    layout.key_scale_offset = take(ScaleBytes(format.key, key_dim));
    layout.value_scale_offset = take(ScaleBytes(format.value, layout.value_groups() * kPageEntries));
    layout.position_offset = take(sizeof(int32_t) * kPageEntries);
    layout.column_offset = take(sizeof(float) * kPageEntries * static_cast<size_t>(num_columns));
    layout.page_bytes = at;
    return layout;
  }

  int value_groups() const { return (value_dim + kGroupElements - 1) / kGroupElements; }
  bool is_latent() const { return format.latents > 0; }
  // Numbers of a latent (r above).
  int rank() const {
    const int numbers = (key_dim + value_dim) * format.latents / 256;
    return is_latent() && numbers == 0 ? 1 : numbers;
  }
  size_t key_bytes() const {
    if (is_latent()) return sizeof(uint16_t) * format.references * kPageEntries;
    return static_cast<size_t>(key_dim * kPageEntries * BitsOf(format.key)) / 8;
  }
  size_t value_row_bytes() const {
    if (is_latent()) return sizeof(uint16_t) * static_cast<size_t>(rank());
    const int elements = IsGrouped(format.value) ? value_groups() * kGroupElements : value_dim;
    return static_cast<size_t>(elements * BitsOf(format.value)) / 8;
  }
  // What plans allow for a page. Of coded ones it is more than most take, for no size is known before.
  size_t planned_bytes() const {
    return format.coded() ? (column_offset + sizeof(float) * kPageEntries * static_cast<size_t>(num_columns) +
                             CodedBytes(1.0) + 63) /
                                64 * 64
                          : page_bytes;
  }
  // Of an entry's key and value with their scales; positions and columns apart. Of coded ones what is usual.
  double entry_bytes() const {
    if (format.coded()) return static_cast<double>(CodedBytes(0)) / kPageEntries;
    const size_t scales = ScaleBytes(format.key, key_dim) + ScaleBytes(format.value, value_groups() * kPageEntries);
    return static_cast<double>(key_bytes() + scales) / kPageEntries + static_cast<double>(value_row_bytes());
  }
  size_t key_scale_bytes() const { return value_scale_offset - key_scale_offset; }
  size_t value_scale_bytes() const { return position_offset - value_scale_offset; }

  // Zeros between the parts of a page, which nothing else writes: for pages that leave the process.
  void ClearPadding(std::byte* page) const {
    if (format.coded()) return;  // has none between its parts
    const auto clear = [page](size_t offset, size_t bytes, size_t next) {
      std::memset(page + offset + bytes, 0, next - offset - bytes);
    };
    clear(key_offset, key_bytes(), value_offset);
    clear(value_offset, value_row_bytes() * kPageEntries, key_scale_offset);
    clear(key_scale_offset, ScaleBytes(format.key, key_dim), value_scale_offset);
    clear(value_scale_offset, ScaleBytes(format.value, value_groups() * kPageEntries), position_offset);
    clear(position_offset, sizeof(int32_t) * kPageEntries, column_offset);
    clear(column_offset, sizeof(float) * kPageEntries * static_cast<size_t>(num_columns), page_bytes);
  }

  // Of latents: [references] of an entry, and its numbers [rank()], bits of f16.
  uint16_t* references(std::byte* page, int slot) const {
    return reinterpret_cast<uint16_t*>(page + key_offset) + slot * format.references;
  }
  const uint16_t* references(const std::byte* page, int slot) const {
    return reinterpret_cast<const uint16_t*>(page + key_offset) + slot * format.references;
  }
  uint16_t* latent(std::byte* page, int slot) const {
    return reinterpret_cast<uint16_t*>(page + value_offset) + slot * rank();
  }
  const uint16_t* latent(const std::byte* page, int slot) const {
    return reinterpret_cast<const uint16_t*>(page + value_offset) + slot * rank();
  }

  // Positions and columns end here.
  size_t state_end() const { return format.coded() ? key_offset : page_bytes; }
  int32_t* positions(std::byte* page) const { return reinterpret_cast<int32_t*>(page + position_offset); }
  const int32_t* positions(const std::byte* page) const {
    return reinterpret_cast<const int32_t*>(page + position_offset);
  }
  float* column(std::byte* page, int column) const {
    return reinterpret_cast<float*>(page + column_offset) + column * kPageEntries;
  }
  const float* column(const std::byte* page, int column) const {
    return reinterpret_cast<const float*>(page + column_offset) + column * kPageEntries;
  }

 private:
  // Of a page's keys and values where elements take log2(steps) and so many bits more.
  size_t CodedBytes(double more_bits) const {
    const auto bytes = [more_bits](int dim, KvFormat of) {
      return dim * kPageEntries * (std::log2(CodedSteps(of)) + more_bits) / 8;
    };
    const size_t beside = 128 + static_cast<size_t>(key_dim) * 3 / 2;
    return beside + static_cast<size_t>(bytes(key_dim, format.key) + bytes(value_dim, format.value));
  }
  static size_t ScaleBytes(KvFormat format, int num_groups) {
    if (HasEntryScales(format)) return sizeof(float) * kPageEntries;
    return IsGrouped(format) ? 2 * static_cast<size_t>(num_groups) : 0;
  }
};

}  // namespace pith

#endif  // PITH_KERNELS_PAGE_LAYOUT_H_
