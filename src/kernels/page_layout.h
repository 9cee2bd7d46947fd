// How keys, values and metadata lie in one page.
//
// A page holds kPageEntries entries of one (sequence, layer, kv head) in one
// storage format. Keys are stored channel-major, so that one vector register
// holds the same channel of neighbouring entries: a query's dot products need
// no horizontal sums. Values are stored entry-major, since the output is a
// weighted sum of whole rows.
//
//   f16   keys   [D][P] f16      values [P][Dv] f16
//   q8    keys   [D][P] int8     values [P][Dv] int8
//         key scales [P] f32     value scales [P] f32      (absmax / 127 per entry)
//   both  positions [P] int32    columns [C][P] f32        (policy state)
//
// Every part starts at a multiple of 64 bytes.
#ifndef PITH_KERNELS_PAGE_LAYOUT_H_
#define PITH_KERNELS_PAGE_LAYOUT_H_

#include <cstddef>
#include <cstdint>

namespace pith {

inline constexpr int kPageEntries = 32;  // P

enum class KvFormat : uint8_t { kF16, kQ8 };

inline const char* KvFormatName(KvFormat format) { return format == KvFormat::kF16 ? "f16" : "q8"; }

struct PageLayout {
  KvFormat format = KvFormat::kF16;
  int key_dim = 0;    // D
  int value_dim = 0;  // Dv
  int num_columns = 0;

  size_t key_offset = 0;
  size_t value_offset = 0;
  size_t key_scale_offset = 0;    // q8 only
  size_t value_scale_offset = 0;  // q8 only
  size_t position_offset = 0;
  size_t column_offset = 0;
  size_t page_bytes = 0;  // multiple of 64

  static PageLayout Make(KvFormat format, int key_dim, int value_dim, int num_columns) {
    PageLayout layout;
    layout.format = format;
    layout.key_dim = key_dim;
    layout.value_dim = value_dim;
    layout.num_columns = num_columns;
    const size_t element_bytes = format == KvFormat::kF16 ? 2 : 1;
    size_t at = 0;
    const auto take = [&at](size_t bytes) {
      const size_t offset = at;
      at += (bytes + 63) / 64 * 64;
      return offset;
    };
    layout.key_offset = take(element_bytes * static_cast<size_t>(key_dim) * kPageEntries);
    layout.value_offset = take(element_bytes * static_cast<size_t>(value_dim) * kPageEntries);
    if (format == KvFormat::kQ8) {
      layout.key_scale_offset = take(sizeof(float) * kPageEntries);
      layout.value_scale_offset = take(sizeof(float) * kPageEntries);
    }
    layout.position_offset = take(sizeof(int32_t) * kPageEntries);
    layout.column_offset = take(sizeof(float) * kPageEntries * static_cast<size_t>(num_columns));
    layout.page_bytes = at;
    return layout;
  }

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
};

}  // namespace pith

#endif  // PITH_KERNELS_PAGE_LAYOUT_H_
