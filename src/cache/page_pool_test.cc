#include "cache/page_pool.h"

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <cstring>
#include <map>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "base/huge_pages.h"

namespace pith {
namespace {

constexpr size_t kPageBytes = 10240;

std::unique_ptr<PagePool> MakePool(PageArena* arena, size_t page_bytes = kPageBytes) {
  auto pool = PagePool::Create(arena, page_bytes);
  EXPECT_TRUE(pool);
  return std::move(*pool);
}

bool IsSound(const PagePool& pool) {
  std::map<const MemoryAccount*, size_t> owned;
  if (!pool.Verify(&owned)) return false;
  for (const auto& [account, bytes] : owned) {
    if (account->used_bytes(MemoryTag::kPages) != bytes) return false;
  }
  return true;
}

TEST(PagePoolTest, CostsNothingUntilUsed) {
  Ledger ledger(size_t{8} << 30);
  PageArena arena(&ledger);
  const auto pool = MakePool(&arena);
  EXPECT_EQ(ledger.used_bytes(), 0U);
  std::byte* page = pool->Acquire(ledger.common());
  ASSERT_NE(page, nullptr);
  EXPECT_EQ(ledger.used_bytes(), kPageBytes + PagePool::kTableBytesPerPage);
  pool->Release(page, ledger.common());
  EXPECT_EQ(ledger.used_bytes(), 0U);
}

TEST(PagePoolTest, SharedPagesPassToTheCommonAccount) {
  Ledger ledger(size_t{1} << 20);
  PageArena arena(&ledger);
  const auto pool = MakePool(&arena);
  const auto a = MemoryAccount::Open(&ledger, 0, 1 << 20), b = MemoryAccount::Open(&ledger, 0, 1 << 20);
  std::byte* page = pool->Acquire(a.get());
  pool->AddRef(page);
  pool->AddRef(page);
  pool->Release(page, b.get());
  EXPECT_EQ(a->used_bytes(), pool->page_cost()) << "a sharer only drops its reference";
  pool->Release(page, a.get());
  EXPECT_EQ(a->used_bytes(), 0U);
  EXPECT_EQ(ledger.common()->used_bytes(), pool->page_cost());
  EXPECT_EQ(pool->owner(page), ledger.common());
  EXPECT_TRUE(IsSound(*pool));
  pool->Release(page, b.get());
  EXPECT_EQ(ledger.used_bytes(), 0U);
  EXPECT_EQ(pool->num_used(), 0U);
}

// Controls: what Verify() is for.
TEST(PagePoolTest, VerifySeesMiscountedReferencesAndBytes) {
  Ledger ledger(size_t{1} << 20);
  PageArena arena(&ledger);
  const auto pool = MakePool(&arena);
  std::byte* page = pool->Acquire(ledger.common());
  EXPECT_TRUE(IsSound(*pool));
  ledger.Release(MemoryTag::kPages, 1);
  EXPECT_FALSE(IsSound(*pool));
  ASSERT_TRUE(ledger.TryCharge(MemoryTag::kPages, 1));
  pool->Release(page, ledger.common());
  EXPECT_TRUE(IsSound(*pool));
  pool->AddRef(page);  // of a free page
  EXPECT_FALSE(IsSound(*pool));
}

// As many threads as the ledger pays pages for, each of which holds at most one: nobody may ever be refused, whichever
// moment the others are in. Bytes that come back after their page would refuse some.
TEST(PagePoolTest, PagesAndBytesBecomeFreeTogether) {
  constexpr size_t kThreads = 4;
  Ledger ledger(kThreads * (kPageBytes + PagePool::kTableBytesPerPage));
  PageArena arena(&ledger);
  const auto pool = MakePool(&arena);
  std::atomic<int> refused{0};
  std::vector<std::thread> threads;
  for (size_t t = 0; t < kThreads; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 20000; ++i) {
        std::byte* page = pool->Acquire(ledger.common());
        if (page == nullptr) {
          ++refused;
          continue;
        }
        page[0] = std::byte{1};
        pool->Release(page, ledger.common());
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(refused, 0);
  EXPECT_EQ(ledger.used_bytes(), 0U);
  EXPECT_TRUE(IsSound(*pool));
}

// In a full ledger threads exchange their page for one of another pool of the same size while others wait for any
// byte that comes free: none may be taken in between.
TEST(PagePoolTest, ExchangesNeverLoseTheirBytes) {
  constexpr size_t kThreads = 3;
  Ledger ledger(kThreads * (kPageBytes + PagePool::kTableBytesPerPage));
  PageArena arena(&ledger);
  const auto first = MakePool(&arena), second = MakePool(&arena);
  std::atomic<int> failed{0}, stolen{0}, started{0}, ended{0};
  std::vector<std::thread> threads;
  for (size_t t = 0; t < kThreads; ++t) {
    threads.emplace_back([&] {
      PagePool *from = first.get(), *to = second.get();
      std::byte* page = from->Acquire(ledger.common());
      ++started;
      while (started < static_cast<int>(kThreads)) std::this_thread::yield();
      for (int i = 0; i < 5000; ++i) {
        PageExchange exchange(ledger.common());
        exchange.GiveUp(from, page);
        exchange.Take(to);
        if (!exchange.Settle()) {
          ++failed;
          continue;
        }
        page = exchange.Fresh(to);
        exchange.Finish();
        std::swap(from, to);
      }
      ++ended;  // before its bytes come free
      from->Release(page, ledger.common());
    });
  }
  std::thread thief([&] {
    while (started < static_cast<int>(kThreads)) std::this_thread::yield();
    while (ended == 0) {
      if (!ledger.TryCharge(MemoryTag::kTokens, 1)) continue;
      if (ended == 0) ++stolen;
      ledger.Release(MemoryTag::kTokens, 1);
    }
  });
  for (std::thread& thread : threads) thread.join();
  thief.join();
  EXPECT_EQ(failed, 0);
  EXPECT_EQ(stolen, 0);
  EXPECT_EQ(first->num_used() + second->num_used(), 0U);
  EXPECT_EQ(ledger.used_bytes(), 0U);
}

// A copy of a shared page that the writer owns is no more for it than the original was.
TEST(PagePoolTest, CopiesOfOnesOwnSharedPagesFitBelowTheCeiling) {
  Ledger ledger(size_t{1} << 20);
  PageArena arena(&ledger);
  const auto pool = MakePool(&arena);
  const auto a = MemoryAccount::Open(&ledger, 0, pool->page_cost());
  std::byte* page = pool->Acquire(a.get());
  pool->AddRef(page);
  PageExchange two(a.get());
  two.GiveUp(pool.get(), page);
  two.Take(pool.get());
  two.Take(pool.get());
  EXPECT_FALSE(two.Settle());
  EXPECT_EQ(pool->owner(page), a.get()) << "nothing has changed";
  PageExchange one(a.get());
  one.GiveUp(pool.get(), page);
  one.Take(pool.get());
  ASSERT_TRUE(one.Settle());
  std::byte* copy = one.Fresh(pool.get());
  one.Finish();
  EXPECT_EQ(a->used_bytes(), pool->page_cost());
  EXPECT_EQ(ledger.common()->used_bytes(), pool->page_cost());
  EXPECT_TRUE(IsSound(*pool));
  pool->Release(copy, a.get());
  pool->Release(page, ledger.common());
}

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
size_t ResidentBytes() {
  std::FILE* file = std::fopen("/proc/self/statm", "r");
  size_t total = 0, resident = 0;
  EXPECT_EQ(std::fscanf(file, "%zu %zu", &total, &resident), 2);
  std::fclose(file);
  return resident * static_cast<size_t>(sysconf(_SC_PAGESIZE));
}

// Two classes of pages fill the whole budget in turn, with holes left at random, again and again.
TEST(PageArenaTest, ResidentBytesStayWithinTheBudget) {
  constexpr size_t kLimit = size_t{64} << 20, kSlack = size_t{10} << 20;
  Ledger ledger(kLimit);
  PageArena arena(&ledger);
  const auto large = MakePool(&arena, 17408), small = MakePool(&arena, 2944);
  std::vector<std::byte*> of_large, of_small;
  std::mt19937 rng(3);
  const auto fill = [&](PagePool& pool, size_t bytes, std::vector<std::byte*>* pages) {
    while (std::byte* page = pool.Acquire(ledger.common())) {
      std::memset(page, 1, bytes);
      pages->push_back(page);
    }
  };
  // Of every `of` pages one stays.
  const auto thin = [&](PagePool& pool, uint32_t of, std::vector<std::byte*>* pages) {
    std::vector<std::byte*> kept;
    for (std::byte* page : *pages) {
      if (rng() % of == 0) {
        kept.push_back(page);
      } else {
        pool.Release(page, ledger.common());
      }
    }
    *pages = kept;
  };
  const size_t before = ResidentBytes();
  size_t most = 0;
  for (int round = 0; round < 8; ++round) {
    fill(*large, 17408, &of_large);
    most = std::max(most, ResidentBytes() - before);
    thin(*large, round % 2 == 0 ? 30 : 1000000, &of_large);
    fill(*small, 2944, &of_small);
    most = std::max(most, ResidentBytes() - before);
    thin(*small, round % 2 == 0 ? 1000000 : 60, &of_small);
  }
  EXPECT_LE(most, kLimit + kSlack);
  EXPECT_GT(most, kLimit / 2) << "the control: nothing was filled";
  thin(*large, 1000000, &of_large);
  thin(*small, 1000000, &of_small);
  EXPECT_GT(arena.idle_bytes(), PageArena::kIdleSlackBytes);
  arena.Trim();
  EXPECT_LE(arena.idle_bytes(), PageArena::kIdleSlackBytes);
  EXPECT_LE(ResidentBytes(), before + kSlack);
  // What the system does in time by itself where it may: it fills the holes, to have huge pages.
  fill(*large, 17408, &of_large);
  thin(*large, 40, &of_large);
  arena.Trim();
  const size_t thinned = ResidentBytes();
  EXPECT_LE(thinned, before + kLimit / 2);
  constexpr int kCollapse = 25;  // MADV_COLLAPSE, of Linux 6.1
  for (std::byte* page : of_large) {
    const auto huge = reinterpret_cast<uintptr_t>(page) / kHugePageBytes * kHugePageBytes;
    (void)madvise(reinterpret_cast<void*>(huge), kHugePageBytes, kCollapse);
  }
  EXPECT_LE(ResidentBytes(), thinned + kSlack);
  for (std::byte* page : of_large) large->Release(page, ledger.common());
  for (std::byte* page : of_small) small->Release(page, ledger.common());
  EXPECT_TRUE(IsSound(*large));
  EXPECT_TRUE(IsSound(*small));
}
#endif

}  // namespace
}  // namespace pith
