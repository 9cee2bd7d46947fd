// Equal pages, cut from one arena, reference-counted.
//
// Threads: Acquire, AddRef and Release may be called concurrently; what a page
// holds belongs to its owners.
// Invariant: num_used() pages are charged to the ledger, no other.
#ifndef PITH_CACHE_PAGE_POOL_H_
#define PITH_CACHE_PAGE_POOL_H_

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>

#include "base/ledger.h"
#include "pith/types.h"

namespace pith {

class PagePool {
 public:
  // Reserves address space for all pages now; memory is touched as pages are used.
  // Bookkeeping (kTableBytesPerPage each) is charged to the ledger at once.
  // kOutOfBudget: the ledger holds no such bookkeeping. kIo: no address space.
  static Result<std::unique_ptr<PagePool>> Create(Ledger* ledger, size_t page_bytes, size_t num_pages);
  ~PagePool();
  PagePool(const PagePool&) = delete;
  PagePool& operator=(const PagePool&) = delete;

  // A page with one reference, or null when none is left. Contents are undefined.
  std::byte* Acquire();
  void AddRef(std::byte* page);
  void Release(std::byte* page);
  bool IsShared(const std::byte* page) const {
    return references_[IndexOf(page)].load(std::memory_order_acquire) > 1;
  }

  size_t page_bytes() const { return page_bytes_; }
  size_t num_pages() const { return num_pages_; }
  size_t num_used() const { return num_used_.load(std::memory_order_relaxed); }
  size_t num_free() const { return num_pages_ - num_used(); }

  // Checks the free list against the reference counts. O(pages).
  Status Verify() const;

  static constexpr size_t kTableBytesPerPage = sizeof(std::atomic<uint32_t>) + sizeof(uint32_t);

 private:
  PagePool(Ledger* ledger, size_t page_bytes, size_t num_pages);
  size_t IndexOf(const std::byte* page) const { return static_cast<size_t>(page - arena_) / page_bytes_; }
  void Lock() const;
  void Unlock() const { lock_.clear(std::memory_order_release); }

  Ledger* const ledger_;
  const size_t page_bytes_;
  const size_t num_pages_;
  std::byte* arena_ = nullptr;
  std::unique_ptr<std::atomic<uint32_t>[]> references_;  // [num_pages]
  std::unique_ptr<uint32_t[]> free_;                     // stack of free page indices
  std::atomic<size_t> num_used_{0};
  mutable std::atomic_flag lock_ = ATOMIC_FLAG_INIT;
};

}  // namespace pith

#endif  // PITH_CACHE_PAGE_POOL_H_
