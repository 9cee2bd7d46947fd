#include "cache/page_pool.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>
#include <new>
#include <string>

#include "base/check.h"
#include "base/huge_pages.h"

#if defined(__SANITIZE_ADDRESS__)
#define PITH_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define PITH_ASAN 1
#endif
#endif
#ifdef PITH_ASAN
#include <sanitizer/asan_interface.h>
#define PITH_POISON(pointer, bytes) __asan_poison_memory_region(pointer, bytes)
#define PITH_UNPOISON(pointer, bytes) __asan_unpoison_memory_region(pointer, bytes)
#else
#define PITH_POISON(pointer, bytes) ((void)0)
#define PITH_UNPOISON(pointer, bytes) ((void)0)
#endif

namespace pith {
namespace {

// Each border between the two kinds of pages is a mapping of its own, of which a process may have some 65,000.
constexpr size_t kMostAdvisedBytes = size_t{16} << 30;

// Null: the system has none.
std::byte* ReserveAddresses(size_t bytes) {
  void* at = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  return at == MAP_FAILED ? nullptr : static_cast<std::byte*>(at);
}

// [from, to) of the addresses behind `base` were given back: huge pages of which that is a part are huge no more, until
// all of them is. The last one, where the used addresses grow (`end`), stays.
void AdviseAround(std::byte* base, size_t from, size_t to, size_t end) {
  if (end > kMostAdvisedBytes) return;
  const size_t offset = reinterpret_cast<uintptr_t>(base) % kHugePageBytes;
  const auto down = [offset](size_t at) {
    const size_t over = (at + offset) % kHugePageBytes;
    return at - std::min(at, over);
  };
  const auto up = [&](size_t at) { return down(at + kHugePageBytes - 1); };
  const size_t first = down(from) == from ? from : up(from), last = down(to);
  if (first < last) PreferHugePages(base + first, last - first);
  if (down(from) < from) AvoidHugePages(base + down(from), first - down(from));
  if (last < to && last >= first && to < end) AvoidHugePages(base + last, up(to) - last);
}

}  // namespace

void PageArena::Add(PagePool* pool) {
  const std::lock_guard<std::mutex> guard(mutex_);
  pools_.push_back(pool);
}

void PageArena::Remove(PagePool* pool) {
  const std::lock_guard<std::mutex> guard(mutex_);
  pools_.erase(std::find(pools_.begin(), pools_.end(), pool));
}

void PageArena::Trim() {
  const auto is_worth_it = [this] { return idle_bytes() > left_.load(std::memory_order_relaxed) + kIdleSlackBytes; };
  if (!is_worth_it()) return;
  const std::lock_guard<std::mutex> guard(mutex_);
  if (!is_worth_it()) return;  // another thread was faster
  size_t left = 0;
  for (PagePool* pool : pools_) left += pool->Trim();
  left_.store(left, std::memory_order_relaxed);
}

PagePool::PagePool(PageArena* arena, size_t page_bytes, size_t num_pages, const SizedPools* sizes)
    : arena_(arena),
      page_bytes_(page_bytes),
      num_pages_(num_pages),
      sizes_(sizes),
      first_free_(static_cast<uint32_t>(num_pages)) {
  arena_->Add(this);
}

Result<std::unique_ptr<PagePool>> PagePool::Create(PageArena* arena, size_t page_bytes, const SizedPools* sizes) {
  PITH_CHECK(page_bytes > 0 && page_bytes % 64 == 0);
  const size_t payable = arena->ledger()->limit_bytes() / (page_bytes + kTableBytesPerPage) + 1;
  const size_t num_pages = 2 * std::min<size_t>(payable, std::numeric_limits<uint32_t>::max() / 4);
  std::unique_ptr<PagePool> pool(new PagePool(arena, page_bytes, num_pages, sizes));
  pool->pages_ = ReserveAddresses(page_bytes * num_pages);
  pool->infos_ = reinterpret_cast<PageInfo*>(ReserveAddresses(num_pages * sizeof(PageInfo)));
  if (pool->pages_ == nullptr || pool->infos_ == nullptr) {
    return IoError("no address space for a KV arena of " + std::to_string(page_bytes * num_pages) + " bytes");
  }
  // Of many pools most hold few pages.
  if (sizes == nullptr) PreferHugePages(pool->pages_, page_bytes * num_pages);
  PITH_POISON(pool->pages_, page_bytes);
  return pool;
}

PagePool::~PagePool() {
  PITH_CHECK(num_used() == 0);
  arena_->Remove(this);
  for (size_t i = 0; i < num_begun_; ++i) {
    if (infos_[i].touched) arena_->idle_.fetch_sub(page_bytes_, std::memory_order_relaxed);
  }
  if (pages_ != nullptr) {
    PITH_UNPOISON(pages_, page_bytes_ * std::min(num_begun_ + 1, num_pages_));
    munmap(pages_, page_bytes_ * num_pages_);
  }
  if (infos_ != nullptr) munmap(infos_, num_pages_ * sizeof(PageInfo));
}

std::byte* PagePool::AcquireCharged(MemoryAccount* account) {
  bool is_touched = true;
  std::byte* page = nullptr;
  {
    const std::lock_guard<SpinLock> guard(lock_);
    size_t index = first_free_;
    if (index < num_pages_) {
      first_free_ = infos_[index].next_free;
    } else {
      // Low pages are begun first, so that the touched part of the addresses stays compact.
      PITH_CHECK(num_begun_ < num_pages_);
      index = num_begun_++;
      new (&infos_[index]) PageInfo();
      if (num_begun_ < num_pages_) PITH_POISON(pages_ + num_begun_ * page_bytes_, page_bytes_);
    }
    PageInfo& info = infos_[index];
    is_touched = info.touched;
    info.touched = true;
    info.owner = account;
    info.references.store(1, std::memory_order_release);
    num_used_.fetch_add(1, std::memory_order_relaxed);
    page = pages_ + index * page_bytes_;
  }
  if (is_touched) {
    arena_->idle_.fetch_sub(page_bytes_, std::memory_order_relaxed);
  } else {
    arena_->MakeRoom();
  }
  PITH_UNPOISON(page, page_bytes_);
#ifndef NDEBUG
  // NaN in every f16 and f32: a read of an entry that nobody wrote shows.
  std::memset(page, 0xff, page_bytes_);
#endif
  return page;
}

void PagePool::PushFree(size_t index) {
  infos_[index].next_free = first_free_;
  first_free_ = static_cast<uint32_t>(index);
}

void PagePool::Free(size_t index) {
  PITH_POISON(pages_ + index * page_bytes_, page_bytes_);
  infos_[index].owner = nullptr;
  PushFree(index);
  num_used_.fetch_sub(1, std::memory_order_relaxed);
  arena_->idle_.fetch_add(page_bytes_, std::memory_order_relaxed);
}

void PagePool::Release(std::byte* page, MemoryAccount* account) {
  const std::lock_guard<SpinLock> guard(lock_);
  PageInfo& info = InfoOf(page);
  const uint32_t before = info.references.fetch_sub(1, std::memory_order_acq_rel);
  PITH_CHECK(before > 0);
  if (before == 1) {
    // The bytes first: a page that can be had must also be payable.
    info.owner->Release(MemoryTag::kPages, page_cost());
    Free(IndexOf(page));
  } else if (info.owner == account) {
    info.owner = account->ledger()->common();
    account->Pass(MemoryTag::kPages, page_cost(), info.owner);
  }
}

bool PagePool::Pass(std::byte* page, MemoryAccount* from, MemoryAccount* to) {
  const std::lock_guard<SpinLock> guard(lock_);
  PageInfo& info = InfoOf(page);
  if (info.owner != from) return false;
  info.owner = to;
  from->Pass(MemoryTag::kPages, page_cost(), to);
  return true;
}

void PagePool::ReleaseCharged(std::byte* page) {
  const std::lock_guard<SpinLock> guard(lock_);
  const uint32_t before = InfoOf(page).references.fetch_sub(1, std::memory_order_acq_rel);
  PITH_CHECK(before == 1);
  Free(IndexOf(page));
}

// Of free pages begin .. end - 1.
size_t PagePool::TrimRun(size_t begin, size_t end) {
  const auto system_page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  const size_t from = (begin * page_bytes_ + system_page - 1) / system_page * system_page;
  const size_t to = end * page_bytes_ / system_page * system_page;
  if (from < to) {
    madvise(pages_ + from, to - from, MADV_DONTNEED);
    AdviseAround(pages_, from, to, num_begun_ * page_bytes_ / system_page * system_page);
  }
  size_t left = 0;
  for (size_t i = begin; i < end; ++i) {
    const size_t first = std::max(i * page_bytes_, from), last = std::min((i + 1) * page_bytes_, to);
    // What the page shares with its neighbours stays; it counts for those that are mostly there.
    if (first < last && 2 * (last - first) >= page_bytes_) infos_[i].touched = false;
    if (infos_[i].touched) left += page_bytes_;
  }
  return left;
}

size_t PagePool::Trim() {
  const std::lock_guard<SpinLock> guard(lock_);
  size_t before = 0, left = 0;
  for (size_t i = 0; i < num_begun_;) {
    size_t end = i;
    bool any_touched = false;
    for (; end < num_begun_ && infos_[end].references.load(std::memory_order_relaxed) == 0; ++end) {
      any_touched |= infos_[end].touched;
      if (infos_[end].touched) before += page_bytes_;
    }
    if (any_touched) left += TrimRun(i, end);
    i = end + 1;
  }
  // Resident pages are taken first, then those at the front: huge pages that fault in again hold as many as they can.
  first_free_ = static_cast<uint32_t>(num_pages_);
  for (const bool touched : {false, true}) {
    for (size_t i = num_begun_; i-- > 0;) {
      const PageInfo& info = infos_[i];
      if (info.references.load(std::memory_order_relaxed) == 0 && info.touched == touched) PushFree(i);
    }
  }
  arena_->idle_.fetch_sub(before - left, std::memory_order_relaxed);
  return left;
}

Status PagePool::Verify(std::map<const MemoryAccount*, size_t>* owned) const {
  const std::lock_guard<SpinLock> guard(lock_);
  std::vector<bool> is_free(num_begun_, false);
  size_t num_free = 0;
  for (size_t i = first_free_; i < num_pages_; i = infos_[i].next_free) {
    if (i >= num_begun_ || is_free[i]) return Corrupt("page pool: a page is twice in the free list");
    if (infos_[i].references.load() != 0) return Corrupt("page pool: a free page has references");
    is_free[i] = true;
    ++num_free;
  }
  if (num_free + num_used() != num_begun_) return Corrupt("page pool: the number of pages in use is wrong");
  for (size_t i = 0; i < num_begun_; ++i) {
    if (is_free[i]) continue;
    if (infos_[i].references.load() == 0) return Corrupt("page pool: a page is lost");
    (*owned)[infos_[i].owner] += page_cost();
  }
  return {};
}

Result<std::unique_ptr<SizedPools>> SizedPools::Create(PageArena* arena, size_t most) {
  constexpr size_t kLine = 64;
  std::unique_ptr<SizedPools> made(new SizedPools());
  for (size_t bytes = 4 * kLine; made->pools_.empty() || made->largest()->page_bytes() < most;
       bytes += std::max(kLine, std::bit_floor(bytes) / 32)) {
    PITH_ASSIGN_OR_RETURN(std::unique_ptr<PagePool> pool, PagePool::Create(arena, bytes, made.get()));
    made->pools_.push_back(std::move(pool));
  }
  return made;
}

PagePool* SizedPools::For(size_t bytes) const {
  const auto pool = std::ranges::lower_bound(pools_, bytes, {}, &PagePool::page_bytes);
  PITH_CHECK(pool != pools_.end());
  return pool->get();
}

void PageExchange::GiveUp(PagePool* pool, std::byte* page) {
  const bool refunded = !pool->IsShared(page);
  given_up_.push_back({pool, page, refunded, false});
  if (!refunded) return;
  MemoryAccount* owner = pool->owner(page);
  const auto same = [owner](const Refund& refund) { return refund.account == owner; };
  const auto refund = std::find_if(refunds_.begin(), refunds_.end(), same);
  if (refund != refunds_.end()) {
    refund->bytes += pool->page_cost();
  } else {
    refunds_.push_back({owner, pool->page_cost()});
  }
}

bool PageExchange::Settle() {
  // Shared pages that this account pays for stay with the others, and it need not pay for them and their copies.
  MemoryAccount* common = account_->ledger()->common();
  for (GivenUp& given : given_up_) given.passed = !given.refunded && given.pool->Pass(given.page, account_, common);
  if (account_->TryExchange(MemoryTag::kPages, refunds_, needed_)) return true;
  for (const GivenUp& given : given_up_) {
    if (given.passed) given.pool->Pass(given.page, common, account_);
  }
  return false;
}

void PageExchange::Finish() {
  for (const GivenUp& given : given_up_) {
    if (given.refunded) {
      given.pool->ReleaseCharged(given.page);
    } else {
      given.pool->Release(given.page, account_);
    }
  }
}

}  // namespace pith
