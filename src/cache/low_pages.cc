// Pages of a head in a smaller format: demotion, and regrouping after an eviction.
#include <algorithm>
#include <cstring>
#include <utility>
#include <vector>

#include "base/check.h"
#include "cache/kv_cache.h"
#include "kernels/group_codec.h"

namespace pith {
namespace {

constexpr int kP = kPageEntries;

size_t PagesFor(int entries) { return static_cast<size_t>((entries + kP - 1) / kP); }

// An entry where it lies.
struct Source {
  const PageLayout* layout;
  const std::byte* page;
  int slot;
};

// All entries of one page, in their places.
bool IsWholePage(std::span<const Source> sources) {
  if (sources.size() != static_cast<size_t>(kP)) return false;
  for (int slot = 0; slot < kP; ++slot) {
    const Source& source = sources[static_cast<size_t>(slot)];
    if (source.page != sources[0].page || source.slot != slot) return false;
  }
  return true;
}

// Writes `sources` to the first slots of a page. keys: scratch, [D][P] floats.
void FillPage(const PageLayout& layout, std::byte* page, std::span<const Source> sources, std::vector<float>& keys) {
  if (IsWholePage(sources) && sources[0].layout->format == layout.format) {
    std::memcpy(page, sources[0].page, layout.page_bytes);
    return;
  }
  if (!layout.format.whole_pages()) {
    for (size_t i = 0; i < sources.size(); ++i) {
      kernels::ConvertEntry(layout, page, static_cast<int>(i), *sources[i].layout, sources[i].page, sources[i].slot);
    }
    return;
  }
  keys.resize(static_cast<size_t>(layout.key_dim) * kP);
  for (size_t i = 0; i < sources.size(); ++i) {
    kernels::ReadKey(*sources[i].layout, sources[i].page, sources[i].slot, keys.data() + i, kP);
    kernels::CopyValueAndState(layout, page, static_cast<int>(i), *sources[i].layout, sources[i].page, sources[i].slot);
  }
  for (int d = 0; d < layout.key_dim; ++d) {
    kernels::WriteKeyGroup(layout, page, d, keys.data() + static_cast<size_t>(d) * kP, kernels::ScaleGrid::kNested);
  }
}

}  // namespace

void HeadCache::OfferLow(PageStore low, PageExchange* exchange) const {
  if (low.pool == low_.pool) return;
  for (size_t i = 0; i < num_low_; ++i) {
    exchange->GiveUp(low_.pool, pages_[i]);
    exchange->Take(low.pool);
  }
}

void HeadCache::ChangeLow(PageStore low, PageExchange* exchange) {
  if (low.pool == low_.pool) return;
  // Pages are encoded from 16 bits.
  const bool wide = BitsOf(layout_->format.key) == 16 && BitsOf(layout_->format.value) == 16;
  const PageLayout between = PageLayout::Make(wide ? layout_->format : PageFormat(), layout_->key_dim,
                                              layout_->value_dim, layout_->num_columns);
  std::vector<std::byte> staging(num_low_ > 0 ? between.page_bytes : 0);
  for (size_t i = 0; i < num_low_; ++i) {
    for (int slot = 0; slot < kP; ++slot) {
      kernels::ConvertEntry(between, staging.data(), slot, *low_.layout, pages_[i], slot);
    }
    pages_[i] = exchange->Fresh(low.pool);
    kernels::ConvertPage(between, staging.data(), *low.layout, pages_[i]);
  }
  const bool as_entries = low.pool == pool_;
  low_ = as_entries ? PageStore() : low;
  if (as_entries) num_low_ = 0;
}

int HeadCache::Describe(kernels::Segment* segments) const {
  int count = 0;
  if (num_low_ > 0) segments[count++] = {low_.layout, pages_.data(), num_low_entries()};
  segments[count++] = {layout_, pages_.data() + num_low_, num_entries_ - num_low_entries()};
  return count;
}

double HeadCache::content_bytes() const {
  const double high = (num_entries_ - num_low_entries()) * layout_->entry_bytes();
  return high + (num_low_ > 0 ? num_low_entries() * low_.layout->entry_bytes() : 0);
}

Status HeadCache::Demote(int residual) {
  if (low_.pool == nullptr) return {};
  while (num_low_entries() + kP + residual <= num_entries_) {
    std::byte*& page = pages_[num_low_];
    PageExchange exchange(account());
    exchange.GiveUp(pool_, page);
    exchange.Take(low_.pool);
    if (!exchange.Settle()) return OutOfBudget("the KV budget has no free page left");
    std::byte* low = exchange.Fresh(low_.pool);
    kernels::ConvertPage(*layout_, page, *low_.layout, low);
    page = low;
    ++num_low_;
    exchange.Finish();
  }
  return {};
}

// Keep() from a low page on: num_low pages stay low, whose content changes from first_page on.
Status HeadCache::Regroup(std::span<const int32_t> kept, size_t first_page, size_t num_low) {
  const int count = static_cast<int>(kept.size());
  const size_t num_pages = PagesFor(count);
  // Sources are read through the table before the change.
  const std::vector<std::byte*> from(pages_.begin(), pages_.end());
  std::vector<std::byte*> to(num_pages, nullptr);
  std::vector<std::pair<size_t, PagePool*>> fresh;
  PageExchange exchange(account());
  for (size_t i = 0; i < num_pages; ++i) {
    const bool low = i < num_low;
    const size_t old = low ? i : i - num_low + num_low_;
    PagePool* pool = low ? low_.pool : pool_;
    const bool exists = old < from.size();
    const bool writes = i >= first_page;
    if (exists && !(writes && pool->IsShared(from[old]))) {
      to[i] = from[old];
      continue;
    }
    fresh.emplace_back(i, pool);
    exchange.Take(pool);
  }
  for (size_t i = 0; i < from.size(); ++i) {
    const size_t now = i < num_low_ ? i : i - num_low_ + num_low;
    const bool stays = now < num_pages && (i < num_low_) == (now < num_low) && to[now] == from[i];
    if (!stays) exchange.GiveUp(StoreOf(i).pool, from[i]);
  }
  if (!exchange.Settle()) return OutOfBudget("the KV budget has no free page left");
  for (const auto& [i, pool] : fresh) to[i] = exchange.Fresh(pool);
  // A page is filled beside its place: its old entries may be among its sources.
  std::vector<std::byte> staging(std::max(layout_->page_bytes, low_.layout->page_bytes));
  std::vector<float> keys;
  std::vector<Source> sources;
  for (size_t i = first_page; i < num_pages; ++i) {
    const PageLayout& layout = i < num_low ? *low_.layout : *layout_;
    sources.clear();
    for (int at = static_cast<int>(i) * kP; at < std::min(count, static_cast<int>(i + 1) * kP); ++at) {
      const int entry = kept[static_cast<size_t>(at)];
      const auto page = static_cast<size_t>(entry / kP);
      sources.push_back({StoreOf(page).layout, from[page], entry % kP});
    }
    FillPage(layout, staging.data(), sources, keys);
    std::memcpy(to[i], staging.data(), layout.page_bytes);
  }
  pages_.assign(to.begin(), to.end());
  num_low_ = num_low;
  num_entries_ = count;
  exchange.Finish();
  return {};
}

}  // namespace pith
