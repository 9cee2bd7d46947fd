#include "cache/page_pool.h"

#include <sys/mman.h>

#include <string>
#include <thread>
#include <vector>

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

PagePool::PagePool(Ledger* ledger, size_t page_bytes, size_t num_pages)
    : ledger_(ledger), page_bytes_(page_bytes), num_pages_(num_pages) {}

Result<std::unique_ptr<PagePool>> PagePool::Create(Ledger* ledger, size_t page_bytes, size_t num_pages) {
  PITH_CHECK(page_bytes > 0 && page_bytes % 64 == 0);
  if (num_pages == 0) return OutOfBudget("the KV budget holds no page");
  if (!ledger->TryCharge(MemoryTag::kTables, num_pages * kTableBytesPerPage)) {
    return OutOfBudget("the KV budget does not hold the page tables");
  }
  std::unique_ptr<PagePool> pool(new PagePool(ledger, page_bytes, num_pages));
  void* arena = mmap(nullptr, page_bytes * num_pages, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                     -1, 0);
  if (arena == MAP_FAILED) return IoError("no address space for a KV arena of " + std::to_string(page_bytes * num_pages) + " bytes");
  PreferHugePages(arena, page_bytes * num_pages);
  pool->arena_ = static_cast<std::byte*>(arena);
  pool->references_ = std::make_unique<std::atomic<uint32_t>[]>(num_pages);
  pool->free_ = std::make_unique<uint32_t[]>(num_pages);
  // Low pages are handed out first, so that the touched part of the arena stays compact.
  for (size_t i = 0; i < num_pages; ++i) pool->free_[i] = static_cast<uint32_t>(num_pages - 1 - i);
  PITH_POISON(pool->arena_, page_bytes * num_pages);
  return pool;
}

PagePool::~PagePool() {
  ledger_->Release(MemoryTag::kPages, num_used() * page_bytes_);
  ledger_->Release(MemoryTag::kTables, num_pages_ * kTableBytesPerPage);
  if (arena_ != nullptr) {
    PITH_UNPOISON(arena_, page_bytes_ * num_pages_);
    munmap(arena_, page_bytes_ * num_pages_);
  }
}

void PagePool::Lock() const {
  while (lock_.test_and_set(std::memory_order_acquire)) std::this_thread::yield();
}

std::byte* PagePool::Acquire() {
  Lock();
  const size_t used = num_used();
  if (used == num_pages_ || !ledger_->TryCharge(MemoryTag::kPages, page_bytes_)) {
    Unlock();
    return nullptr;
  }
  const uint32_t index = free_[num_pages_ - 1 - used];
  num_used_.store(used + 1, std::memory_order_relaxed);
  references_[index].store(1, std::memory_order_release);
  Unlock();
  std::byte* page = arena_ + index * page_bytes_;
  PITH_UNPOISON(page, page_bytes_);
#ifndef NDEBUG
  // NaN in every f16 and f32: a read of an entry that nobody wrote shows.
  for (size_t i = 0; i < page_bytes_; ++i) page[i] = std::byte{0xff};
#endif
  return page;
}

void PagePool::AddRef(std::byte* page) { references_[IndexOf(page)].fetch_add(1, std::memory_order_acq_rel); }

void PagePool::Release(std::byte* page) {
  const size_t index = IndexOf(page);
  const uint32_t before = references_[index].fetch_sub(1, std::memory_order_acq_rel);
  PITH_CHECK(before > 0);
  if (before > 1) return;
  PITH_POISON(page, page_bytes_);
  Lock();
  const size_t used = num_used() - 1;
  free_[num_pages_ - 1 - used] = static_cast<uint32_t>(index);
  num_used_.store(used, std::memory_order_relaxed);
  Unlock();
  ledger_->Release(MemoryTag::kPages, page_bytes_);
}

Status PagePool::Verify() const {
  std::vector<bool> is_free(num_pages_, false);
  for (size_t i = 0; i < num_free(); ++i) {
    const uint32_t index = free_[i];
    if (index >= num_pages_ || is_free[index]) return Corrupt("page pool: a page is twice in the free list");
    if (references_[index].load() != 0) return Corrupt("page pool: a free page has references");
    is_free[index] = true;
  }
  for (size_t i = 0; i < num_pages_; ++i) {
    if (!is_free[i] && references_[i].load() == 0) return Corrupt("page pool: a page is lost");
  }
  if (ledger_->used_bytes(MemoryTag::kPages) < num_used() * page_bytes_) return Corrupt("page pool: pages are not charged");
  return {};
}

}  // namespace pith
