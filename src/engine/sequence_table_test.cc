// Bytes are claimed as a whole or not at all: who cannot have them leaves nobody with less, and nothing promised.
#include "engine/sequence_table.h"

#include <gtest/gtest.h>

#include "engine/entry_counts.h"
#include "engine/rooms_test_util.h"

namespace pith {
namespace {

using testing::Rooms;
using testing::TinyOptions;

constexpr size_t kKib = 1 << 10;

TEST(SequenceTable, WhatIsOutOfReachTakesNothingFromOthers) {
  Rooms rooms(TinyOptions("keydiff", 1024 * kKib));
  Sequence& borrower = rooms.New(100 * kKib, 600 * kKib);
  ASSERT_TRUE(rooms.Read(borrower, 600));
  const size_t used = borrower.account->used_bytes(), borrowed = used - borrower.floor_bytes;
  const int64_t entries = GlobalEntriesOf(rooms.core, borrower);
  ASSERT_GT(used, borrower.floor_bytes + 50 * kKib);
  SequenceOptions more = rooms.core.options;
  more.floor_bytes = more.ceiling_bytes = rooms.core.ledger->uncommitted_bytes() + borrowed + kKib;
  EXPECT_FALSE(rooms.table.New(more));
  EXPECT_EQ(GlobalEntriesOf(rooms.core, borrower), entries);
  EXPECT_EQ(borrower.account->ceiling_bytes(), borrower.ceiling_bytes);
  EXPECT_FALSE(rooms.table.SetBudget(rooms.New(60 * kKib, 60 * kKib), 1000 * kKib, 1000 * kKib));
  EXPECT_EQ(GlobalEntriesOf(rooms.core, borrower), entries);
  // Within reach, the same bytes are taken.
  more.floor_bytes = more.ceiling_bytes = rooms.core.ledger->uncommitted_bytes() + 40 * kKib;
  EXPECT_TRUE(rooms.table.New(more));
  EXPECT_LT(GlobalEntriesOf(rooms.core, borrower), entries);
  EXPECT_LE(borrower.account->used_bytes(), borrower.floor_bytes);
  EXPECT_TRUE(rooms.core.cache->Verify());
}

TEST(SequenceTable, WhatARunningStepGuaranteesIsNotClaimed) {
  Rooms rooms(TinyOptions("keydiff", 1024 * kKib));
  Sequence& borrower = rooms.New(100 * kKib, 600 * kKib);
  ASSERT_TRUE(rooms.Read(borrower, 600));
  borrower.step_bytes = 30 * kKib;
  ASSERT_TRUE(rooms.table.Reclaim(rooms.core.ledger->uncommitted_bytes() + 20 * kKib, nullptr));
  EXPECT_EQ(borrower.account->ceiling_bytes(), 130 * kKib);
  EXPECT_EQ(borrower.account->floor_bytes(), 130 * kKib);
  borrower.step_bytes = 0;
}

TEST(SequenceTable, RowsInFlightArePromisedForThoseWhoAreThere) {
  Rooms rooms(TinyOptions("keydiff", 2048 * kKib));
  const size_t own = rooms.core.flight.bytes(), uncommitted = rooms.core.ledger->uncommitted_bytes();
  SequenceOptions wide = rooms.core.options;
  wide.recipe = *ParseRecipe("layer_defensivekv");  // evicts when all layers have their rows
  const Result<SequenceId> id = rooms.table.New(wide);
  ASSERT_TRUE(id);
  EXPECT_GT(rooms.core.flight.bytes(), own);
  rooms.table.Free(*id);
  EXPECT_EQ(rooms.core.flight.bytes(), own);
  EXPECT_EQ(rooms.core.ledger->uncommitted_bytes(), uncommitted);
}

}  // namespace
}  // namespace pith
