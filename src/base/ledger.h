// Every byte of the KV budget, by purpose, under one hard limit.
//
// Threads: any; counters are atomic.
// Invariant: used() <= limit() at all times; peak() is the largest used().
#ifndef PITH_BASE_LEDGER_H_
#define PITH_BASE_LEDGER_H_

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <new>
#include <vector>

namespace pith {

enum class MemoryTag : uint8_t {
  kBlock,    // libllama's own KV memory: one block
  kPages,    // page arena in use: keys, values, positions, columns
  kTables,   // page tables, reference counts, per-head structures
  kRecurrent,  // recurrent state of hybrid models, held by libllama
  kNumTags,
};

inline constexpr size_t kNumMemoryTags = static_cast<size_t>(MemoryTag::kNumTags);

class Ledger {
 public:
  explicit Ledger(size_t limit_bytes) : limit_(limit_bytes) {}
  Ledger(const Ledger&) = delete;
  Ledger& operator=(const Ledger&) = delete;

  // False, and nothing charged, when the limit would be passed.
  [[nodiscard]] bool TryCharge(MemoryTag tag, size_t bytes) {
    size_t now = used_.load(std::memory_order_relaxed);
    do {
      if (bytes > limit_ - now) return false;
    } while (!used_.compare_exchange_weak(now, now + bytes, std::memory_order_relaxed));
    by_tag_[static_cast<size_t>(tag)].fetch_add(bytes, std::memory_order_relaxed);
    size_t peak = peak_.load(std::memory_order_relaxed);
    while (peak < now + bytes && !peak_.compare_exchange_weak(peak, now + bytes, std::memory_order_relaxed)) {
    }
    return true;
  }

  void Release(MemoryTag tag, size_t bytes) {
    used_.fetch_sub(bytes, std::memory_order_relaxed);
    by_tag_[static_cast<size_t>(tag)].fetch_sub(bytes, std::memory_order_relaxed);
  }

  size_t limit_bytes() const { return limit_; }
  size_t used_bytes() const { return used_.load(std::memory_order_relaxed); }
  size_t peak_bytes() const { return peak_.load(std::memory_order_relaxed); }
  size_t used_bytes(MemoryTag tag) const {
    return by_tag_[static_cast<size_t>(tag)].load(std::memory_order_relaxed);
  }

 private:
  const size_t limit_;
  std::atomic<size_t> used_{0};
  std::atomic<size_t> peak_{0};
  std::array<std::atomic<size_t>, kNumMemoryTags> by_tag_{};
};

// A std allocator whose bytes are charged to a ledger. Throws std::bad_alloc
// when the limit would be passed; callers turn that into kOutOfBudget.
template <typename T>
class LedgerAllocator {
 public:
  using value_type = T;

  explicit LedgerAllocator(Ledger* ledger, MemoryTag tag = MemoryTag::kTables) : ledger_(ledger), tag_(tag) {}
  template <typename U>
  LedgerAllocator(const LedgerAllocator<U>& other) : ledger_(other.ledger()), tag_(other.tag()) {}

  T* allocate(size_t count) {
    if (!ledger_->TryCharge(tag_, count * sizeof(T))) throw std::bad_alloc();
    return static_cast<T*>(::operator new(count * sizeof(T)));
  }
  void deallocate(T* pointer, size_t count) {
    ledger_->Release(tag_, count * sizeof(T));
    ::operator delete(pointer);
  }

  Ledger* ledger() const { return ledger_; }
  MemoryTag tag() const { return tag_; }
  template <typename U>
  bool operator==(const LedgerAllocator<U>& other) const {
    return ledger_ == other.ledger() && tag_ == other.tag();
  }

 private:
  Ledger* ledger_;
  MemoryTag tag_;
};

template <typename T>
using LedgerVector = std::vector<T, LedgerAllocator<T>>;

}  // namespace pith

#endif  // PITH_BASE_LEDGER_H_
