#include "engine/synthetic.h"

#include <algorithm>
#include <cstdint>
#include <random>

#include "cache/page_entries.h"
#include "kernels/attention.h"

namespace pith {
namespace {

// Entries that differ within a head; they repeat from there on.
constexpr size_t kDistinct = 256;

// Numbers of either sign between 1/8 and 2, as f16 bits. [kDistinct, width]
std::vector<uint16_t> RandomRows(size_t width, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<uint16_t> rows(kDistinct * width);
  for (uint16_t& value : rows) {
    const uint32_t bits = static_cast<uint32_t>(random());
    const uint32_t exponent = 12 + (bits >> 16) % 4;
    value = static_cast<uint16_t>((bits & 0x83ff) | exponent << 10);
  }
  return rows;
}

}  // namespace

Status FillHeads(KvCache& cache, int cache_id, int num_entries, int num_positions,
                 const std::vector<std::pair<int, float>>& column_initials) {
  uint32_t seed = 1;
  for (size_t layer = 0; layer < cache.layers().size(); ++layer) {
    if (cache.layers()[layer].num_kv_heads == 0) continue;
    const PageLayout& layout = cache.head(cache_id, static_cast<int>(layer), 0).layout();
    const auto key_dim = static_cast<size_t>(layout.key_dim), value_dim = static_cast<size_t>(layout.value_dim);
    const std::vector<uint16_t> keys = RandomRows(key_dim, seed++), values = RandomRows(value_dim, seed++);
    for (HeadCache& head : cache.heads(cache_id, static_cast<int>(layer))) {
      for (int at = 0; at < num_entries; at += kP) {
        const int count = std::min(kP, num_entries - at);
        PITH_RETURN_IF_ERROR(head.Extend(count));
        const size_t row = static_cast<size_t>(at) % kDistinct;
        int32_t positions[kP];
        for (int i = 0; i < count; ++i) {
          positions[i] = static_cast<int32_t>(static_cast<int64_t>(at + i) * num_positions / num_entries);
        }
        kernels::WriteEntriesF16(layout, head.page_of(at), 0, count, keys.data() + row * key_dim, key_dim,
                                 values.data() + row * value_dim, value_dim, positions);
        for (const auto& [column, initial] : column_initials) {
          if (column < layout.num_columns) std::fill_n(layout.column(head.page_of(at), column), count, initial);
        }
        head.Commit(count);
        PITH_RETURN_IF_ERROR(head.Demote(0));
      }
    }
  }
  return {};
}

}  // namespace pith
