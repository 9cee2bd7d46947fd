#include "cache/kv_cache.h"

#include <algorithm>
#include <cstring>
#include <new>
#include <string>

#include "base/check.h"

namespace pith {
namespace {

constexpr int kP = kPageEntries;

size_t PagesFor(int entries) { return static_cast<size_t>((entries + kP - 1) / kP); }

tl::unexpected<Error> NoPage() { return OutOfBudget("the KV budget has no free page left"); }

}  // namespace

HeadCache::HeadCache(HeadCache&& other) noexcept
    : pool_(other.pool_), layout_(other.layout_), low_(other.low_), num_low_(other.num_low_), pages_(std::move(other.pages_)), num_entries_(other.num_entries_) {
  other.num_entries_ = 0;
  other.num_low_ = 0;
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
  std::byte* old = pages_[page_index];
  if (!store.pool->IsShared(old)) return {};
  std::byte* fresh = store.pool->Acquire();
  if (fresh == nullptr) return NoPage();
  std::memcpy(fresh, old, store.layout->page_bytes);
  pages_[page_index] = fresh;
  store.pool->Release(old);
  return {};
}

Status HeadCache::Extend(int count) {
  const size_t before = pages_.size();
  const size_t needed = PagesFor(num_entries_ + count);
  if (num_entries_ % kP != 0) PITH_RETURN_IF_ERROR(Unshare(before - 1));
  if (needed > pages_.capacity()) {
    PITH_RETURN_IF_ERROR(ReserveTable(std::max(needed, pages_.capacity() * 2)));
  }
  while (pages_.size() < needed) {
    std::byte* page = pool_->Acquire();
    if (page == nullptr) {
      for (; pages_.size() > before; pages_.pop_back()) pool_->Release(pages_.back());
      return NoPage();
    }
    pages_.push_back(page);
  }
  return {};
}

Status HeadCache::Keep(std::span<const int32_t> kept) {
  const int count = static_cast<int>(kept.size());
  PITH_CHECK(count <= num_entries_);
  if (count == num_entries_) return {};

  // Pages before the first gap keep their contents, shared or not.
  int first = 0;
  while (first < count && kept[static_cast<size_t>(first)] == first) ++first;
  const size_t first_page = static_cast<size_t>(first / kP);
  if (first_page < num_low_) {
    const auto low = std::lower_bound(kept.begin(), kept.end(), num_low_entries()) - kept.begin();
    // The last low page is completed with 16-bit entries where there are enough.
    const bool completes = count >= static_cast<int>(PagesFor(static_cast<int>(low))) * kP;
    return Regroup(kept, first_page, completes ? PagesFor(static_cast<int>(low)) : static_cast<size_t>(low / kP));
  }
  const size_t num_pages = PagesFor(count);

  std::vector<std::byte*> copied;  // originals of shared pages, alive until everything is read
  for (size_t i = first_page; i < num_pages; ++i) {
    if (!pool_->IsShared(pages_[i])) continue;
    std::byte* fresh = pool_->Acquire();
    if (fresh == nullptr) {
      for (std::byte* page : copied) pool_->Release(page);
      return NoPage();
    }
    copied.push_back(fresh);
  }

  // `from` is the table before the change: sources are read through it, since a
  // destination page may have been replaced by a fresh copy.
  std::vector<std::byte*> from(pages_.begin(), pages_.end());
  size_t next_copy = 0;
  std::vector<std::byte*> originals;
  for (size_t i = first_page; i < num_pages; ++i) {
    if (!pool_->IsShared(pages_[i])) continue;
    originals.push_back(pages_[i]);
    pages_[i] = copied[next_copy++];
    std::memcpy(pages_[i], from[i], layout_->page_bytes);
  }
  for (int to = first; to < count; ++to) {
    const int source = kept[static_cast<size_t>(to)];
    PITH_DCHECK(source >= to && source < num_entries_);
    kernels::CopyEntry(*layout_, pages_[static_cast<size_t>(to / kP)], to % kP, from[static_cast<size_t>(source / kP)],
                       source % kP);
  }
  for (std::byte* page : originals) pool_->Release(page);
  for (; pages_.size() > num_pages; pages_.pop_back()) pool_->Release(pages_.back());
  num_entries_ = count;
  return {};
}

int HeadCache::DropPagesBefore(int32_t position) {
  size_t pages = 0;
  while ((pages + 1) * kP <= static_cast<size_t>(num_entries_)) {
    const PageStore store = StoreOf(pages);
    if (store.layout->positions(static_cast<const std::byte*>(pages_[pages]))[kP - 1] >= position) break;
    store.pool->Release(pages_[pages++]);
  }
  num_low_ -= std::min(num_low_, pages);
  pages_.erase(pages_.begin(), pages_.begin() + static_cast<std::ptrdiff_t>(pages));
  num_entries_ -= static_cast<int>(pages) * kP;
  return static_cast<int>(pages) * kP;
}

Status HeadCache::ForkInto(HeadCache& other) const {
  PITH_CHECK(other.pages_.empty() && other.layout_ == layout_);
  PITH_RETURN_IF_ERROR(other.ReserveTable(std::max<size_t>(pages_.size(), 1)));
  // Slots past num_entries_ (made by Extend, never committed) are not shared.
  const size_t used = PagesFor(num_entries_);
  for (size_t i = 0; i < used; ++i) {
    StoreOf(i).pool->AddRef(pages_[i]);
    other.pages_.push_back(pages_[i]);
  }
  other.low_ = low_;
  other.num_low_ = num_low_;
  other.num_entries_ = num_entries_;
  return {};
}

void HeadCache::Clear() {
  for (size_t i = 0; i < pages_.size(); ++i) StoreOf(i).pool->Release(pages_[i]);
  pages_.clear();
  num_entries_ = 0;
  num_low_ = 0;
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
  ForEachPage(static_cast<size_t>(num_entries_), [&](int entry, size_t count) {
    kernels::ReadKeys(layout_of(entry), page_of(entry), static_cast<int>(count), keys + static_cast<size_t>(entry) * static_cast<size_t>(layout_->key_dim));
  });
}

void HeadCache::ReadValues(float* values) const {
  ForEachPage(static_cast<size_t>(num_entries_), [&](int entry, size_t count) {
    kernels::ReadValues(layout_of(entry), page_of(entry), static_cast<int>(count), values + static_cast<size_t>(entry) * static_cast<size_t>(layout_->value_dim));
  });
}

void HeadCache::ReadValuesOf(std::span<const int32_t> entries, float* values) const {
  const auto dim = static_cast<size_t>(layout_->value_dim);
  std::vector<float> page(static_cast<size_t>(kP) * dim);
  int read = -1;  // index of the page that is in `page`
  for (const int32_t entry : entries) {
    if (entry / kP != read) {
      read = entry / kP;
      kernels::ReadValues(layout_of(entry), page_of(entry), std::min(kP, num_entries_ - read * kP), page.data());
    }
    std::memcpy(values, page.data() + static_cast<size_t>(entry % kP) * dim, dim * sizeof(float));
    values += dim;
  }
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
    if (status) std::memcpy(layout_of(entry).column(page_of(entry), column), values.data() + entry, sizeof(float) * count);
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
  if (num_entries_ < 0 || PagesFor(num_entries_) > pages_.size()) return Corrupt("cache: a head has fewer pages than entries");
  if (num_low_ > static_cast<size_t>(num_entries_ / kP)) return Corrupt("cache: a low page is not full");
  int32_t last = -1;
  for (int i = 0; i < num_entries_; ++i) {
    const int32_t position = layout_of(i).positions(page_of(i))[i % kP];
    if (position <= last) return Corrupt("cache: positions of a head are not ascending");
    last = position;
  }
  return {};
}

KvCache::KvCache(Ledger* ledger, std::vector<CacheLayer> layers) : ledger_(ledger), layers_(std::move(layers)) {
  first_head_.push_back(0);
  for (const CacheLayer& layer : layers_) {
    first_head_.push_back(first_head_.back() + static_cast<size_t>(layer.num_kv_heads));
  }
}

Result<std::unique_ptr<KvCache>> KvCache::Create(Ledger* ledger, std::vector<CacheLayer> layers, size_t num_pages) {
  size_t page_bytes = 0;
  for (const CacheLayer& layer : layers) {
    if (layer.num_kv_heads > 0) page_bytes = std::max(page_bytes, layer.layout.page_bytes);
  }
  std::unique_ptr<KvCache> cache(new KvCache(ledger, std::move(layers)));
  PITH_ASSIGN_OR_RETURN(cache->pool_, PagePool::Create(ledger, page_bytes, num_pages));
  return cache;
}

Status KvCache::AddFormat(PageFormat format, size_t num_pages) {
  for (const auto& low : low_formats_) {
    if (low->format == format) return {};
  }
  auto low = std::make_unique<LowFormat>();
  low->format = format;
  size_t page_bytes = 0;
  for (const CacheLayer& layer : layers_) {
    const PageLayout& own = layer.layout;
    low->layouts.push_back(PageLayout::Make(format, own.key_dim, own.value_dim, own.num_columns));
    if (layer.num_kv_heads > 0) page_bytes = std::max(page_bytes, low->layouts.back().page_bytes);
  }
  PITH_ASSIGN_OR_RETURN(low->pool, PagePool::Create(ledger_, page_bytes, num_pages));
  low_formats_.push_back(std::move(low));
  return {};
}

void KvCache::SetLow(int sequence, PageFormat format) {
  const auto low = std::find_if(low_formats_.begin(), low_formats_.end(), [&](const auto& l) { return l->format == format; });
  PITH_CHECK(low != low_formats_.end());
  for (size_t layer = 0; layer < layers_.size(); ++layer) {
    for (int h = 0; h < layers_[layer].num_kv_heads; ++h) {
      head(sequence, static_cast<int>(layer), h).SetLow({(*low)->pool.get(), &(*low)->layouts[layer]});
    }
  }
}

Result<int> KvCache::NewSequence() {
  try {
    Heads heads{LedgerAllocator<HeadCache>(ledger_)};
    heads.reserve(num_heads());
    for (const CacheLayer& layer : layers_) {
      for (int h = 0; h < layer.num_kv_heads; ++h) heads.emplace_back(pool_.get(), &layer.layout, ledger_);
    }
    sequences_.emplace(next_sequence_, std::move(heads));
  } catch (const std::bad_alloc&) {
    return OutOfBudget("the KV budget does not hold another sequence");
  }
  return next_sequence_++;
}

Result<int> KvCache::Fork(int sequence) {
  PITH_ASSIGN_OR_RETURN(const int fork, NewSequence());
  Heads& to = sequences_.at(fork);
  const Heads& from = sequences_.at(sequence);
  for (size_t i = 0; i < from.size(); ++i) {
    if (Status status = from[i].ForkInto(to[i]); !status) {
      Free(fork);
      return tl::unexpected<Error>(status.error());
    }
  }
  return fork;
}

void KvCache::Free(int sequence) { sequences_.erase(sequence); }

Status KvCache::Verify() const {
  PITH_RETURN_IF_ERROR(pool_->Verify());
  size_t num_used = pool_->num_used();
  for (const auto& low : low_formats_) {
    PITH_RETURN_IF_ERROR(low->pool->Verify());
    num_used += low->pool->num_used();
  }
  std::map<const std::byte*, int> owners;
  for (const auto& [id, heads] : sequences_) {
    for (const HeadCache& head : heads) {
      PITH_RETURN_IF_ERROR(head.Verify());
      for (const std::byte* page : head.pages()) ++owners[page];
    }
  }
  if (owners.size() != num_used) return Corrupt("cache: pages in use and pages owned differ");
  if (ledger_->used_bytes() > ledger_->limit_bytes()) return Corrupt("cache: over budget");
  return {};
}

}  // namespace pith
