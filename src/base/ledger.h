// Every byte of the KV budget, by purpose and by owner, under one hard limit.
//
//   ledger ── common account: what belongs to no sequence
//          ├─ account of a sequence: at least its floor, at most its ceiling
//          └─ ...
//
// Threads: any. Changes take one lock for a few instructions, so that what fits is never refused because
// another thread is in the middle of something; numbers are read without it.
// Invariants: used <= limit, always. used + the sum over accounts of max(0, floor - used) <= limit, so that a
// floor can be had at any time; only Pass() can break this one, until what was passed is released.
#ifndef PITH_BASE_LEDGER_H_
#define PITH_BASE_LEDGER_H_

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <span>
#include <utility>
#include <vector>

#include "base/spin_lock.h"

namespace pith {

enum class MemoryTag : uint8_t {
  kBlock,      // libllama's own KV memory: one block
  kPages,      // pages in use, with their bookkeeping: keys, values, positions, columns
  kTables,     // page tables, per-head structures
  kRecurrent,  // recurrent state of hybrid models, held by libllama
  kQueries,    // rings of recent queries, moments of queries
  kTokens,     // token lists, logits that are kept
  kNumTags,
};

inline constexpr size_t kNumMemoryTags = static_cast<size_t>(MemoryTag::kNumTags);

// "pages", "tables", ...
const char* MemoryTagName(MemoryTag tag);

class Ledger;
class MemoryAccount;

// Bytes that an account gives back in an exchange.
struct Refund {
  MemoryAccount* account = nullptr;
  size_t bytes = 0;
};

// One sequence's share of a ledger.
class MemoryAccount {
 public:
  // Null: floor > ceiling, or the floor cannot be guaranteed beside what is used and promised already.
  static std::unique_ptr<MemoryAccount> Open(Ledger* ledger, size_t floor_bytes, size_t ceiling_bytes);
  // All that was charged has been released or passed, but to the common account.
  ~MemoryAccount();
  MemoryAccount(const MemoryAccount&) = delete;
  MemoryAccount& operator=(const MemoryAccount&) = delete;

  // False, and nothing charged, when the ceiling would be passed, or the bytes go beyond the floor and the ledger has
  // no uncommitted ones left.
  [[nodiscard]] bool TryCharge(MemoryTag tag, size_t bytes);
  void Release(MemoryTag tag, size_t bytes);
  // Releases the refunds, of any accounts of this ledger, and charges `bytes` here in one step, in which nobody else
  // gets the bytes. A change that leaves this account with no more than before is always possible. False: nothing
  // has changed.
  [[nodiscard]] bool TryExchange(MemoryTag tag, std::span<const Refund> refunds, size_t bytes);
  // Charged bytes go over to another account, whatever its limits: of memory that outlives its owner.
  void Pass(MemoryTag tag, size_t bytes, MemoryAccount* to);
  // False, and unchanged, as for Open(). A ceiling below what is used stops further charges.
  [[nodiscard]] bool SetLimits(size_t floor_bytes, size_t ceiling_bytes);

  Ledger* ledger() const { return ledger_; }
  size_t used_bytes() const { return used_.load(std::memory_order_relaxed); }
  size_t used_bytes(MemoryTag tag) const { return by_tag_[static_cast<size_t>(tag)].load(std::memory_order_relaxed); }
  size_t floor_bytes() const { return floor_.load(std::memory_order_relaxed); }
  size_t ceiling_bytes() const { return ceiling_.load(std::memory_order_relaxed); }
  // The most that TryCharge() would grant now.
  size_t available_bytes() const;

 private:
  friend class Ledger;
  MemoryAccount(Ledger* ledger, size_t floor_bytes, size_t ceiling_bytes)
      : ledger_(ledger), floor_(floor_bytes), ceiling_(ceiling_bytes) {}
  // Under the ledger's lock.
  void Add(MemoryTag tag, size_t bytes);
  void Subtract(MemoryTag tag, size_t bytes);
  // What the ledger holds ready for this account: its floor, or what it uses.
  size_t committed_bytes() const;
  bool Fits(size_t bytes) const;

  Ledger* const ledger_;
  // Written under the ledger's lock.
  std::atomic<size_t> used_{0};
  std::atomic<size_t> floor_;
  std::atomic<size_t> ceiling_;
  std::array<std::atomic<size_t>, kNumMemoryTags> by_tag_{};
};

class Ledger {
 public:
  explicit Ledger(size_t limit_bytes) : limit_(limit_bytes), common_(this, 0, limit_bytes) {}
  Ledger(const Ledger&) = delete;
  Ledger& operator=(const Ledger&) = delete;

  // Of what belongs to no sequence: floor 0, ceiling the limit.
  MemoryAccount* common() { return &common_; }
  // The common account's.
  [[nodiscard]] bool TryCharge(MemoryTag tag, size_t bytes) { return common_.TryCharge(tag, bytes); }
  void Release(MemoryTag tag, size_t bytes) { common_.Release(tag, bytes); }

  // Of all accounts; what floors hold ready is not used.
  size_t limit_bytes() const { return limit_; }
  size_t used_bytes() const { return used_.load(std::memory_order_relaxed); }
  size_t peak_bytes() const { return peak_.load(std::memory_order_relaxed); }
  size_t used_bytes(MemoryTag tag) const { return by_tag_[static_cast<size_t>(tag)].load(std::memory_order_relaxed); }
  // Neither used nor promised to a floor.
  size_t uncommitted_bytes() const {
    const size_t committed = committed_.load(std::memory_order_relaxed);
    return committed < limit_ ? limit_ - committed : 0;
  }

 private:
  friend class MemoryAccount;

  const size_t limit_;
  // Written under lock_.
  std::atomic<size_t> used_{0};
  std::atomic<size_t> committed_{0};  // sum over accounts of max(floor, used)
  std::atomic<size_t> peak_{0};
  std::array<std::atomic<size_t>, kNumMemoryTags> by_tag_{};
  SpinLock lock_;
  MemoryAccount common_;
};

// Bytes of an account, given back at its end.
class HeldBytes {
 public:
  HeldBytes() = default;
  HeldBytes(HeldBytes&& other) noexcept { *this = std::move(other); }
  HeldBytes& operator=(HeldBytes&& other) noexcept {
    std::swap(account_, other.account_);
    std::swap(tag_, other.tag_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  ~HeldBytes() {
    if (bytes_ > 0) account_->Release(tag_, bytes_);
  }
  // False: there are not so many.
  [[nodiscard]] bool Hold(MemoryAccount* account, MemoryTag tag, size_t bytes) {
    if (bytes == bytes_ && account == account_) return true;
    if (bytes < bytes_ && account == account_ && tag == tag_) {
      account_->Release(tag_, bytes_ - bytes);
      bytes_ = bytes;
      return true;
    }
    if (bytes > 0 && !account->TryCharge(tag, bytes)) return false;
    if (bytes_ > 0) account_->Release(tag_, bytes_);
    account_ = account, tag_ = tag, bytes_ = bytes;
    return true;
  }
  size_t bytes() const { return bytes_; }

 private:
  MemoryAccount* account_ = nullptr;
  MemoryTag tag_ = MemoryTag::kTables;
  size_t bytes_ = 0;
};

// A std allocator whose bytes are charged to an account, which must outlive its memory. Throws std::bad_alloc
// when a limit would be passed; callers turn that into kOutOfBudget.
template <typename T>
class LedgerAllocator {
 public:
  using value_type = T;

  explicit LedgerAllocator(MemoryAccount* account, MemoryTag tag = MemoryTag::kTables) : account_(account), tag_(tag) {}
  template <typename U>
  LedgerAllocator(const LedgerAllocator<U>& other) : account_(other.account()), tag_(other.tag()) {}

  T* allocate(size_t count) {
    if (!account_->TryCharge(tag_, count * sizeof(T))) throw std::bad_alloc();
    return static_cast<T*>(::operator new(count * sizeof(T)));
  }
  void deallocate(T* pointer, size_t count) {
    account_->Release(tag_, count * sizeof(T));
    ::operator delete(pointer);
  }

  MemoryAccount* account() const { return account_; }
  MemoryTag tag() const { return tag_; }
  template <typename U>
  bool operator==(const LedgerAllocator<U>& other) const {
    return account_ == other.account() && tag_ == other.tag();
  }

 private:
  MemoryAccount* account_;
  MemoryTag tag_;
};

template <typename T>
using LedgerVector = std::vector<T, LedgerAllocator<T>>;

}  // namespace pith

#endif  // PITH_BASE_LEDGER_H_
