#include "base/ledger.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

namespace pith {
namespace {

TEST(LedgerTest, NeverPassesItsLimit) {
  Ledger ledger(100);
  EXPECT_TRUE(ledger.TryCharge(MemoryTag::kPages, 60));
  EXPECT_FALSE(ledger.TryCharge(MemoryTag::kTables, 41));
  EXPECT_TRUE(ledger.TryCharge(MemoryTag::kTables, 40));
  ledger.Release(MemoryTag::kPages, 60);
  EXPECT_EQ(ledger.used_bytes(), 40u);
  EXPECT_EQ(ledger.used_bytes(MemoryTag::kTables), 40u);
  EXPECT_EQ(ledger.peak_bytes(), 100u);
  ledger.Release(MemoryTag::kTables, 40);
}

TEST(LedgerTest, EveryTagHasAName) {
  for (size_t i = 0; i < kNumMemoryTags; ++i) {
    const std::string name = MemoryTagName(static_cast<MemoryTag>(i));
    EXPECT_FALSE(name.empty());
    for (size_t j = 0; j < i; ++j) EXPECT_NE(name, MemoryTagName(static_cast<MemoryTag>(j)));
  }
}

TEST(MemoryAccountTest, AFloorIsThereWhateverOthersTake) {
  Ledger ledger(100);
  const auto a = MemoryAccount::Open(&ledger, 40, 80);
  ASSERT_NE(a, nullptr);
  EXPECT_EQ(ledger.used_bytes(), 0u) << "what is promised is not used";
  EXPECT_EQ(ledger.uncommitted_bytes(), 60u);
  EXPECT_EQ(MemoryAccount::Open(&ledger, 61, 100), nullptr);
  EXPECT_EQ(MemoryAccount::Open(&ledger, 10, 9), nullptr);
  EXPECT_FALSE(ledger.TryCharge(MemoryTag::kBlock, 61));
  ASSERT_TRUE(ledger.TryCharge(MemoryTag::kBlock, 60));
  EXPECT_EQ(a->available_bytes(), 40u);
  EXPECT_TRUE(a->TryCharge(MemoryTag::kPages, 40));
  EXPECT_FALSE(a->TryCharge(MemoryTag::kPages, 1));
  ledger.Release(MemoryTag::kBlock, 60);
  EXPECT_EQ(a->available_bytes(), 40u);
  EXPECT_FALSE(a->TryCharge(MemoryTag::kPages, 41)) << "beyond the ceiling";
  EXPECT_TRUE(a->TryCharge(MemoryTag::kTokens, 40)) << "lent while others are idle";
  EXPECT_EQ(ledger.uncommitted_bytes(), 20u);
  a->Release(MemoryTag::kPages, 40);
  a->Release(MemoryTag::kTokens, 40);
  EXPECT_EQ(ledger.uncommitted_bytes(), 60u);
}

TEST(MemoryAccountTest, LimitsChangeOrStay) {
  Ledger ledger(100);
  const auto a = MemoryAccount::Open(&ledger, 40, 80), b = MemoryAccount::Open(&ledger, 30, 30);
  ASSERT_TRUE(a->TryCharge(MemoryTag::kPages, 50));
  EXPECT_FALSE(a->SetLimits(71, 100));
  EXPECT_EQ(a->floor_bytes(), 40u);
  EXPECT_EQ(a->ceiling_bytes(), 80u);
  EXPECT_TRUE(a->SetLimits(70, 70));
  EXPECT_EQ(ledger.uncommitted_bytes(), 0u);
  EXPECT_TRUE(a->SetLimits(0, 10));
  EXPECT_EQ(ledger.uncommitted_bytes(), 20u);
  EXPECT_FALSE(a->TryCharge(MemoryTag::kPages, 1)) << "more than the ceiling is used";
  a->Release(MemoryTag::kPages, 45);
  EXPECT_TRUE(a->TryCharge(MemoryTag::kPages, 5));
  a->Release(MemoryTag::kPages, 10);
}

TEST(MemoryAccountTest, AnExchangeIsPaidByItsRefunds) {
  Ledger ledger(100);
  const auto a = MemoryAccount::Open(&ledger, 0, 60), b = MemoryAccount::Open(&ledger, 0, 100);
  ASSERT_TRUE(a->TryCharge(MemoryTag::kPages, 60));
  ASSERT_TRUE(b->TryCharge(MemoryTag::kPages, 40));
  const Refund own = {a.get(), 30}, others = {b.get(), 20};
  EXPECT_FALSE(a->TryExchange(MemoryTag::kPages, {&own, 1}, 31));
  EXPECT_EQ(a->used_bytes(), 60u);
  EXPECT_EQ(ledger.used_bytes(), 100u);
  EXPECT_TRUE(a->TryExchange(MemoryTag::kPages, {&own, 1}, 30)) << "in a full ledger, at the ceiling";
  EXPECT_EQ(a->used_bytes(), 60u);
  EXPECT_FALSE(a->TryExchange(MemoryTag::kPages, {&others, 1}, 20)) << "they would be there, but beyond the ceiling";
  EXPECT_EQ(b->used_bytes(), 40u);
  EXPECT_TRUE(a->SetLimits(0, 80));
  EXPECT_TRUE(a->TryExchange(MemoryTag::kPages, {&others, 1}, 20));
  EXPECT_EQ(a->used_bytes(), 80u);
  EXPECT_EQ(b->used_bytes(), 20u);
  EXPECT_EQ(ledger.peak_bytes(), 100u);
  a->Release(MemoryTag::kPages, 80);
  b->Release(MemoryTag::kPages, 20);
}

// What outlives its owner is never refused, and the limit still holds.
TEST(MemoryAccountTest, PassingMayBreakAFloorButNotTheLimit) {
  Ledger ledger(100);
  const auto a = MemoryAccount::Open(&ledger, 60, 60), b = MemoryAccount::Open(&ledger, 40, 40);
  ASSERT_TRUE(a->TryCharge(MemoryTag::kPages, 60));
  a->Pass(MemoryTag::kPages, 50, ledger.common());
  EXPECT_EQ(ledger.used_bytes(), 60u);
  EXPECT_EQ(ledger.common()->used_bytes(MemoryTag::kPages), 50u);
  EXPECT_EQ(ledger.uncommitted_bytes(), 0u);
  EXPECT_TRUE(b->TryCharge(MemoryTag::kPages, 40));
  EXPECT_EQ(a->available_bytes(), 0u);
  EXPECT_FALSE(a->TryCharge(MemoryTag::kPages, 1));
  ledger.Release(MemoryTag::kPages, 50);
  EXPECT_TRUE(a->TryCharge(MemoryTag::kPages, 50));
  a->Release(MemoryTag::kPages, 60);
  b->Release(MemoryTag::kPages, 40);
}

// Accounts whose floors fill the ledger: none of them may ever be refused within its floor.
TEST(MemoryAccountTest, ConcurrentChargesAreNeverRefusedSpuriously) {
  constexpr size_t kThreads = 4, kFloor = 1000;
  Ledger ledger(kThreads * kFloor);
  std::atomic<int> refused{0};
  // All floors are promised before anybody goes beyond his own.
  std::vector<std::unique_ptr<MemoryAccount>> accounts;
  for (size_t t = 0; t < kThreads; ++t) accounts.push_back(MemoryAccount::Open(&ledger, kFloor, 2 * kFloor));
  std::vector<std::thread> threads;
  for (size_t t = 0; t < kThreads; ++t) {
    ASSERT_NE(accounts[t], nullptr);
    threads.emplace_back([&, t] {
      MemoryAccount* const account = accounts[t].get();
      std::mt19937 rng(static_cast<uint32_t>(t));
      size_t held = 0;
      for (int i = 0; i < 20000; ++i) {
        const size_t bytes = 1 + rng() % 400;
        if (rng() % 2 == 0) {
          if (account->TryCharge(MemoryTag::kPages, bytes)) {
            held += bytes;
          } else if (held + bytes <= kFloor) {
            ++refused;
          }
        } else {
          const size_t back = std::min(held, bytes);
          account->Release(MemoryTag::kPages, back);
          held -= back;
        }
      }
      account->Release(MemoryTag::kPages, held);
    });
  }
  for (std::thread& thread : threads) thread.join();
  accounts.clear();
  EXPECT_EQ(refused, 0);
  EXPECT_EQ(ledger.used_bytes(), 0u);
  EXPECT_EQ(ledger.uncommitted_bytes(), ledger.limit_bytes());
  EXPECT_LE(ledger.peak_bytes(), ledger.limit_bytes());
}

TEST(LedgerAllocatorTest, ChargesTheAccount) {
  Ledger ledger(1000);
  const auto account = MemoryAccount::Open(&ledger, 0, 100);
  LedgerVector<char> bytes(LedgerAllocator<char>(account.get(), MemoryTag::kTokens));
  bytes.reserve(90);
  EXPECT_EQ(account->used_bytes(MemoryTag::kTokens), 90u);
  EXPECT_THROW(bytes.reserve(95), std::bad_alloc) << "old and new are there at once";
}

}  // namespace
}  // namespace pith
