#include "cache/evicted_state.h"

#include <gtest/gtest.h>

#include <limits>
#include <memory>
#include <vector>

#include "cache/kv_cache.h"

namespace pith {
namespace {

constexpr int kRank = 3, kValueDim = 4;
constexpr size_t kFloats = kRank * (kValueDim + 1);

std::vector<float> Numbers(float first) {
  std::vector<float> numbers(kFloats);
  for (size_t i = 0; i < kFloats; ++i) numbers[i] = first + static_cast<float>(i);
  return numbers;
}

std::vector<CacheLayer> Layers() {
  std::vector<CacheLayer> layers(2);
  layers[0] = {.num_kv_heads = 2, .key_dim = 8, .value_dim = kValueDim, .global = true};
  layers[1] = {.num_kv_heads = 1, .key_dim = 8, .value_dim = kValueDim};
  return layers;
}

struct Caches {
  Ledger ledger{size_t{1} << 20};
  std::unique_ptr<KvCache> cache = KvCache::Create(&ledger, Layers());
  const SequenceLayout layout{.state_rank = kRank};
};

TEST(EvictedState, IsChargedAndConstant) {
  Caches plain, with;
  const int without = *plain.cache->NewSequence({}, plain.ledger.common());
  const int sequence = *with.cache->NewSequence(with.layout, with.ledger.common());
  // Of the two heads that recipes act on.
  EXPECT_EQ(with.ledger.used_bytes() - plain.ledger.used_bytes(), 2 * kFloats * sizeof(float));
  EvictedState& state = with.cache->head(sequence, 0, 1).state();
  EXPECT_EQ(state.rank(), kRank);
  EXPECT_EQ(with.cache->head(sequence, 1, 0).state().rank(), 0);
  EXPECT_EQ(plain.cache->head(without, 0, 1).state().rank(), 0);
  EXPECT_EQ(state.numbers(), nullptr) << "nothing was taken in";
  EXPECT_EQ(with.cache->head(sequence, 0, 1).content_bytes(), 0);
  const size_t used = with.ledger.used_bytes();
  for (int i = 0; i < 100; ++i) state.Add(Numbers(0), 7);
  EXPECT_EQ(with.ledger.used_bytes(), used);
  EXPECT_EQ(state.num_entries(), 700);
  EXPECT_EQ(state.numbers()[2], 200);
  EXPECT_EQ(with.cache->head(sequence, 0, 1).content_bytes(), kFloats * sizeof(float));
  EXPECT_TRUE(with.cache->Verify());
  with.cache->Free(sequence);
  plain.cache->Free(without);
  EXPECT_EQ(with.ledger.used_bytes(), plain.ledger.used_bytes());
}

TEST(EvictedState, ABudgetThatDoesNotHoldItIsSaid) {
  Ledger ledger(2048);
  auto cache = KvCache::Create(&ledger, {{.num_kv_heads = 1, .key_dim = 8, .value_dim = 512, .global = true}});
  const auto made = cache->NewSequence({.state_rank = 8}, ledger.common());
  ASSERT_FALSE(made);
  EXPECT_EQ(made.error().code, ErrorCode::kOutOfBudget);
  EXPECT_EQ(ledger.used_bytes(), 0U);
}

TEST(EvictedState, ForksHaveTheirOwn) {
  Caches caches;
  const int sequence = *caches.cache->NewSequence(caches.layout, caches.ledger.common());
  caches.cache->head(sequence, 0, 0).state().Add(Numbers(1), 5);
  const int fork = *caches.cache->Fork(sequence, caches.ledger.common());
  EvictedState& of_fork = caches.cache->head(fork, 0, 0).state();
  ASSERT_NE(of_fork.numbers(), nullptr);
  EXPECT_EQ(of_fork.num_entries(), 5);
  EXPECT_EQ(of_fork.numbers()[3], 4);
  EXPECT_EQ(caches.cache->head(fork, 0, 1).state().numbers(), nullptr);
  of_fork.Add(Numbers(1), 1);
  EXPECT_EQ(of_fork.numbers()[3], 8);
  EXPECT_EQ(caches.cache->head(sequence, 0, 0).state().numbers()[3], 4);
  caches.cache->head(fork, 0, 0).Clear();
  EXPECT_EQ(of_fork.numbers(), nullptr);
  EXPECT_EQ(caches.cache->head(sequence, 0, 0).state().num_entries(), 5);
  caches.cache->Free(fork);
  caches.cache->Free(sequence);
}

TEST(EvictedState, VerifySeesWhatIsNone) {
  Caches caches;
  const int sequence = *caches.cache->NewSequence(caches.layout, caches.ledger.common());
  EvictedState& state = caches.cache->head(sequence, 0, 0).state();
  std::vector<float> numbers = Numbers(1);
  state.Add(numbers, 0);
  EXPECT_FALSE(caches.cache->Verify()) << "sums of no entries";
  state.Clear();
  numbers.back() = -1;
  state.Add(numbers, 2);
  EXPECT_FALSE(caches.cache->Verify()) << "a mass below 0";
  state.Clear();
  numbers = Numbers(1);
  numbers[1] = std::numeric_limits<float>::quiet_NaN();
  state.Add(numbers, 2);
  EXPECT_FALSE(caches.cache->Verify()) << "no number";
  state.Clear();
  state.Add(Numbers(1), 2);
  EXPECT_TRUE(caches.cache->Verify()) << "the control";
  caches.cache->Free(sequence);
}

TEST(EvictedState, ComesBackOrIsRefused) {
  Caches caches;
  const int sequence = *caches.cache->NewSequence(caches.layout, caches.ledger.common());
  caches.cache->head(sequence, 0, 0).state().Add(Numbers(1), 5);
  MemoryWriter writer;
  caches.cache->Save(sequence, writer);
  const auto restore = [&](const std::vector<std::byte>& bytes, const SequenceLayout& layout, int32_t end) {
    const int other = *caches.cache->NewSequence(layout, caches.ledger.common());
    MemoryReader reader(bytes);
    const Status status = caches.cache->Restore(other, reader, end);
    if (status) {
      MemoryWriter again;
      caches.cache->Save(other, again);
      EXPECT_EQ(again.bytes(), bytes);
      EXPECT_EQ(caches.cache->head(other, 0, 0).state().num_entries(), 5);
    }
    caches.cache->Free(other);
    return status.has_value();
  };
  EXPECT_TRUE(restore(writer.bytes(), caches.layout, 5));
  EXPECT_FALSE(restore(writer.bytes(), caches.layout, 4)) << "more entries than tokens";
  EXPECT_FALSE(restore(writer.bytes(), {}, 5)) << "a sequence without states";
  EXPECT_FALSE(restore(writer.bytes(), {.state_rank = kRank + 1}, 5));
  for (size_t length = 0; length < writer.bytes().size(); ++length) {
    EXPECT_FALSE(
        restore({writer.bytes().begin(), writer.bytes().begin() + static_cast<ptrdiff_t>(length)}, caches.layout, 5))
        << length;
  }
  caches.cache->Free(sequence);
}

}  // namespace
}  // namespace pith
