// Pages of a head in a smaller format: demotion, and regrouping after an eviction.
#include <algorithm>
#include <cstring>
#include <new>
#include <span>
#include <utility>
#include <vector>

#include "base/check.h"
#include "cache/kv_cache.h"
#include "cache/page_entries.h"
#include "kernels/coded_pages.h"
#include "kernels/group_codec.h"
#include "kernels/key_channels.h"

namespace pith {
namespace {

size_t PagesFor(int entries) { return static_cast<size_t>((entries + kP - 1) / kP); }

}  // namespace

bool HeadCache::IsWholePage(std::span<const Source> sources) {
  if (sources.size() != static_cast<size_t>(kP)) return false;
  for (int slot = 0; slot < kP; ++slot) {
    const Source& source = sources[static_cast<size_t>(slot)];
    if (source.page != sources[0].page || source.slot != slot) return false;
  }
  return true;
}

void HeadCache::FillPage(const PageLayout& layout, std::byte* page, std::span<const Source> sources,
                         std::vector<float>& keys) const {
  const int dim = layout_->key_dim;
  const kernels::KeyChannels channels = key_channels();
  if (IsWholePage(sources) && sources[0].layout->format == layout.format &&
      (layout.key_dim < dim || sources[0].layout->key_dim == dim)) {
    if (layout.key_dim == sources[0].layout->key_dim) {
      std::memcpy(page, sources[0].page, PageStore{nullptr, &layout}.BytesOf(sources[0].page));
    } else {
      kernels::SelectChannels(*sources[0].layout, sources[0].page, channels, layout, page);
    }
    return;
  }
  if (layout.format.coded()) {
    FillCoded(layout, page, sources);
    return;
  }
  if (!layout.format.whole_pages()) {
    for (size_t i = 0; i < sources.size(); ++i) {
      kernels::ConvertPrunedEntry(layout, page, static_cast<int>(i), *sources[i].layout, sources[i].page,
                                  sources[i].slot, channels, dim);
    }
    return;
  }
  keys.resize(static_cast<size_t>(dim) * kP);
  for (size_t i = 0; i < sources.size(); ++i) {
    kernels::ReadWholeKey(*sources[i].layout, sources[i].page, sources[i].slot, channels, dim, keys.data() + i, kP);
    kernels::CopyValueAndState(layout, page, static_cast<int>(i), *sources[i].layout, sources[i].page, sources[i].slot);
  }
  // What was rounded before is not to be rounded anew each time.
  const bool rounded =
      std::ranges::any_of(sources, [](const Source& from) { return from.layout->format.whole_pages(); });
  const kernels::ScaleGrid grid = rounded ? kernels::ScaleGrid::kNested : kernels::ScaleGrid::kClipped;
  for (int i = 0; i < layout.key_dim; ++i) {
    const int d = layout.key_dim < dim ? channels[static_cast<size_t>(i)] : i;
    kernels::WriteKeyGroup(layout, page, i, keys.data() + static_cast<size_t>(d) * kP, grid);
  }
}

size_t HeadCache::FillCoded(const PageLayout& layout, std::byte* page, std::span<const Source> sources) const {
  PITH_CHECK(sources.size() == static_cast<size_t>(kP) && !prunes());
  const auto key_dim = static_cast<size_t>(layout.key_dim), value_dim = static_cast<size_t>(layout.value_dim);
  // A coded page is decoded once for all that it gives.
  std::vector<float> keys(kP * key_dim), values(kP * value_dim), from_keys(kP * key_dim), from_values(kP * value_dim);
  const std::byte* is_read = nullptr;
  for (size_t i = 0; i < sources.size(); ++i) {
    const Source& from = sources[i];
    const auto slot = static_cast<size_t>(from.slot);
    if (from.page != is_read) kernels::ReadPage(*from.layout, from.page, from_keys.data(), from_values.data());
    is_read = from.page;
    for (size_t d = 0; d < key_dim; ++d) keys[d * kP + i] = from_keys[d * kP + slot];
    std::copy_n(from_values.data() + slot * value_dim, value_dim, values.data() + i * value_dim);
    layout.positions(page)[i] = from.layout->positions(from.page)[slot];
    for (int c = 0; c < layout.num_columns; ++c) layout.column(page, c)[i] = from.layout->column(from.page, c)[slot];
  }
  return kernels::EncodePage(layout, keys.data(), values.data(), page);
}

PagePool* HeadCache::StageCoded(PageStore store, std::span<const Source> sources, std::vector<std::byte>& page) const {
  if (!store.layout->format.coded()) return store.pool;
  page.resize(store.layout->page_bytes);
  page.resize(FillCoded(*store.layout, page.data(), sources));
  return store.PoolFor(page.size());
}

void HeadCache::Offer(size_t first, size_t end, PageStore from, PageStore to, PageExchange* exchange) const {
  if (to.pool == from.pool) return;
  std::vector<std::byte> staging(end > first && to.layout->format.coded() ? to.layout->page_bytes : 0);
  for (size_t i = first; i < end; ++i) {
    exchange->GiveUp(StoreOf(i).pool, pages_[i]);
    exchange->Take(staging.empty() ? to.pool : to.PoolFor(FillCoded(*to.layout, staging.data(), SourcesOf(i))));
  }
}

void HeadCache::Convert(size_t first, size_t end, PageStore from, PageStore to, PageExchange* exchange) {
  // Pages are encoded from 16 bits.
  const bool wide = BitsOf(layout_->format.key) == 16 && BitsOf(layout_->format.value) == 16;
  const PageLayout between = PageLayout::Make(wide ? layout_->format : PageFormat(), layout_->key_dim,
                                              layout_->value_dim, layout_->num_columns);
  std::vector<std::byte> staging(end > first ? std::max(between.page_bytes, to.layout->page_bytes) : 0);
  for (size_t i = first; i < end; ++i) {
    if (to.layout->format.coded()) {
      const size_t bytes = FillCoded(*to.layout, staging.data(), SourcesOf(i));
      pages_[i] = exchange->Fresh(to.PoolFor(bytes));
      std::memcpy(pages_[i], staging.data(), bytes);
      continue;
    }
    kernels::ConvertPage(*from.layout, pages_[i], between, staging.data());
    pages_[i] = exchange->Fresh(to.pool);
    kernels::ConvertPage(between, staging.data(), *to.layout, pages_[i]);
  }
}

std::vector<HeadCache::Source> HeadCache::SourcesOf(size_t page) const {
  std::vector<Source> sources;
  for (int slot = 0; slot < kP; ++slot) sources.push_back({KindOf(page).layout, pages_[page], slot});
  return sources;
}

void HeadCache::ChangeLow(PageStore low, PageExchange* exchange) {
  if (low.pool == low_.pool) return;
  Convert(num_lower_, num_low_, low_, low, exchange);
  const bool as_entries = low.pool == pool_;
  low_ = as_entries ? PageStore() : low;
  if (as_entries) num_low_ = num_lower_;
}

void HeadCache::ChangeLower(PageStore lower, PageExchange* exchange) {
  if (lower.pool != lower_.pool) {
    Convert(0, num_lower_, lower_, lower, exchange);
    LedgerVector<uint16_t>(channels_.get_allocator()).swap(channels_);
    LedgerVector<uint16_t>(maps_.get_allocator()).swap(maps_);
  }
  lower_ = lower;
}

Status HeadCache::ChooseChannels(std::span<const uint16_t> channels) {
  PITH_DCHECK(channels.empty() || (num_lower_ == 0 && prunes()));
  try {
    channels_.assign(channels.begin(), channels.end());
  } catch (const std::bad_alloc&) {
    return OutOfBudget("the KV budget does not hold the lists of channels that keys keep");
  }
  return {};
}

Status HeadCache::Prune() {
  if (!prunes() || channels_.empty()) return {};
  std::vector<Source> sources(kP);
  std::vector<float> keys;
  while (num_lower_entries() + kP + lower_.recent <= num_entries_) {
    const PageStore from = StoreOf(num_lower_);
    std::byte*& page = pages_[num_lower_];
    PageExchange exchange(account());
    exchange.GiveUp(from.pool, page);
    exchange.Take(lower_.pool);
    if (!exchange.Settle()) return OutOfBudget("the KV budget has no free page left");
    std::byte* const pruned = exchange.Fresh(lower_.pool);
    for (int slot = 0; slot < kP; ++slot) sources[static_cast<size_t>(slot)] = {from.layout, page, slot};
    FillPage(*lower_.layout, pruned, sources, keys);
    page = pruned;
    ++num_lower_;
    num_low_ = std::max(num_low_, num_lower_);
    exchange.Finish();
  }
  return {};
}

bool HeadCache::HasOldPages(int newest) const {
  const int old = num_entries_ - newest;
  return (low_.pool != nullptr && old - num_low_entries() >= kP) ||
         (prunes() && !channels_.empty() && old - lower_.recent - num_lower_entries() >= kP);
}

int HeadCache::Describe(kernels::Segment* segments) const {
  int count = 0;
  if (num_lower_ > 0) segments[count++] = {lower_.layout, pages_.data(), num_lower_entries()};
  if (num_low_ > num_lower_) {
    segments[count++] = {low_.layout, pages_.data() + num_lower_, num_low_entries() - num_lower_entries()};
  }
  segments[count++] = {layout_, pages_.data() + num_low_, num_entries_ - num_low_entries()};
  return count;
}

double HeadCache::content_bytes() const {
  kernels::Segment segments[kMaxSegments];
  double bytes = state_.num_entries() > 0 ? static_cast<double>(state_.bytes()) : 0;
  if (has_latents()) bytes += static_cast<double>(maps().size_bytes());
  for (const kernels::Segment& segment : std::span(segments, static_cast<size_t>(Describe(segments)))) {
    const PageLayout& layout = *segment.layout;
    if (!layout.format.coded()) {
      bytes += segment.num_entries * layout.entry_bytes();
      continue;
    }
    for (int i = 0; i < segment.num_entries / kP; ++i) {
      bytes += kernels::CodedPageBytes(layout, segment.pages[i]) - static_cast<double>(layout.key_offset);
    }
  }
  return bytes;
}

Status HeadCache::Demote(int residual) {
  if (low_.pool == nullptr) return {};
  std::vector<std::byte> coded;
  while (num_low_entries() + kP + residual <= num_entries_) {
    std::byte*& page = pages_[num_low_];
    PagePool* to = low_.pool;
    if (low_.layout->format.coded()) {
      coded.resize(low_.layout->page_bytes);
      kernels::ConvertPage(*layout_, page, *low_.layout, coded.data());
      to = low_.PoolFor(low_.BytesOf(coded.data()));
    }
    PageExchange exchange(account());
    exchange.GiveUp(pool_, page);
    exchange.Take(to);
    if (!exchange.Settle()) return OutOfBudget("the KV budget has no free page left");
    std::byte* low = exchange.Fresh(to);
    if (coded.empty()) {
      kernels::ConvertPage(*layout_, page, *low_.layout, low);
    } else {
      std::memcpy(low, coded.data(), low_.BytesOf(coded.data()));
    }
    page = low;
    ++num_low_;
    exchange.Finish();
  }
  return {};
}

std::vector<int32_t> HeadCache::Parts::all() const {
  std::vector<int32_t> entries = lower;
  entries.insert(entries.end(), low.begin(), low.end());
  entries.insert(entries.end(), entry.begin(), entry.end());
  return entries;
}

void HeadCache::Complete(Parts& parts) const {
  // Into the entries of 16 bits, or others as they come; the last ones that do not fill a page go on.
  bool went_on = false;
  const auto fill = [&](std::vector<int32_t>& part, std::vector<int32_t>& next, std::vector<int32_t>& last,
                        size_t spared) {
    const size_t missing = (kP - part.size() % kP) % kP;
    if (missing == 0) return;
    if (next.size() + last.size() < missing + spared) {
      went_on = true;
      const auto rest = part.end() - static_cast<ptrdiff_t>(part.size() % kP);
      last.insert(last.end(), rest, part.end());
      part.erase(rest, part.end());
      return;
    }
    for (std::vector<int32_t>* from : {&next, &last}) {
      const auto some = static_cast<ptrdiff_t>(std::min((kP - part.size() % kP) % kP, from->size()));
      part.insert(part.end(), from->begin(), from->begin() + some);
      from->erase(from->begin(), from->begin() + some);
    }
  };
  fill(parts.lower, parts.low, parts.entry, static_cast<size_t>(lower_.recent));
  std::vector<int32_t> none;
  fill(parts.low, none, parts.entry, 0);
  // What went on belongs among the others by its time.
  if (!went_on) return;
  parts.entries_move_back = parts.entry.size() > kP;
  std::ranges::sort(parts.entry, {}, [this](int32_t entry) {
    return layout_of(entry).positions(page_of(entry))[entry % kP];
  });
}

Status HeadCache::Lower(std::span<const int32_t> entries) {
  PITH_CHECK(lower_.pool != nullptr && !prunes());
  const size_t whole = entries.size() / kP * kP;
  if (whole == 0) return {};
  PITH_CHECK(entries.front() >= num_lower_entries());
  Parts parts;
  for (int32_t i = 0; i < num_lower_entries(); ++i) parts.lower.push_back(i);
  parts.lower.insert(parts.lower.end(), entries.begin(), entries.begin() + static_cast<ptrdiff_t>(whole));
  size_t next = 0;
  for (int32_t i = num_lower_entries(); i < num_entries_; ++i) {
    if (next < whole && entries[next] == i) {
      ++next;
    } else {
      (i < num_low_entries() ? parts.low : parts.entry).push_back(i);
    }
  }
  Complete(parts);
  if (!lower_.layout->is_latent()) return Arrange(parts);
  PITH_ASSIGN_OR_RETURN(const std::vector<std::byte> latents, MakeLatents(entries.first(whole), parts.entry));
  const size_t first = num_lower_, page_bytes = lower_.layout->page_bytes;
  PITH_RETURN_IF_ERROR(Arrange(parts));
  for (size_t i = first; i < num_lower_; ++i) {
    std::memcpy(pages_[i], latents.data() + (i - first) * page_bytes, page_bytes);
  }
  // Entries of the other part stand in the order of time, and those that were before the last latent stay.
  num_references_ = static_cast<int>(std::ranges::lower_bound(parts.entry, entries[whole - 1]) - parts.entry.begin());
  return {};
}

size_t HeadCache::LargestPageBytes() const {
  size_t bytes = layout_->page_bytes;
  for (const PageStore& store : {low_, lower_}) {
    if (store.layout != nullptr) bytes = std::max(bytes, store.layout->page_bytes);
  }
  return bytes;
}

// Pages are written in the order in which they stand. What one of them takes lies in itself, behind it or in pages that
// are given up, so that nothing is written over before it was read; where entries move back, no page of theirs is.
Status HeadCache::Arrange(const Parts& parts) {
  const size_t num_lower = parts.lower.size() / kP, num_low = num_lower + parts.low.size() / kP;
  const std::vector<int32_t> kept = parts.all();
  const int count = static_cast<int>(kept.size());
  const size_t num_pages = PagesFor(count);
  // Sources are read through the table before the change.
  const std::vector<std::byte*> from(pages_.begin(), pages_.end());
  const auto store_of = [&](size_t i) {
    return i < num_lower ? lower_ : i < num_low ? low_ : PageStore{pool_, layout_};
  };
  // Where the i-th page of the new table was in the old one, as a page of the same format; beyond it: nowhere.
  const auto old_of = [&](size_t i) {
    if (i < num_lower) return i < num_lower_ ? i : from.size();
    const bool low = i < num_low;
    const size_t old = low ? i - num_lower + num_lower_ : i - num_low + num_low_;
    return old < (low ? num_low_ : from.size()) ? old : from.size();
  };
  const auto is_writable = [&](size_t i) {  // the page that is there now
    const size_t old = old_of(i);
    if (store_of(i).layout->format.coded()) return false;  // may have another size
    return old < from.size() && !(parts.entries_move_back && i >= num_low) && !store_of(i).pool->IsShared(from[old]);
  };
  const auto sources_of = [&](size_t i, std::vector<Source>& sources) {
    sources.clear();
    for (int at = static_cast<int>(i) * kP; at < std::min(count, static_cast<int>(i + 1) * kP); ++at) {
      const int entry = kept[static_cast<size_t>(at)];
      sources.push_back({&layout_of(entry), from[static_cast<size_t>(entry / kP)], entry % kP});
    }
  };
  std::vector<std::byte*> to(num_pages, nullptr);
  std::vector<uint8_t> stays(from.size(), 0), unchanged(num_pages, 0);
  std::vector<std::vector<std::byte>> coded(num_pages);  // pages whose size is to be known before
  std::vector<PagePool*> pools(num_pages, nullptr);      // of those that are taken
  std::vector<Source> sources;
  PageExchange exchange(account());
  for (size_t i = 0; i < num_pages; ++i) {
    const size_t old = old_of(i);
    sources_of(i, sources);
    unchanged[i] = old < from.size() && IsWholePage(sources) && sources[0].page == from[old];
    if (unchanged[i] != 0 || is_writable(i)) {
      to[i] = from[old];
      stays[old] = 1;
    } else {
      exchange.Take(pools[i] = StageCoded(store_of(i), sources, coded[i]));
    }
  }
  for (size_t i = 0; i < from.size(); ++i) {
    if (stays[i] == 0) exchange.GiveUp(StoreOf(i).pool, from[i]);
  }
  if (!exchange.Settle()) return OutOfBudget("the KV budget has no free page left");
  for (size_t i = 0; i < num_pages; ++i) {
    if (to[i] == nullptr) to[i] = exchange.Fresh(pools[i]);
  }
  // A page is filled beside its place: its old entries may be among its sources.
  std::vector<std::byte> staging(LargestPageBytes());
  std::vector<float> keys;
  for (size_t i = 0; i < num_pages; ++i) {
    const PageLayout& layout = *store_of(i).layout;
    if (unchanged[i] != 0 || layout.is_latent()) continue;  // latents are their maker's
    sources_of(i, sources);
    if (coded[i].empty()) FillPage(layout, staging.data(), sources, keys);
    const std::vector<std::byte>& content = coded[i].empty() ? staging : coded[i];
    std::memcpy(to[i], content.data(), std::min(content.size(), layout.page_bytes));
  }
  pages_.assign(to.begin(), to.end());
  num_lower_ = num_lower, num_low_ = num_low;
  num_entries_ = count;
  exchange.Finish();
  return {};
}

}  // namespace pith
