#include "cache/kv_cache.h"

#include <algorithm>
#include <cstring>
#include <functional>
#include <new>
#include <numeric>
#include <set>
#include <string>

#include "base/check.h"
#include "cache/latent_pages.h"
#include "cache/page_entries.h"
#include "kernels/coded_pages.h"
#include "kernels/key_channels.h"

namespace pith {
namespace {

size_t PagesFor(int entries) { return static_cast<size_t>((entries + kP - 1) / kP); }

// Pages are encoded from 16-bit keys.
Status CheckConversion(PageFormat entry, PageFormat low) {
  if (low == entry || BitsOf(entry.key) == 16) return {};
  return InvalidArgument("a cache in " + entry.Name() + " cannot be converted to " + low.Name());
}

// Coded pages are packed too tightly for channels to be taken out.
Status CheckPruned(const SequenceLayout& layout) {
  if (layout.pruned.share == 0 || !layout.lower) return {};
  if (!layout.lower->coded() && !layout.full().coded()) return {};
  return InvalidArgument("keys of coded pages can't lose channels");
}

tl::unexpected<Error> NoPage() { return OutOfBudget("the KV budget has no free page left"); }

}  // namespace

size_t PageStore::BytesOf(const std::byte* page) const {
  return layout->format.coded() ? kernels::CodedPageBytes(*layout, page) : layout->page_bytes;
}

HeadCache::HeadCache(HeadCache&& other) noexcept
    : pool_(other.pool_),
      layout_(other.layout_),
      low_(other.low_),
      lower_(other.lower_),
      num_low_(other.num_low_),
      num_lower_(other.num_lower_),
      pages_(std::move(other.pages_)),
      channels_(std::move(other.channels_)),
      maps_(std::move(other.maps_)),
      num_references_(other.num_references_),
      state_(std::move(other.state_)),
      num_entries_(other.num_entries_) {
  other.num_entries_ = 0;
  other.num_low_ = other.num_lower_ = 0;
  other.num_references_ = 0;
}

Status HeadCache::ReserveTable(size_t num_pages) {
  try {
    pages_.reserve(num_pages);
  } catch (const std::bad_alloc&) {
    return OutOfBudget("the KV budget does not hold the page tables");
  }
  return {};
}

Status HeadCache::Unshare(size_t page_index) {
  const PageStore store = StoreOf(page_index);
  if (!store.pool->IsShared(pages_[page_index])) return {};
  PageExchange exchange(account());
  exchange.GiveUp(store.pool, pages_[page_index]);
  exchange.Take(store.pool);
  if (!exchange.Settle()) return NoPage();
  CopyTo(exchange.Fresh(store.pool), page_index);
  exchange.Finish();
  return {};
}

void HeadCache::CopyTo(std::byte* fresh, size_t page_index) {
  std::memcpy(fresh, pages_[page_index], KindOf(page_index).BytesOf(pages_[page_index]));
  pages_[page_index] = fresh;
}

ExtensionCost HeadCache::PagesToExtend(int count) const {
  ExtensionCost cost;
  const size_t needed = PagesFor(num_entries_ + count), present = std::min(needed, pages_.size());
  cost.num_pages = needed - present + (SharesLastPage(count) ? 1 : 0);
  cost.bytes = cost.num_pages * (pool_ != nullptr ? pool_->page_cost() : 0);
  if (needed > pages_.capacity()) cost.bytes += GrownTable(needed) * sizeof(std::byte*);
  return cost;
}

bool HeadCache::SharesLastPage(int count) const {
  return count > 0 && num_entries_ % kP != 0 && pool_->IsShared(pages_[static_cast<size_t>(num_entries_ / kP)]);
}

size_t HeadCache::GrownTable(size_t num_pages) const { return std::max(num_pages, pages_.capacity() * 2); }

Status HeadCache::Extend(int count) {
  const size_t needed = PagesFor(num_entries_ + count);
  const auto last = static_cast<size_t>(num_entries_ / kP);
  const bool copies_last = SharesLastPage(count);
  if (needed > pages_.capacity()) PITH_RETURN_IF_ERROR(ReserveTable(GrownTable(needed)));
  PageExchange exchange(account());
  if (copies_last) {
    exchange.GiveUp(pool_, pages_[last]);
    exchange.Take(pool_);
  }
  for (size_t i = pages_.size(); i < needed; ++i) exchange.Take(pool_);
  if (!exchange.Settle()) return NoPage();
  if (copies_last) CopyTo(exchange.Fresh(pool_), last);
  while (pages_.size() < needed) pages_.push_back(exchange.Fresh(pool_));
  exchange.Finish();
  return {};
}

Status HeadCache::Truncate(int num_entries) {
  PITH_CHECK(num_entries >= 0 && num_entries <= num_entries_);
  if (num_entries < num_low_entries() && num_entries % kP != 0) {
    return InvalidArgument("entries within a page in " + layout_of(num_entries).format.Name() +
                           " cannot be taken back alone");
  }
  if (has_latents() && num_entries > 0 && num_entries < num_lower_entries() + num_references_) {
    return InvalidArgument("entries that latents refer to cannot be taken back alone");
  }
  const size_t num_pages = PagesFor(num_entries);
  for (; pages_.size() > num_pages; pages_.pop_back()) {
    StoreOf(pages_.size() - 1).pool->Release(pages_.back(), account());
  }
  num_low_ = std::min(num_low_, num_pages);
  num_lower_ = std::min(num_lower_, num_pages);
  num_entries_ = num_entries;
  if (num_lower_ == 0) num_references_ = 0, maps_.clear();
  return {};
}

Status HeadCache::Keep(std::span<const int32_t> kept) {
  const int count = static_cast<int>(kept.size());
  PITH_CHECK(count <= num_entries_);
  if (count == num_entries_) return {};
  if (const int stay = has_latents() ? num_lower_entries() + num_references_ : 0;
      count < stay || (stay > 0 && kept[static_cast<size_t>(stay) - 1] != stay - 1)) {
    return InvalidArgument("latents and the entries that they refer to cannot be dropped");
  }

  // Pages before the first gap keep their contents, shared or not.
  int first = 0;
  while (first < count && kept[static_cast<size_t>(first)] == first) ++first;
  size_t first_page = static_cast<size_t>(first / kP);
  if (first_page < num_low_) {
    const auto lower_end = std::lower_bound(kept.begin(), kept.end(), num_lower_entries());
    const auto low_end = std::lower_bound(lower_end, kept.end(), num_low_entries());
    Parts parts{{kept.begin(), lower_end}, {lower_end, low_end}, {low_end, kept.end()}};
    Complete(parts);
    return Arrange(parts);
  }
  const size_t num_pages = PagesFor(count);
  if (first == count) first_page = num_pages;  // nothing moves

  // Sources are read through the table before the change, since a destination may be a fresh copy of its page.
  const std::vector<std::byte*> from(pages_.begin(), pages_.end());
  std::vector<size_t> copied;
  PageExchange exchange(account());
  for (size_t i = first_page; i < from.size(); ++i) {
    if (i < num_pages && !pool_->IsShared(from[i])) continue;
    exchange.GiveUp(pool_, from[i]);
    if (i >= num_pages) continue;
    copied.push_back(i);
    exchange.Take(pool_);
  }
  if (!exchange.Settle()) return NoPage();
  for (const size_t i : copied) CopyTo(exchange.Fresh(pool_), i);
  for (int to = first; to < count; ++to) {
    const int source = kept[static_cast<size_t>(to)];
    PITH_DCHECK(source >= to && source < num_entries_);
    kernels::CopyEntry(*layout_, pages_[static_cast<size_t>(to / kP)], to % kP, from[static_cast<size_t>(source / kP)],
                       source % kP);
  }
  pages_.resize(num_pages);
  num_entries_ = count;
  exchange.Finish();
  return {};
}

int HeadCache::DropPagesBefore(int32_t position) {
  size_t pages = 0;
  while ((pages + 1) * kP <= static_cast<size_t>(num_entries_)) {
    const PageStore store = StoreOf(pages);
    if (store.layout->positions(static_cast<const std::byte*>(pages_[pages]))[kP - 1] >= position) break;
    store.pool->Release(pages_[pages++], account());
  }
  num_low_ -= std::min(num_low_, pages);
  num_lower_ -= std::min(num_lower_, pages);
  pages_.erase(pages_.begin(), pages_.begin() + static_cast<std::ptrdiff_t>(pages));
  num_entries_ -= static_cast<int>(pages) * kP;
  return static_cast<int>(pages) * kP;
}

Status HeadCache::ForkInto(HeadCache& other) const {
  PITH_CHECK(other.pages_.empty() && other.layout_ == layout_ && other.low_.layout == low_.layout &&
             other.lower_.layout == lower_.layout);
  PITH_RETURN_IF_ERROR(other.ReserveTable(std::max<size_t>(pages_.size(), 1)));
  PITH_RETURN_IF_ERROR(other.ChooseChannels(key_channels()));
  PITH_RETURN_IF_ERROR(other.SetMaps(maps()));
  // Slots past num_entries_ (made by Extend, never committed) are not shared.
  const size_t used = PagesFor(num_entries_);
  for (size_t i = 0; i < used; ++i) {
    StoreOf(i).pool->AddRef(pages_[i]);
    other.pages_.push_back(pages_[i]);
  }
  other.num_low_ = num_low_;
  other.num_lower_ = num_lower_;
  other.num_entries_ = num_entries_;
  other.num_references_ = num_references_;
  other.state_.CopyFrom(state_);
  return {};
}

void HeadCache::Clear() {
  for (size_t i = 0; i < pages_.size(); ++i) StoreOf(i).pool->Release(pages_[i], account());
  pages_.clear();
  state_.Clear();
  num_entries_ = 0;
  num_low_ = num_lower_ = 0;
  num_references_ = 0;
  maps_.clear();
}

// visit(first entry, count) for each page of the first so many entries.
template <class Visit>
void HeadCache::ForEachPage(size_t num_entries, const Visit& visit) const {
  PITH_DCHECK(num_entries <= static_cast<size_t>(num_entries_));
  for (size_t at = 0; at < num_entries; at += kP) visit(static_cast<int>(at), std::min<size_t>(kP, num_entries - at));
}

void HeadCache::ReadPositions(std::span<int32_t> positions) const {
  ForEachPage(positions.size(), [&](int entry, size_t count) {
    std::memcpy(positions.data() + entry, layout_of(entry).positions(page_of(entry)), sizeof(int32_t) * count);
  });
}

void HeadCache::ReadKeys(float* keys) const {
  LatentPages latents(*this);
  ForEachPage(static_cast<size_t>(num_entries_), [&](int entry, size_t count) {
    ReadPageKeys(entry, static_cast<int>(count), latents,
                 keys + static_cast<size_t>(entry) * static_cast<size_t>(layout_->key_dim));
  });
}

void HeadCache::ReadValues(float* values) const {
  LatentPages latents(*this);
  ForEachPage(static_cast<size_t>(num_entries_), [&](int entry, size_t count) {
    ReadPageValues(entry, static_cast<int>(count), latents,
                   values + static_cast<size_t>(entry) * static_cast<size_t>(layout_->value_dim));
  });
}

// read(first entry of a page, count, rows) for each page that has one of the entries, whose rows then go to `rows`.
template <class Read>
void HeadCache::ReadRowsOf(std::span<const int32_t> entries, size_t dim, const Read& read, float* rows) const {
  std::vector<float> page(static_cast<size_t>(kP) * dim);
  int is_read = -1;  // index of the page that is in `page`
  for (const int32_t entry : entries) {
    if (entry / kP != is_read) {
      is_read = entry / kP;
      read(is_read * kP, std::min(kP, num_entries_ - is_read * kP), page.data());
    }
    std::memcpy(rows, page.data() + static_cast<size_t>(entry % kP) * dim, dim * sizeof(float));
    rows += dim;
  }
}

void HeadCache::ReadPageKeys(int entry, int count, LatentPages& latents, float* keys) const {
  const PageLayout& layout = layout_of(entry);
  if (layout.is_latent()) return latents.ReadKeys(static_cast<size_t>(entry / kP), count, keys);
  kernels::ReadKeys(layout, page_of(entry), count, keys);
  if (layout.key_dim < layout_->key_dim) kernels::SpreadKeys(key_channels(), count, layout_->key_dim, keys);
}

void HeadCache::ReadPageValues(int entry, int count, LatentPages& latents, float* values) const {
  const PageLayout& layout = layout_of(entry);
  if (layout.is_latent()) return latents.ReadValues(static_cast<size_t>(entry / kP), count, values);
  kernels::ReadValues(layout, page_of(entry), count, values);
}

void HeadCache::ReadKeysOf(std::span<const int32_t> entries, float* keys) const {
  LatentPages latents(*this);
  const auto read = [&](int entry, int count, float* rows) { ReadPageKeys(entry, count, latents, rows); };
  ReadRowsOf(entries, static_cast<size_t>(layout_->key_dim), read, keys);
}

void HeadCache::ReadValuesOf(std::span<const int32_t> entries, float* values) const {
  LatentPages latents(*this);
  const auto read = [&](int entry, int count, float* rows) { ReadPageValues(entry, count, latents, rows); };
  ReadRowsOf(entries, static_cast<size_t>(layout_->value_dim), read, values);
}

void HeadCache::ReadColumn(int column, std::span<float> values) const {
  ForEachPage(values.size(), [&](int entry, size_t count) {
    std::memcpy(values.data() + entry, layout_of(entry).column(page_of(entry), column), sizeof(float) * count);
  });
}

Status HeadCache::WriteColumn(int column, std::span<const float> values) {
  Status status;
  ForEachPage(values.size(), [&](int entry, size_t count) {
    if (status) status = Unshare(static_cast<size_t>(entry / kP));
    if (!status) return;
    std::memcpy(layout_of(entry).column(page_of(entry), column), values.data() + entry, sizeof(float) * count);
  });
  return status;
}

void HeadCache::WriteSharedColumn(int column, std::span<const float> values) {
  ForEachPage(values.size(), [&](int entry, size_t count) {
    std::memcpy(layout_of(entry).column(page_of(entry), column), values.data() + entry, sizeof(float) * count);
  });
}

Status HeadCache::Rewrite(std::span<const int32_t> entries, const float* keys, const float* values) {
  PITH_CHECK(layout_->format == KvFormat::kF16);
  const auto key_dim = static_cast<size_t>(layout_->key_dim), value_dim = static_cast<size_t>(layout_->value_dim);
  std::vector<float> columns(static_cast<size_t>(layout_->num_columns));
  for (const int32_t entry : entries) {
    PITH_DCHECK(entry >= 0 && entry < num_entries_);
    PITH_RETURN_IF_ERROR(Unshare(static_cast<size_t>(entry / kP)));
    std::byte* page = page_of(entry);
    const int slot = entry % kP;
    const int32_t position = layout_->positions(page)[slot];
    for (int c = 0; c < layout_->num_columns; ++c) columns[static_cast<size_t>(c)] = layout_->column(page, c)[slot];
    kernels::WriteEntryF32(*layout_, page, slot, keys + static_cast<size_t>(entry) * key_dim,
                           values + static_cast<size_t>(entry) * value_dim, position);
    for (int c = 0; c < layout_->num_columns; ++c) layout_->column(page, c)[slot] = columns[static_cast<size_t>(c)];
  }
  return {};
}

Status HeadCache::Verify() const {
  if (num_entries_ < 0 || PagesFor(num_entries_) > pages_.size()) {
    return Corrupt("cache: a head has fewer pages than entries");
  }
  if (num_low_ > static_cast<size_t>(num_entries_ / kP) || num_lower_ > num_low_) {
    return Corrupt("cache: a low page is not full");
  }
  if (prunes() && num_lower_ > 0 && channels_.size() != static_cast<size_t>(lower_.layout->key_dim)) {
    return Corrupt("cache: keys of a head lack channels, and which ones is not known");
  }
  PITH_RETURN_IF_ERROR(VerifyLatents());
  std::vector<int32_t> positions(static_cast<size_t>(num_entries_));
  ReadPositions(positions);
  const bool by_time = lower_.layout == nullptr;
  if (!by_time) std::ranges::sort(positions);
  if ((!positions.empty() && positions.front() < 0) ||
      std::ranges::adjacent_find(positions, std::greater_equal<>()) != positions.end()) {
    return Corrupt(by_time ? "cache: positions of a head are not ascending" : "cache: a head holds a position twice");
  }
  return state_.Verify();
}

void HeadCache::CountReferences(PageReferences* references) const {
  for (size_t i = 0; i < pages_.size(); ++i) ++(*references)[{StoreOf(i).pool, pages_[i]}];
}

KvCache::KvCache(Ledger* ledger, std::vector<CacheLayer> layers)
    : ledger_(ledger), layers_(std::move(layers)), arena_(ledger) {
  first_head_.push_back(0);
  for (const CacheLayer& layer : layers_) {
    first_head_.push_back(first_head_.back() + static_cast<size_t>(layer.num_kv_heads));
    std::shared_ptr<const TurnTable> turns;
    for (const auto& known : turns_) {
      if (layer.rotation != nullptr && known != nullptr && known->rotation() == *layer.rotation) turns = known;
    }
    if (turns == nullptr && layer.rotation != nullptr) turns = std::make_shared<const TurnTable>(*layer.rotation);
    turns_.push_back(std::move(turns));
  }
}

std::unique_ptr<KvCache> KvCache::Create(Ledger* ledger, std::vector<CacheLayer> layers) {
  return std::unique_ptr<KvCache>(new KvCache(ledger, std::move(layers)));
}

Result<const KvCache::PageClass*> KvCache::FindClass(PageFormat format, int num_columns, double pruned) {
  for (const auto& known : classes_) {
    if (known->format == format && known->num_columns == num_columns && known->pruned == pruned) return known.get();
  }
  auto made = std::make_unique<PageClass>();
  made->format = format;
  made->num_columns = num_columns;
  made->pruned = pruned;
  size_t page_bytes = 0;
  for (const CacheLayer& layer : layers_) {
    made->layouts.push_back(PageLayout::Make(format, ChannelsLeft(layer.key_dim, pruned), layer.value_dim,
                                             layer.global ? num_columns : 0));
    if (pruned > 0 && !layer.global) continue;  // has no such pages
    if (layer.num_kv_heads > 0) page_bytes = std::max(page_bytes, made->layouts.back().page_bytes);
  }
  if (page_bytes > 0) {
    if (format.coded()) {
      PITH_ASSIGN_OR_RETURN(made->sized, SizedPools::Create(&arena_, page_bytes));
    } else {
      PITH_ASSIGN_OR_RETURN(made->equal, PagePool::Create(&arena_, page_bytes));
    }
  }
  classes_.push_back(std::move(made));
  return classes_.back().get();
}

std::vector<int32_t> HeadCache::TimeOrder() const {
  const auto n = static_cast<size_t>(num_entries_);
  if (lower_.layout == nullptr || num_low_ == 0) return {};
  std::vector<int32_t> positions(n), order(n);
  ReadPositions(positions);
  if (std::ranges::is_sorted(positions)) return {};
  std::iota(order.begin(), order.end(), 0);
  std::ranges::sort(order, {}, [&](int32_t entry) { return positions[static_cast<size_t>(entry)]; });
  return order;
}

template <class Visit>
void KvCache::ForEachHead(Sequence& sequence, const Visit& visit) {
  for (size_t layer = 0; layer < layers_.size(); ++layer) {
    for (size_t i = first_head_[layer]; i < first_head_[layer + 1]; ++i) visit(layer, sequence.heads[i]);
  }
}

Status KvCache::SetLow(int sequence, PageFormat format) {
  Sequence& own = sequences_.at(sequence);
  PITH_RETURN_IF_ERROR(CheckConversion(own.layout.entry, format));
  SequenceLayout changed = own.layout;
  changed.low = format == own.layout.entry ? std::nullopt : std::optional(format);
  PITH_RETURN_IF_ERROR(CheckPruned(changed));
  PITH_ASSIGN_OR_RETURN(const PageClass* to, FindClass(format, own.layout.num_columns));
  PageExchange exchange(own.account());
  ForEachHead(own, [&](size_t layer, HeadCache& head) { head.OfferLow(to->store(layer), &exchange); });
  if (!exchange.Settle()) {
    return OutOfBudget("the KV budget does not hold the compressed entries in " + format.Name());
  }
  ForEachHead(own, [&](size_t layer, HeadCache& head) { head.ChangeLow(to->store(layer), &exchange); });
  exchange.Finish();
  own.layout = changed;
  return {};
}

PageStore KvCache::LowerStore(const PageClass* lower, PrunedKeys pruned, size_t layer) const {
  if (lower == nullptr) return {};
  const CacheLayer& shape = layers_[layer];
  if (pruned.share == 0) {
    PageStore store = lower->store(layer);
    store.turns = turns_[layer].get();
    return store;
  }
  if (!shape.global || ChannelsLeft(shape.key_dim, pruned.share) == shape.key_dim) return {};
  return {lower->pool(), &lower->layouts[layer], pruned.recent};
}

Status KvCache::SetLower(int sequence, std::optional<PageFormat> format, PrunedKeys pruned) {
  Sequence& own = sequences_.at(sequence);
  if (own.layout.lower == format && own.layout.pruned == pruned) return {};
  SequenceLayout changed = own.layout;
  changed.lower = format;
  changed.pruned = pruned;
  PITH_RETURN_IF_ERROR(CheckPruned(changed));
  const PageClass* to = nullptr;
  if (format) {
    PITH_RETURN_IF_ERROR(CheckConversion(own.layout.entry, *format));
    PITH_ASSIGN_OR_RETURN(to, FindClass(*format, own.layout.num_columns, pruned.share));
  }
  bool any = false;
  ForEachHead(own, [&](size_t, HeadCache& head) { any = any || head.num_lower_entries() > 0; });
  if (any && to == nullptr) return InvalidArgument("there are entries in " + own.layout.lower->Name());
  if (any && (pruned.share > 0 || own.layout.pruned.share > 0)) {
    return InvalidArgument("keys of some entries have lost other channels already");
  }
  if (any && (format->latents > 0 || own.layout.lower->latents > 0)) {
    return InvalidArgument("some entries are in " + own.layout.lower->Name() + " already, which cannot change");
  }
  const auto store = [&](size_t layer) { return LowerStore(to, pruned, layer); };
  PageExchange exchange(own.account());
  ForEachHead(own, [&](size_t layer, HeadCache& head) { head.OfferLower(store(layer), &exchange); });
  if (!exchange.Settle()) {
    return OutOfBudget("the KV budget does not hold the entries that matter less in " + format->Name());
  }
  ForEachHead(own, [&](size_t layer, HeadCache& head) { head.ChangeLower(store(layer), &exchange); });
  exchange.Finish();
  own.layout = changed;
  return {};
}

Result<int> KvCache::NewSequence(const SequenceLayout& layout, MemoryAccount* account) {
  PITH_ASSIGN_OR_RETURN(const PageClass* entry, FindClass(layout.entry, layout.num_columns));
  const PageClass* low = nullptr;
  SequenceLayout settled = layout;
  if (layout.low == layout.entry) settled.low.reset();
  PITH_RETURN_IF_ERROR(CheckPruned(settled));
  if (settled.low) {
    PITH_RETURN_IF_ERROR(CheckConversion(settled.entry, *settled.low));
    PITH_ASSIGN_OR_RETURN(low, FindClass(*settled.low, layout.num_columns));
  }
  const PageClass* lower = nullptr;
  if (settled.lower) {
    PITH_RETURN_IF_ERROR(CheckConversion(settled.entry, *settled.lower));
    PITH_ASSIGN_OR_RETURN(lower, FindClass(*settled.lower, layout.num_columns, layout.pruned.share));
  }
  try {
    Heads heads{LedgerAllocator<HeadCache>(account)};
    heads.reserve(num_heads());
    for (size_t layer = 0; layer < layers_.size(); ++layer) {
      for (int h = 0; h < layers_[layer].num_kv_heads; ++h) {
        heads.emplace_back(entry->store(layer), low != nullptr ? low->store(layer) : PageStore(),
                           LowerStore(lower, settled.pruned, layer), account);
        if (settled.state_rank == 0 || !layers_[layer].global) continue;
        PITH_RETURN_IF_ERROR(heads.back().state().Hold(settled.state_rank, layers_[layer].value_dim));
      }
    }
    sequences_.emplace(next_sequence_, Sequence(settled, std::move(heads)));
  } catch (const std::bad_alloc&) {
    return OutOfBudget("the KV budget does not hold another sequence");
  }
  return next_sequence_++;
}

Result<int> KvCache::Fork(int sequence, MemoryAccount* account) {
  PITH_ASSIGN_OR_RETURN(const int fork, NewSequence(layout(sequence), account));
  Heads& to = sequences_.at(fork).heads;
  const Heads& from = sequences_.at(sequence).heads;
  for (size_t i = 0; i < from.size(); ++i) {
    if (Status status = from[i].ForkInto(to[i]); !status) {
      Free(fork);
      return tl::unexpected<Error>(status.error());
    }
  }
  return fork;
}

void KvCache::Free(int sequence) {
  sequences_.erase(sequence);
  arena_.Trim();
}

std::vector<const PagePool*> KvCache::Pools() const {
  std::vector<const PagePool*> all;
  for (const auto& known : classes_) {
    if (known->equal != nullptr) all.push_back(known->equal.get());
    if (known->sized == nullptr) continue;
    for (const auto& pool : known->sized->pools()) all.push_back(pool.get());
  }
  return all;
}

Status KvCache::VerifyAccounts() const {
  std::map<const MemoryAccount*, size_t> owned;
  for (const PagePool* pool : Pools()) PITH_RETURN_IF_ERROR(pool->Verify(&owned));
  std::set<const MemoryAccount*> accounts = {ledger_->common()};
  for (const auto& [id, sequence] : sequences_) accounts.insert(sequence.account());
  for (const auto& [account, bytes] : owned) {
    if (accounts.count(account) == 0) return Corrupt("cache: a page's owner is gone");
  }
  for (const MemoryAccount* account : accounts) {
    if (account->used_bytes(MemoryTag::kPages) != owned[account]) {
      return Corrupt("cache: an account is charged other bytes than its pages take");
    }
  }
  if (ledger_->used_bytes() > ledger_->limit_bytes()) return Corrupt("cache: over budget");
  return {};
}

Status KvCache::Verify() const {
  PITH_RETURN_IF_ERROR(VerifyAccounts());
  PageReferences references;
  for (const auto& [id, sequence] : sequences_) {
    for (const HeadCache& head : sequence.heads) {
      PITH_RETURN_IF_ERROR(head.Verify());
      head.CountReferences(&references);
    }
  }
  size_t num_used = 0;
  for (const PagePool* pool : Pools()) num_used += pool->num_used();
  if (references.size() != num_used) return Corrupt("cache: pages in use and pages owned differ");
  for (const auto& [place, count] : references) {
    if (place.first->num_references(place.second) != count) return Corrupt("cache: a page's references are miscounted");
  }
  return {};
}

}  // namespace pith
