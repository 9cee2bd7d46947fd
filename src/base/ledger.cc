#include "base/ledger.h"

#include <algorithm>
#include <mutex>

#include "base/check.h"

namespace pith {
namespace {

constexpr auto kRelaxed = std::memory_order_relaxed;

// All writers hold the ledger's lock: the atomics are for those who only read.
void Increase(std::atomic<size_t>& number, size_t by) { number.store(number.load(kRelaxed) + by, kRelaxed); }
void Decrease(std::atomic<size_t>& number, size_t by) { number.store(number.load(kRelaxed) - by, kRelaxed); }

}  // namespace

const char* MemoryTagName(MemoryTag tag) {
  constexpr const char* kNames[kNumMemoryTags] = {"block", "pages", "tables", "recurrent", "queries", "tokens"};
  return kNames[static_cast<size_t>(tag)];
}

std::unique_ptr<MemoryAccount> MemoryAccount::Open(Ledger* ledger, size_t floor_bytes, size_t ceiling_bytes) {
  std::unique_ptr<MemoryAccount> account(new MemoryAccount(ledger, 0, 0));
  if (!account->SetLimits(floor_bytes, ceiling_bytes)) return nullptr;
  return account;
}

MemoryAccount::~MemoryAccount() {
  if (this == ledger_->common()) return;  // ends with the ledger: nobody asks any more
  PITH_CHECK(used_bytes() == 0);
  const std::lock_guard<SpinLock> guard(ledger_->lock_);
  Decrease(ledger_->committed_, committed_bytes());
}

size_t MemoryAccount::committed_bytes() const { return std::max(floor_bytes(), used_bytes()); }

void MemoryAccount::Add(MemoryTag tag, size_t bytes) {
  const size_t before = committed_bytes();
  Increase(used_, bytes);
  Increase(by_tag_[static_cast<size_t>(tag)], bytes);
  Increase(ledger_->committed_, committed_bytes() - before);
  Increase(ledger_->used_, bytes);
  Increase(ledger_->by_tag_[static_cast<size_t>(tag)], bytes);
}

void MemoryAccount::Subtract(MemoryTag tag, size_t bytes) {
  PITH_DCHECK(used_bytes(tag) >= bytes);
  const size_t before = committed_bytes();
  Decrease(used_, bytes);
  Decrease(by_tag_[static_cast<size_t>(tag)], bytes);
  Decrease(ledger_->committed_, before - committed_bytes());
  Decrease(ledger_->used_, bytes);
  Decrease(ledger_->by_tag_[static_cast<size_t>(tag)], bytes);
}

bool MemoryAccount::Fits(size_t bytes) const {
  const size_t used = used_bytes(), ceiling = ceiling_bytes(), floor = floor_bytes();
  if (used > ceiling || bytes > ceiling - used || bytes > ledger_->limit_ - ledger_->used_bytes()) return false;
  const size_t ready = floor > used ? floor - used : 0;
  return bytes <= ready || bytes - ready <= ledger_->uncommitted_bytes();
}

bool MemoryAccount::TryCharge(MemoryTag tag, size_t bytes) {
  const std::lock_guard<SpinLock> guard(ledger_->lock_);
  if (!Fits(bytes)) return false;
  Add(tag, bytes);
  ledger_->peak_.store(std::max(ledger_->peak_bytes(), ledger_->used_bytes()), kRelaxed);
  return true;
}

void MemoryAccount::Release(MemoryTag tag, size_t bytes) {
  const std::lock_guard<SpinLock> guard(ledger_->lock_);
  Subtract(tag, bytes);
}

bool MemoryAccount::TryExchange(MemoryTag tag, std::span<const Refund> refunds, size_t bytes) {
  const std::lock_guard<SpinLock> guard(ledger_->lock_);
  const size_t before = used_bytes();
  for (const Refund& refund : refunds) refund.account->Subtract(tag, refund.bytes);
  if (used_bytes() + bytes > before && !Fits(bytes)) {
    for (const Refund& refund : refunds) refund.account->Add(tag, refund.bytes);
    return false;
  }
  Add(tag, bytes);
  ledger_->peak_.store(std::max(ledger_->peak_bytes(), ledger_->used_bytes()), kRelaxed);
  return true;
}

void MemoryAccount::Pass(MemoryTag tag, size_t bytes, MemoryAccount* to) {
  if (to == this) return;
  const std::lock_guard<SpinLock> guard(ledger_->lock_);
  Subtract(tag, bytes);
  to->Add(tag, bytes);
}

bool MemoryAccount::SetLimits(size_t floor_bytes, size_t ceiling_bytes) {
  if (floor_bytes > ceiling_bytes) return false;
  const std::lock_guard<SpinLock> guard(ledger_->lock_);
  const size_t before = committed_bytes(), after = std::max(floor_bytes, used_bytes());
  if (after > before && after - before > ledger_->uncommitted_bytes()) return false;
  floor_.store(floor_bytes, kRelaxed);
  ceiling_.store(ceiling_bytes, kRelaxed);
  ledger_->committed_.store(ledger_->committed_.load(kRelaxed) - before + after, kRelaxed);
  return true;
}

size_t MemoryAccount::available_bytes() const {
  const size_t used = used_bytes(), floor = floor_bytes(), ceiling = ceiling_bytes(), all = ledger_->used_bytes();
  const size_t ready = floor > used ? floor - used : 0;
  const size_t below = ceiling > used ? ceiling - used : 0, left = all < ledger_->limit_ ? ledger_->limit_ - all : 0;
  return std::min({below, ready + ledger_->uncommitted_bytes(), left});
}

}  // namespace pith
