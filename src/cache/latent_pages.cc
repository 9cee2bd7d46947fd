// Pages of latents: making, reading, checking.
#include "cache/latent_pages.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <new>

#include "base/check.h"
#include "cache/kv_cache.h"
#include "cache/latents.h"
#include "cache/page_entries.h"
#include "kernels/attention.h"

namespace pith {
namespace {

size_t RowFloats(const PageLayout& layout) { return static_cast<size_t>(layout.key_dim + layout.value_dim); }

}  // namespace

Status HeadCache::SetMaps(std::span<const uint16_t> maps) {
  PITH_CHECK(num_lower_ == 0);
  try {
    maps_.assign(maps.begin(), maps.end());
  } catch (const std::bad_alloc&) {
    return OutOfBudget("the KV budget does not hold what latents are read with");
  }
  return {};
}

void HeadCache::UnturnRow(int32_t position, float* row) const {
  if (lower_.turns != nullptr) lower_.turns->Unturn(position, row);
}

std::vector<float> HeadCache::ReadVectorsOf(std::span<const int32_t> entries) const {
  const auto key_dim = static_cast<size_t>(layout_->key_dim), value_dim = static_cast<size_t>(layout_->value_dim),
             dim = key_dim + value_dim;
  std::vector<float> keys(entries.size() * key_dim), values(entries.size() * value_dim), rows(entries.size() * dim);
  ReadKeysOf(entries, keys.data());
  ReadValuesOf(entries, values.data());
  for (size_t i = 0; i < entries.size(); ++i) {
    float* const row = rows.data() + i * dim;
    std::copy_n(keys.data() + i * key_dim, key_dim, row);
    std::copy_n(values.data() + i * value_dim, value_dim, row + key_dim);
    UnturnRow(layout_of(entries[i]).positions(page_of(entries[i]))[entries[i] % kP], row);
  }
  return rows;
}

Result<std::vector<std::byte>> HeadCache::MakeLatents(std::span<const int32_t> entries,
                                                      std::span<const int32_t> references) {
  PITH_CHECK(low_.pool == nullptr && entries.size() % kP == 0);
  const PageLayout& layout = *lower_.layout;
  const auto older = static_cast<size_t>(std::ranges::lower_bound(references, entries.back()) - references.begin());
  if (older >= kNoReference) return Unsupported("latents refer to 65,535 entries at most");
  std::vector<int32_t> visible;
  for (const int32_t entry : entries) {
    visible.push_back(static_cast<int32_t>(std::ranges::lower_bound(references, entry) - references.begin()));
  }
  const int n = static_cast<int>(entries.size());
  const LatentDifferences found =
      FindDifferences(layout, ReadVectorsOf(entries), ReadVectorsOf(references.first(older)), visible);
  if (maps_.empty()) PITH_RETURN_IF_ERROR(SetMaps(FitLatentMaps(layout, found.rows.data(), n)));
  const auto rank = static_cast<size_t>(layout.rank()), k = size_t{layout.format.references};
  std::vector<float> latents(entries.size() * rank);
  EncodeDifferences(layout, maps(), found.rows.data(), n, latents.data());
  std::vector<std::byte> pages(entries.size() / kP * layout.page_bytes);
  for (size_t i = 0; i < entries.size(); ++i) {
    std::byte* const page = pages.data() + i / kP * layout.page_bytes;
    const auto slot = static_cast<int>(i % kP);
    WriteLatent(layout, page, slot, {found.nearest.data() + i * k, k}, latents.data() + i * rank);
    const PageLayout& from_layout = layout_of(entries[i]);
    const std::byte* const from = page_of(entries[i]);
    layout.positions(page)[slot] = from_layout.positions(from)[entries[i] % kP];
    for (int c = 0; c < layout.num_columns; ++c) {
      layout.column(page, c)[slot] = from_layout.column(from, c)[entries[i] % kP];
    }
  }
  return pages;
}

void HeadCache::ReadReferences(int first, int count, float* rows) const {
  const auto key_dim = static_cast<size_t>(layout_->key_dim), value_dim = static_cast<size_t>(layout_->value_dim),
             dim = key_dim + value_dim;
  std::array<float, 1024> keys, values;
  const int begin = num_lower_entries() + first;
  const int most = std::max<int>(1, static_cast<int>(keys.size() / std::max(key_dim, value_dim)));
  // What a page's first entries are is read in one go; here they may begin within it.
  for (int at = begin; at < begin + count;) {
    const int slot = at % kP, some = std::min({most, begin + count - at, kP - slot});
    PageLayout from = layout_of(at);
    from.key_offset += static_cast<size_t>(slot) * sizeof(uint16_t);
    from.value_offset += static_cast<size_t>(slot) * from.value_row_bytes();
    kernels::ReadKeys(from, page_of(at), some, keys.data());
    kernels::ReadValues(from, page_of(at), some, values.data());
    for (int i = 0; i < some; ++i, rows += dim) {
      std::copy_n(keys.data() + static_cast<size_t>(i) * key_dim, key_dim, rows);
      std::copy_n(values.data() + static_cast<size_t>(i) * value_dim, value_dim, rows + key_dim);
      UnturnRow(from.positions(page_of(at))[slot + i], rows);
    }
    at += some;
  }
}

size_t HeadCache::LatentScratchFloats() const {
  return static_cast<size_t>(kP) * (RowFloats(*lower_.layout) + static_cast<size_t>(lower_.layout->rank()));
}

void HeadCache::ReadLatentPage(size_t page, const float* references, const float* table, float* scratch,
                               std::byte* to) const {
  const PageLayout& layout = *lower_.layout;
  const size_t dim = RowFloats(layout);
  float* const rows = scratch;
  ReadLatents(layout, pages_[page], references, table, scratch + static_cast<size_t>(kP) * dim, rows);
  const int32_t* const positions = layout.positions(static_cast<const std::byte*>(pages_[page]));
  PageLayout plain = *layout_;
  plain.num_columns = 0;
  for (int slot = 0; slot < kP; ++slot) {
    float* const row = rows + static_cast<size_t>(slot) * dim;
    if (lower_.turns != nullptr) lower_.turns->Turn(positions[slot], row);
    kernels::WriteEntryF32(plain, to, slot, row, row + layout.key_dim, positions[slot]);
  }
}

Status HeadCache::RestoreLatents(ByteReader& reader) {
  uint32_t num_references = 0, count = 0;
  if (!reader.Number(num_references) || !reader.Number(count)) return Corrupt("it ends within its cache");
  if (count != 0 && !AreMapsFor(*lower_.layout, count)) return Corrupt("the maps of its latents have another size");
  if (num_references >= kNoReference) return Corrupt("its latents refer to too many entries");
  std::vector<uint16_t> maps(count);
  if (!reader.Array(std::span<uint16_t>(maps))) return Corrupt("it ends within its cache");
  constexpr uint16_t kInfinity = 0x7c00;
  if (std::ranges::any_of(maps, [](uint16_t bits) { return (bits & kInfinity) == kInfinity; })) {
    return Corrupt("the maps of its latents hold what is no number");
  }
  num_references_ = static_cast<int>(num_references);
  return SetMaps(maps);
}

Status HeadCache::VerifyLatents() const {
  if (!has_latents()) {
    return num_references_ == 0 ? Status() : Corrupt("cache: a head without latents has references of them");
  }
  const PageLayout& layout = *lower_.layout;
  if (!AreMapsFor(layout, maps_.size())) return Corrupt("cache: the maps of a head's latents have another size");
  if (num_references_ < 0 || num_references_ > num_entries_ - num_lower_entries()) {
    return Corrupt("cache: latents of a head refer to entries that it does not have");
  }
  for (size_t page = 0; page < num_lower_; ++page) {
    for (int slot = 0; slot < kP; ++slot) {
      const std::span<const uint16_t> own(layout.references(static_cast<const std::byte*>(pages_[page]), slot),
                                          layout.format.references);
      if (std::ranges::any_of(own, [this](uint16_t id) { return id != kNoReference && id >= num_references_; })) {
        return Corrupt("cache: a latent refers to an entry that may go");
      }
    }
  }
  return {};
}

const std::byte* LatentPages::Read(size_t page) {
  const PageLayout& entry = head_.layout();
  const PageLayout& layout = *head_.lower_layout();
  const size_t dim = RowFloats(layout), table = ReadingTableFloats(layout);
  float* const memory = scratch_.Floats(table + head_.LatentScratchFloats());
  std::byte* const page_read = page_.Bytes(entry.page_bytes);
  if (is_read_ < 0) {
    references_.resize(static_cast<size_t>(head_.num_references()) * dim);
    head_.ReadReferences(0, head_.num_references(), references_.data());
    MakeReadingTable(layout, head_.maps(), memory + table, memory);
  }
  if (is_read_ != static_cast<ptrdiff_t>(page)) {
    head_.ReadLatentPage(page, references_.data(), memory, memory + table, page_read);
    is_read_ = static_cast<ptrdiff_t>(page);
  }
  return page_read;
}

void LatentPages::ReadKeys(size_t page, int count, float* keys) {
  kernels::ReadKeys(head_.layout(), Read(page), count, keys);
}

void LatentPages::ReadValues(size_t page, int count, float* values) {
  kernels::ReadValues(head_.layout(), Read(page), count, values);
}

}  // namespace pith
