// A sequence's cache as bytes: for each layer its heads and the shape of their pages, for each head the number of its
// entries and its pages, as they lie in memory. Unused slots of an incomplete last page
// are zero, and so is what lies between the parts of a page.
//
//   u32 layers
//   layer: u32 heads; if not 0: u32 format, u32 D, u32 Dv, u32 columns, u32 formats of low and of lower pages,
//          u32 channels of keys in lower pages, u32 features of states; heads
//   head:  u32 entries, u32 low and lower pages, u32 lower pages; where lower pages lack channels of keys u32 channels
//          and u16 each; where there are states i64 entries that are gone, f32 sums and masses; pages
//
// A format is that of keys + 256 times that of values, as in KvFormat; ~0 where there is none.
#include <algorithm>
#include <array>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "base/byte_io.h"
#include "base/check.h"
#include "cache/kv_cache.h"
#include "kernels/attention.h"

namespace pith {
namespace {

constexpr int kP = kPageEntries;

using LayoutNumbers = std::array<uint32_t, 8>;

LayoutNumbers NumbersOf(const HeadCache& head) {
  const PageLayout& layout = head.layout();
  const PageLayout *low = head.low_layout(), *lower = head.lower_layout();
  return {layout.format.number(), static_cast<uint32_t>(layout.key_dim), static_cast<uint32_t>(layout.value_dim),
          static_cast<uint32_t>(layout.num_columns), low != nullptr ? low->format.number() : ~0u,
          lower != nullptr ? lower->format.number() : ~0u,
          static_cast<uint32_t>(lower != nullptr ? lower->key_dim : layout.key_dim),
          static_cast<uint32_t>(head.state().rank())};
}

tl::unexpected<Error> Truncated() { return Corrupt("it ends within its cache"); }
tl::unexpected<Error> OtherShape(const std::string& what) {
  return InvalidArgument("its cache has another shape than this model's: " + what);
}

}  // namespace

void HeadCache::Save(ByteWriter& writer) const {
  writer.Number(static_cast<uint32_t>(num_entries_));
  writer.Number(static_cast<uint32_t>(num_low_));
  writer.Number(static_cast<uint32_t>(num_lower_));
  if (prunes()) {
    writer.Number(static_cast<uint32_t>(channels_.size()));
    writer.Array(key_channels());
  }
  if (state_.rank() > 0) state_.Save(writer);
  std::vector<std::byte> copy;
  for (int at = 0; at < num_entries_; at += kP) {
    const PageLayout& layout = layout_of(at);
    const std::byte* page = page_of(at);
    if (const int count = num_entries_ - at; count < kP) {
      copy.assign(layout.page_bytes, std::byte{0});
      for (int i = 0; i < count; ++i) kernels::CopyEntry(layout, copy.data(), i, page, i);
    } else {
      copy.assign(page, page + layout.page_bytes);
    }
    layout.ClearPadding(copy.data());
    writer.Write(copy);
  }
}

Status HeadCache::ExtendLow(size_t num_lower, size_t num_low) {
  PITH_CHECK(pages_.empty());
  if (num_low > pages_.capacity()) PITH_RETURN_IF_ERROR(ReserveTable(num_low));
  while (num_low_ < num_low) {
    const bool lower = num_low_ < num_lower;
    std::byte* page = (lower ? lower_ : low_).pool->Acquire(account());
    if (page == nullptr) return OutOfBudget("the KV budget has no free page left");
    pages_.push_back(page);
    ++num_low_;
    if (lower) ++num_lower_;
    num_entries_ += kP;
  }
  return {};
}

Status HeadCache::RestoreChannels(ByteReader& reader) {
  uint32_t count = 0;
  if (!reader.Number(count)) return Truncated();
  if (count == 0) return {};
  if (count != static_cast<uint32_t>(lower_.layout->key_dim)) {
    return Corrupt("keys of its cache keep another number of channels");
  }
  std::vector<uint16_t> channels(count);
  if (!reader.Array(std::span<uint16_t>(channels))) return Truncated();
  if (std::ranges::adjacent_find(channels, std::greater_equal<>()) != channels.end() ||
      channels.back() >= layout_->key_dim) {
    return Corrupt("the channels of its keys do not ascend");
  }
  return ChooseChannels(channels);
}

Status HeadCache::Restore(ByteReader& reader, int32_t end_position) {
  uint32_t count = 0, num_low = 0, num_lower = 0;
  if (!reader.Number(count) || !reader.Number(num_low) || !reader.Number(num_lower)) return Truncated();
  if (count > static_cast<uint32_t>(end_position)) {
    return Corrupt("a head of its cache has more entries than the sequence has tokens");
  }
  if (prunes()) PITH_RETURN_IF_ERROR(RestoreChannels(reader));
  if (state_.rank() > 0) {
    PITH_RETURN_IF_ERROR(state_.Restore(reader, end_position - static_cast<int64_t>(count)));
  }
  if (num_low > count / kP || num_lower > num_low || (num_lower > 0 && lower_.pool == nullptr) ||
      (num_low > num_lower && low_.pool == nullptr) || (num_lower > 0 && prunes() && channels_.empty())) {
    return Corrupt("a head of its cache has more low pages than it fills");
  }
  size_t low_bytes = num_lower > 0 ? num_lower * lower_.layout->page_bytes : 0;
  if (num_low > num_lower) low_bytes += (num_low - num_lower) * low_.layout->page_bytes;
  const size_t bytes = low_bytes + ((count + kP - 1) / kP - num_low) * layout_->page_bytes;
  if (bytes > reader.left()) return Truncated();
  if (num_low > 0) PITH_RETURN_IF_ERROR(ExtendLow(num_lower, num_low));
  const int rest = static_cast<int>(count) - num_entries_;
  PITH_RETURN_IF_ERROR(Extend(rest));
  Commit(rest);
  for (int at = 0; at < num_entries_; at += kP) {
    if (!reader.Read({page_of(at), layout_of(at).page_bytes})) return Truncated();
  }
  if (!Verify()) return Corrupt("positions in its cache do not ascend");
  std::vector<int32_t> positions(static_cast<size_t>(num_entries_));
  ReadPositions(positions);
  if (std::ranges::any_of(positions, [end_position](int32_t position) { return position >= end_position; })) {
    return Corrupt("positions in its cache lie beyond its tokens");
  }
  return {};
}

void KvCache::Save(int sequence, ByteWriter& writer) const {
  writer.Number(static_cast<uint32_t>(layers_.size()));
  for (size_t layer = 0; layer < layers_.size(); ++layer) {
    writer.Number(static_cast<uint32_t>(layers_[layer].num_kv_heads));
    if (layers_[layer].num_kv_heads == 0) continue;
    writer.Array(std::span<const uint32_t>(NumbersOf(head(sequence, static_cast<int>(layer), 0))));
    for (const HeadCache& head : heads(sequence, static_cast<int>(layer))) head.Save(writer);
  }
}

Status KvCache::Restore(int sequence, ByteReader& reader, int32_t end_position) {
  uint32_t num_layers = 0;
  if (!reader.Number(num_layers)) return Truncated();
  if (num_layers != layers_.size()) {
    return OtherShape(std::to_string(num_layers) + " layers, not " + std::to_string(layers_.size()));
  }
  for (size_t layer = 0; layer < layers_.size(); ++layer) {
    uint32_t num_heads = 0;
    if (!reader.Number(num_heads)) return Truncated();
    if (num_heads != static_cast<uint32_t>(layers_[layer].num_kv_heads)) {
      return OtherShape("layer " + std::to_string(layer) + " has " + std::to_string(num_heads) + " heads");
    }
    if (num_heads == 0) continue;
    LayoutNumbers numbers{};
    if (!reader.Array(std::span<uint32_t>(numbers))) return Truncated();
    if (numbers != NumbersOf(head(sequence, static_cast<int>(layer), 0))) {
      return OtherShape("layer " + std::to_string(layer) + " has entries of another format, size or recipe");
    }
    for (HeadCache& head : heads(sequence, static_cast<int>(layer)))
      PITH_RETURN_IF_ERROR(head.Restore(reader, end_position));
  }
  return {};
}

}  // namespace pith
