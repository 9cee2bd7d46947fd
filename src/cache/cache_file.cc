// A sequence's cache as bytes: for each layer its heads and the shape of their pages, for each head the number of its
// entries and its pages, as they lie in memory. Unused slots of an incomplete last page
// are zero, and so is what lies between the parts of a page. Coded pages are as long as they say.
//
//   u32 layers
//   layer: u32 heads; if not 0: u32 format, u32 D, u32 Dv, u32 columns, u32 formats of low and of lower pages,
//          u32 channels of keys in lower pages, u32 features of states; heads
//   head:  u32 entries, u32 low and lower pages, u32 lower pages; where lower pages lack channels of keys u32 channels
//          and u16 each; where there are states i64 entries that are gone, f32 sums and masses; where lower pages are
//          of latents u32 entries that these refer to, u32 numbers of maps and u16 each; pages
//
// A format is that of keys + 256 times that of values, as in KvFormat, for latents + 2^16 times their 256ths + 2^24
// times their references; ~0 where there is none.
//
// With a CodedForm (cache/coded_entries.h) the codes of a layer stand before its heads, and of each part of a head
// blocks take the place of its oldest pages.
#include <algorithm>
#include <array>
#include <cstring>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/byte_io.h"
#include "base/check.h"
#include "cache/coded_entries.h"
#include "cache/kv_cache.h"
#include "cache/page_entries.h"
#include "kernels/attention.h"
#include "kernels/coded_pages.h"

namespace pith {
namespace {

constexpr size_t kBlockPages = kCodedBlock / kP;

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

size_t LeastCodedBytes(const PageLayout& layout) { return layout.key_offset + kCodedHeaderBytes; }

// What `count` entries of this layout take at least.
size_t LeastBytesOf(const PageLayout& layout, int count, const CodedForm* form) {
  const int num_coded = form == nullptr ? 0 : form->CodedEntries(layout, count);
  return static_cast<size_t>(num_coded / kCodedBlock) * LayerCoder::LeastBytes(layout) +
         static_cast<size_t>((count - num_coded + kP - 1) / kP) *
             (layout.format.coded() ? LeastCodedBytes(layout) : layout.page_bytes);
}

}  // namespace

// visit(a part of the head, how many of its entries are coded), in the order in which they stand.
template <class Visit>
void HeadCache::ForEachPart(const CodedForm* form, const Visit& visit) const {
  kernels::Segment segments[kMaxSegments];
  for (const kernels::Segment& part : std::span(segments, static_cast<size_t>(Describe(segments)))) {
    visit(part, form == nullptr ? 0 : form->CodedEntries(*part.layout, part.num_entries));
  }
}

void HeadCache::CountCodes(LayerCoder& coder) const {
  ForEachPart(&coder.form(), [&](const kernels::Segment& part, int num_coded) {
    for (int at = 0; at < num_coded; at += kCodedBlock) coder.Count(*part.layout, {part.pages + at / kP, kBlockPages});
  });
}

void HeadCache::Save(ByteWriter& writer, LayerCoder* coder) const {
  writer.Number(static_cast<uint32_t>(num_entries_));
  writer.Number(static_cast<uint32_t>(num_low_));
  writer.Number(static_cast<uint32_t>(num_lower_));
  if (prunes()) {
    writer.Number(static_cast<uint32_t>(channels_.size()));
    writer.Array(key_channels());
  }
  if (state_.rank() > 0) state_.Save(writer);
  if (lower_.layout != nullptr && lower_.layout->is_latent()) {
    writer.Number(static_cast<uint32_t>(num_references_));
    writer.Number(static_cast<uint32_t>(maps_.size()));
    writer.Array(maps());
  }
  std::vector<std::byte> copy;
  ForEachPart(coder != nullptr ? &coder->form() : nullptr, [&](const kernels::Segment& part, int num_coded) {
    const PageLayout& layout = *part.layout;
    for (int at = 0; at < num_coded; at += kCodedBlock) {
      coder->Write(layout, {part.pages + at / kP, kBlockPages}, writer);
    }
    for (int at = num_coded; at < part.num_entries; at += kP) {
      const std::byte* page = part.pages[at / kP];
      if (layout.format.coded()) {
        writer.Write({page, kernels::CodedPageBytes(layout, page)});
        continue;
      }
      if (const int count = part.num_entries - at; count < kP) {
        copy.assign(layout.page_bytes, std::byte{0});
        for (int i = 0; i < count; ++i) kernels::CopyEntry(layout, copy.data(), i, page, i);
      } else {
        copy.assign(page, page + layout.page_bytes);
      }
      layout.ClearPadding(copy.data());
      writer.Write(copy);
    }
  });
}

Status HeadCache::ExtendLow(size_t num_lower, size_t num_low) {
  PITH_CHECK(pages_.empty());
  if (num_low > pages_.capacity()) PITH_RETURN_IF_ERROR(ReserveTable(num_low));
  while (num_low_ < num_low) {
    const bool lower = num_low_ < num_lower;
    const PageStore& store = lower ? lower_ : low_;
    const size_t bytes = store.layout->format.coded() ? LeastCodedBytes(*store.layout) : store.layout->page_bytes;
    std::byte* page = store.PoolFor(bytes)->Acquire(account());
    if (page == nullptr) return OutOfBudget("the KV budget has no free page left");
    if (store.layout->format.coded()) kernels::SetCodedPageBytes(*store.layout, page, static_cast<uint32_t>(bytes));
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

Status HeadCache::RestoreCoded(ByteReader& reader, std::byte*& page, PageStore store) {
  const PageLayout& layout = *store.layout;
  std::vector<std::byte> read(layout.page_bytes);
  const size_t before = LeastCodedBytes(layout);
  if (!reader.Read(std::span(read).first(before))) return Truncated();
  const size_t bytes = kernels::CodedPageBytes(layout, read.data());
  if (bytes < before || bytes > layout.page_bytes) return Corrupt("a coded page of its cache has no such size");
  if (!reader.Read(std::span(read).subspan(before, bytes - before))) return Truncated();
  if (!kernels::IsCodedPage(layout, read.data(), bytes)) return Corrupt("a coded page of its cache is damaged");
  std::byte* const fresh = store.PoolFor(bytes)->Acquire(account());
  if (fresh == nullptr) return OutOfBudget("the KV budget has no free page left");
  std::memcpy(fresh, read.data(), bytes);
  store.PoolFor(store.BytesOf(page))->Release(page, account());
  page = fresh;
  return {};
}

Status HeadCache::RestoreParts(ByteReader& reader, LayerCoder* coder) {
  Status status;
  auto page = pages_.begin();
  ForEachPart(coder != nullptr ? &coder->form() : nullptr, [&](const kernels::Segment& part, int num_coded) {
    for (int at = 0; at < num_coded && status; at += kCodedBlock, page += kBlockPages) {
      status = coder->Read(reader, *part.layout, {&*page, kBlockPages});
    }
    for (int at = num_coded; at < part.num_entries && status; at += kP, ++page) {
      if (part.layout->format.coded()) {
        status = RestoreCoded(reader, *page, KindOf(static_cast<size_t>(page - pages_.begin())));
        continue;
      }
      if (!reader.Read({*page, part.layout->page_bytes})) status = Truncated();
    }
  });
  return status;
}

Status HeadCache::Restore(ByteReader& reader, int32_t end_position, LayerCoder* coder) {
  uint32_t count = 0, num_low = 0, num_lower = 0;
  if (!reader.Number(count) || !reader.Number(num_low) || !reader.Number(num_lower)) return Truncated();
  if (count > static_cast<uint32_t>(end_position)) {
    return Corrupt("a head of its cache has more entries than the sequence has tokens");
  }
  if (prunes()) PITH_RETURN_IF_ERROR(RestoreChannels(reader));
  if (state_.rank() > 0) {
    PITH_RETURN_IF_ERROR(state_.Restore(reader, end_position - static_cast<int64_t>(count)));
  }
  if (lower_.layout != nullptr && lower_.layout->is_latent()) PITH_RETURN_IF_ERROR(RestoreLatents(reader));
  if (num_low > count / kP || num_lower > num_low || (num_lower > 0 && lower_.pool == nullptr) ||
      (num_low > num_lower && low_.pool == nullptr) || (num_lower > 0 && prunes() && channels_.empty())) {
    return Corrupt("a head of its cache has more low pages than it fills");
  }
  const CodedForm* const form = coder != nullptr ? &coder->form() : nullptr;
  size_t bytes = LeastBytesOf(*layout_, static_cast<int>(count - num_low * kP), form);
  if (num_lower > 0) bytes += LeastBytesOf(*lower_.layout, static_cast<int>(num_lower * kP), form);
  if (num_low > num_lower) bytes += LeastBytesOf(*low_.layout, static_cast<int>((num_low - num_lower) * kP), form);
  if (bytes > reader.left()) return Truncated();
  if (num_low > 0) PITH_RETURN_IF_ERROR(ExtendLow(num_lower, num_low));
  const int rest = static_cast<int>(count) - num_entries_;
  PITH_RETURN_IF_ERROR(Extend(rest));
  Commit(rest);
  PITH_RETURN_IF_ERROR(RestoreParts(reader, coder));
  if (!VerifyLatents()) return Corrupt("its latents refer to entries that it does not have");
  if (!Verify()) return Corrupt("positions in its cache do not ascend");
  std::vector<int32_t> positions(static_cast<size_t>(num_entries_));
  ReadPositions(positions);
  if (std::ranges::any_of(positions, [end_position](int32_t position) { return position >= end_position; })) {
    return Corrupt("positions in its cache lie beyond its tokens");
  }
  return {};
}

void KvCache::Save(int sequence, ByteWriter& writer, const std::optional<CodedForm>& form) const {
  writer.Number(static_cast<uint32_t>(layers_.size()));
  for (size_t layer = 0; layer < layers_.size(); ++layer) {
    writer.Number(static_cast<uint32_t>(layers_[layer].num_kv_heads));
    if (layers_[layer].num_kv_heads == 0) continue;
    writer.Array(std::span<const uint32_t>(NumbersOf(head(sequence, static_cast<int>(layer), 0))));
    const std::span<const HeadCache> all = heads(sequence, static_cast<int>(layer));
    std::optional<LayerCoder> coder;
    if (form) {
      coder.emplace(*form);
      for (const HeadCache& head : all) head.CountCodes(*coder);
      coder->Settle();
      coder->SaveCodes(writer);
    }
    for (const HeadCache& head : all) head.Save(writer, coder ? &*coder : nullptr);
  }
}

Status KvCache::Restore(int sequence, ByteReader& reader, int32_t end_position, const std::optional<CodedForm>& form) {
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
    std::optional<LayerCoder> coder;
    if (form) PITH_RETURN_IF_ERROR(coder.emplace(*form).ReadCodes(reader));
    for (HeadCache& head : heads(sequence, static_cast<int>(layer))) {
      PITH_RETURN_IF_ERROR(head.Restore(reader, end_position, coder ? &*coder : nullptr));
    }
  }
  return {};
}

}  // namespace pith
