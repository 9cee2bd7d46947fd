// What going back leaves, and what stands in its way, on a cache without a model.
#include "engine/rewind.h"

#include <gtest/gtest.h>

#include <numeric>
#include <string>
#include <vector>

#include "engine/core_test_util.h"
#include "engine/entry_counts.h"

namespace pith {
namespace {

using testing::CoreSample;

std::string ReasonOf(const Status& status) { return status ? "" : status.error().message; }

TEST(Rewind, WhatIsWholeGoesBackToAnyToken) {
  CoreSample sample;
  Sequence& sequence = sample.NewSequence();
  sample.Read(sequence, 100);
  sequence.pinned = {{0, 10}, {60, 80}, {90, 95}};
  EXPECT_EQ(RewindTarget(sample.core(), sequence, 70), 70);
  ASSERT_TRUE(Rewind(sample.core(), sequence, 70));
  EXPECT_EQ(sequence.next_position, 70);
  EXPECT_EQ(GlobalEntriesOf(sample.core(), sequence), 70 * sample.core().layers.num_heads());
  EXPECT_EQ(EntriesOf(sample.core(), sequence, 1), 70 * CoreSample::kHeads) << "of the sliding layer, too";
  EXPECT_EQ(sequence.num_pinned(), 10 + 10) << "pins end where the tokens do";
  EXPECT_FALSE(Rewind(sample.core(), sequence, 71)) << "it has not read so many";
  EXPECT_TRUE(Rewind(sample.core(), sequence, 70)) << "it is there";
  EXPECT_TRUE(sample.core().cache->Verify());
}

TEST(Rewind, EntriesThatWentDoNotComeBack) {
  CoreSample sample;
  Sequence& sequence = sample.NewSequence();
  sample.Read(sequence, 100);
  std::vector<int32_t> kept(100);
  std::iota(kept.begin(), kept.end(), 0);
  kept.erase(kept.begin() + 50);
  ASSERT_TRUE(sample.core().cache->head(sequence.cache_id, 2, 1).Keep(kept));
  EXPECT_EQ(RewindTarget(sample.core(), sequence, 70), 50) << "all before are there";
  EXPECT_NE(ReasonOf(Rewind(sample.core(), sequence, 70)).find("dropped entries"), std::string::npos);
  EXPECT_EQ(sequence.next_position, 100) << "nothing has changed";
  EXPECT_EQ(EntriesOf(sample.core(), sequence, 0), 100 * CoreSample::kHeads);
  EXPECT_TRUE(Rewind(sample.core(), sequence, 50));
  EXPECT_EQ(GlobalEntriesOf(sample.core(), sequence), 50 * sample.core().layers.num_heads());
}

TEST(Rewind, AWindowMustBeThere) {
  CoreSample sample;
  Sequence& sequence = sample.NewSequence();
  sample.Read(sequence, 200);
  for (HeadCache& head : sample.core().cache->heads(sequence.cache_id, 1)) {
    head.DropPagesBefore(sequence.next_position - CoreSample::kWindow + 1);
  }
  // The first page that is left begins at 160, and the token at position p sees those from p - 39 on.
  EXPECT_EQ(RewindTarget(sample.core(), sequence, 199), 199);
  EXPECT_EQ(RewindTarget(sample.core(), sequence, 198), 0);
  EXPECT_NE(ReasonOf(Rewind(sample.core(), sequence, 198)).find("sliding windows"), std::string::npos);
  EXPECT_TRUE(Rewind(sample.core(), sequence, 199));
}

TEST(Rewind, PagesOfFewBitsStayWhole) {
  CoreSample sample;
  Sequence& sequence = sample.NewSequence(KvFormat::kQ4);
  sample.Read(sequence, 100);
  ASSERT_EQ(sample.core().cache->head(sequence.cache_id, 0, 0).num_low_entries(), 96);
  EXPECT_EQ(RewindTarget(sample.core(), sequence, 98), 98) << "within what is in 16 bits";
  EXPECT_EQ(RewindTarget(sample.core(), sequence, 90), 64);
  EXPECT_NE(ReasonOf(Rewind(sample.core(), sequence, 90)).find("few bits"), std::string::npos);
  EXPECT_TRUE(Rewind(sample.core(), sequence, 64));
  EXPECT_EQ(GlobalEntriesOf(sample.core(), sequence), 64 * sample.core().layers.num_heads());
}

TEST(Rewind, RecurrentStatesDoNotGoBack) {
  CoreSample sample;
  Sequence& sequence = sample.NewSequence();
  sample.Read(sequence, 100);
  sample.info().hybrid = true;
  EXPECT_EQ(RewindTarget(sample.core(), sequence, 70), 0);
  EXPECT_NE(ReasonOf(Rewind(sample.core(), sequence, 70)).find("recurrent"), std::string::npos);
}

}  // namespace
}  // namespace pith
