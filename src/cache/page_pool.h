// Equal pages, cut from reserved address space, reference-counted and owned: each page knows the account that
// pays for it.
//
// Threads: all may be called concurrently but for making and destroying pools; what a page holds belongs to those
// who have references.
// Invariants: an account has charged page_cost() for each page that it owns, and no other kPages. What pools keep
// resident stays within the ledger's limit, but for what Trim() can't give back and kIdleSlackBytes.
#ifndef PITH_CACHE_PAGE_POOL_H_
#define PITH_CACHE_PAGE_POOL_H_

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "base/ledger.h"
#include "base/spin_lock.h"
#include "pith/types.h"

namespace pith {

class PagePool;
class SizedPools;

// What all pools of a ledger keep resident. It outlives them.
class PageArena {
 public:
  explicit PageArena(Ledger* ledger) : ledger_(ledger) {}
  PageArena(const PageArena&) = delete;
  PageArena& operator=(const PageArena&) = delete;

  Ledger* ledger() const { return ledger_; }
  // Of free pages that were touched: the system still holds their memory.
  size_t idle_bytes() const { return idle_.load(std::memory_order_relaxed); }
  // Gives idle bytes back to the system if there are kIdleSlackBytes more than the last time left. O(pages).
  void Trim();

  static constexpr size_t kIdleSlackBytes = size_t{1} << 20;

 private:
  friend class PagePool;
  void Add(PagePool* pool);
  void Remove(PagePool* pool);
  // Before memory is touched for the first time: Trim() if idle and used bytes together pass the limit.
  void MakeRoom() {
    if (ledger_->used_bytes() + idle_bytes() > ledger_->limit_bytes()) Trim();
  }

  Ledger* const ledger_;
  std::atomic<size_t> idle_{0};
  std::atomic<size_t> left_{0};  // idle bytes after the last Trim()
  std::mutex mutex_;             // taken before a pool's lock
  std::vector<PagePool*> pools_;
};

class PagePool {
 public:
  // Reserves address space for all that the ledger could pay, twice (for pages in exchange); memory is touched as
  // pages are used. sizes: of which it is one; null: all pages of its kind are equal. kIo: no address space.
  static Result<std::unique_ptr<PagePool>> Create(PageArena* arena, size_t page_bytes,
                                                  const SizedPools* sizes = nullptr);
  ~PagePool();
  PagePool(const PagePool&) = delete;
  PagePool& operator=(const PagePool&) = delete;

  // A page with one reference that `account` pays for and owns, or null when it can't. Contents are undefined.
  std::byte* Acquire(MemoryAccount* account) {
    return account->TryCharge(MemoryTag::kPages, page_cost()) ? AcquireCharged(account) : nullptr;
  }
  // The same, page_cost() being charged to the account already. Never null.
  std::byte* AcquireCharged(MemoryAccount* account);
  void AddRef(std::byte* page) { InfoOf(page).references.fetch_add(1, std::memory_order_acq_rel); }
  // Drops a reference that `account` holds. The last one frees the page and the bytes of its owner; an owner that
  // drops one before others passes the page to the common account.
  void Release(std::byte* page, MemoryAccount* account);
  // Frees a page that nobody shares, whose owner's charge has been returned already.
  void ReleaseCharged(std::byte* page);
  // Makes another account pay for a page of `from`, whatever its limits. False: it is not of `from`.
  bool Pass(std::byte* page, MemoryAccount* from, MemoryAccount* to);
  bool IsShared(const std::byte* page) const { return num_references(page) > 1; }
  uint32_t num_references(const std::byte* page) const {
    return InfoOf(page).references.load(std::memory_order_acquire);
  }
  // Of a page that nobody shares, or while nobody else releases.
  MemoryAccount* owner(const std::byte* page) const { return InfoOf(page).owner; }

  const SizedPools* sizes() const { return sizes_; }
  size_t page_bytes() const { return page_bytes_; }
  // What a page is charged: itself and its bookkeeping.
  size_t page_cost() const { return page_bytes_ + kTableBytesPerPage; }
  size_t num_used() const { return num_used_.load(std::memory_order_relaxed); }

  // Checks the free list against the reference counts, and adds to `owned` what the owners of pages are charged.
  // O(pages).
  Status Verify(std::map<const MemoryAccount*, size_t>* owned) const;

 private:
  friend class PageArena;
  struct PageInfo {
    std::atomic<uint32_t> references{0};  // 0: free
    uint32_t next_free = 0;               // the page on the free list after this one
    MemoryAccount* owner = nullptr;
    bool touched = false;                 // its memory is resident
  };

 public:
  static constexpr size_t kTableBytesPerPage = sizeof(PageInfo);

 private:
  PagePool(PageArena* arena, size_t page_bytes, size_t num_pages, const SizedPools* sizes);
  size_t IndexOf(const std::byte* page) const { return static_cast<size_t>(page - pages_) / page_bytes_; }
  PageInfo& InfoOf(const std::byte* page) const { return infos_[IndexOf(page)]; }
  // Under lock_.
  void PushFree(size_t index);
  void Free(size_t index);
  // Gives the inside of runs of free pages back to the system. Returns the idle bytes that are left.
  size_t Trim();
  size_t TrimRun(size_t begin, size_t end);

  PageArena* const arena_;
  const size_t page_bytes_;
  const size_t num_pages_;  // that there is address space for
  const SizedPools* const sizes_;
  std::byte* pages_ = nullptr;
  PageInfo* infos_ = nullptr;  // [num_pages_], of which the first num_begun_ are constructed
  size_t num_begun_ = 0;       // pages that were ever used; those after them are free, too
  uint32_t first_free_;        // head of the free list, of begun pages; num_pages_: empty
  std::atomic<size_t> num_used_{0};
  mutable SpinLock lock_;
};

// Pools for pages whose sizes differ: a size is rounded up by a 32nd at most, or to 64 bytes.
class SizedPools {
 public:
  // Up to `most` bytes. kIo: no address space.
  static Result<std::unique_ptr<SizedPools>> Create(PageArena* arena, size_t most);
  SizedPools(const SizedPools&) = delete;
  SizedPools& operator=(const SizedPools&) = delete;

  PagePool* For(size_t bytes) const;
  PagePool* largest() const { return pools_.back().get(); }
  const std::vector<std::unique_ptr<PagePool>>& pools() const { return pools_; }

 private:
  SizedPools() = default;
  std::vector<std::unique_ptr<PagePool>> pools_;  // ascending
};

// Pages given up for pages taken, as one change of the ledger: what one frees pays for the other, and no other
// thread gets the bytes in between. In this order: GiveUp() and Take(), Settle(), Fresh() for each page taken,
// Finish() when the contents of the pages given up are no longer needed.
class PageExchange {
 public:
  // account: that holds the references given up and will own the pages taken.
  explicit PageExchange(MemoryAccount* account) : account_(account) {}

  void GiveUp(PagePool* pool, std::byte* page);
  void Take(const PagePool* pool) { needed_ += pool->page_cost(); }
  // False: the budget does not hold the difference, and nothing has changed.
  [[nodiscard]] bool Settle();
  std::byte* Fresh(PagePool* pool) { return pool->AcquireCharged(account_); }
  void Finish();

 private:
  struct GivenUp {
    PagePool* pool;
    std::byte* page;
    bool refunded;  // nobody shares it: its owner's charge pays for what is taken
    bool passed;    // to the common account
  };
  MemoryAccount* const account_;
  std::vector<GivenUp> given_up_;
  std::vector<Refund> refunds_;  // one for each owner
  size_t needed_ = 0;
};

}  // namespace pith

#endif  // PITH_CACHE_PAGE_POOL_H_
