#include "engine/entry_counts.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "engine/core_test_util.h"

namespace pith {
namespace {

using testing::CoreSample;

size_t UsedBytes(CoreSample& sample) { return sample.core().ledger->used_bytes(); }

TEST(EntryCounts, GlobalLayersAloneCount) {
  CoreSample sample;
  const GlobalLayers& layers = sample.core().layers;
  EXPECT_EQ(layers.count(), 2);
  EXPECT_EQ(layers.num_heads(), 2 * CoreSample::kHeads);
  EXPECT_EQ(layers.IndexOf(1), -1);
  for (int i = 0; i < layers.count(); ++i) EXPECT_EQ(layers.IndexOf(layers.LayerOf(i)), i);
  Sequence& sequence = sample.NewSequence();
  sample.Read(sequence, 45);
  EXPECT_EQ(GlobalEntriesOf(sample.core(), sequence), 45 * layers.num_heads());
  EXPECT_EQ(PerHead(sample.core(), GlobalEntriesOf(sample.core(), sequence)), 45);
}

TEST(EntryCounts, OfAPartThosePositionsThatAreLeft) {
  CoreSample sample;
  Sequence& sequence = sample.NewSequence();
  sample.Read(sequence, 60);
  HeadCache& head = sample.core().cache->head(sequence.cache_id, 0, 0);
  ASSERT_TRUE(head.Keep(std::vector<int32_t>{0, 20, 21, 40, 59}));
  EXPECT_EQ(EntriesBefore(head, 21), 2);
  EXPECT_EQ(EntriesBefore(head, 22), 3);
  EXPECT_EQ(EntriesBefore(head, 0), 0);
  EXPECT_EQ(EntriesBefore(head, 1000), 5);
  EXPECT_EQ(EntriesWithin(sample.core(), sequence, 20, 41), 3 + 3 * 21);
}

// Lowered ones stand first, in whatever order.
TEST(EntryCounts, OfAPartThoseThatWereLoweredToo) {
  CoreSample sample;
  Sequence& sequence = sample.NewSequence();
  sample.Read(sequence, 130);
  ASSERT_TRUE(sample.core().cache->SetLower(sequence.cache_id, PageFormat(KvFormat::kQ8)));
  HeadCache& head = sample.core().cache->head(sequence.cache_id, 0, 0);
  std::vector<int32_t> some;
  for (int32_t i = 0; i < 32; ++i) some.push_back(2 * i + 50);
  ASSERT_TRUE(head.Lower(some));
  ASSERT_FALSE(head.TimeOrder().empty());
  for (const int32_t position : {0, 1, 49, 50, 51, 81, 112, 113, 129, 130, 1000}) {
    EXPECT_EQ(EntriesBefore(head, position), std::min(position, 130)) << position;
  }
}

// What is promised before a step holds it, and is no more than tables' growth beside it.
TEST(EntryCounts, RowsTakeTheBytesThatTheyWereSaidTo) {
  CoreSample sample;
  Sequence& sequence = sample.NewSequence();
  for (const int rows : {1, 20, 11, 1, 64, 200, 3}) {
    const size_t before = UsedBytes(sample), said = BytesToExtend(sample.core(), sequence, rows);
    sample.Read(sequence, rows);
    const size_t taken = UsedBytes(sample) - before;
    EXPECT_LE(taken, said) << rows << " rows";
    EXPECT_LE(said, taken + taken / 100) << rows << " rows";
  }
}

TEST(EntryCounts, AForkPaysForTheCopyOfItsLastPage) {
  CoreSample sample;
  Sequence& sequence = sample.NewSequence();
  sample.Read(sequence, 50);
  const size_t alone = BytesToExtend(sample.core(), sequence, 1);
  Sequence& fork = sample.Fork(sequence);
  const size_t before = UsedBytes(sample), said = BytesToExtend(sample.core(), fork, 1);
  EXPECT_GT(said, alone) << "page 1 has room, but is shared";
  sample.Read(fork, 1);
  EXPECT_EQ(UsedBytes(sample) - before, said);
}

TEST(EntryCounts, AFullPageInFewBitsTakesLess) {
  CoreSample sample;
  Sequence& sequence = sample.NewSequence(KvFormat::kQ4);
  sample.Read(sequence, 20);
  const size_t whole = BytesToExtend(sample.core(), sequence, 200), kept = BytesToKeep(sample.core(), sequence, 200);
  EXPECT_LT(kept, whole);
  const size_t before = UsedBytes(sample);
  sample.Read(sequence, 200);
  EXPECT_LE(UsedBytes(sample) - before, kept);
}

}  // namespace
}  // namespace pith
