#include "engine/slot_pool.h"

#include <gtest/gtest.h>

#include "engine/cancel_list.h"

namespace pith {
namespace {

TEST(SlotPool, SequencesNeverTakeTheSpareOne) {
  SlotPool slots(2, true);
  EXPECT_EQ(slots.count(), 2);
  EXPECT_EQ(slots.FindFree(), 0);
  EXPECT_EQ(slots.FindFree(), 0) << "it is free until it is taken";
  slots.Take(0);
  EXPECT_EQ(slots.FindFree(), 1);
  slots.Take(1);
  EXPECT_EQ(slots.FindFree(), -1);
  EXPECT_EQ(slots.FindFreeForReading(), 2);
  slots.Take(2);
  EXPECT_EQ(slots.FindFreeForReading(), -1);
  slots.Give(0);
  EXPECT_EQ(slots.FindFreeForReading(), 0) << "a second reading beside another one takes a sequence's place";
  slots.Give(2);
  EXPECT_EQ(slots.FindFreeForReading(), 2);
  EXPECT_EQ(slots.FindFree(), 0);
}

TEST(SlotPool, WithoutASpareOneReadingsTakeWhatIsThere) {
  SlotPool slots(1, false);
  EXPECT_EQ(slots.FindFreeForReading(), 0);
  slots.Take(0);
  EXPECT_EQ(slots.FindFreeForReading(), -1);
}

TEST(CancelList, HoldsNamesUntilTheyAreRemoved) {
  CancelList cancels;
  EXPECT_FALSE(cancels.any());
  cancels.Add(3);
  cancels.Add(5);
  cancels.Add(3);
  EXPECT_TRUE(cancels.Contains(3));
  EXPECT_FALSE(cancels.Contains(4));
  cancels.Remove(3);
  EXPECT_FALSE(cancels.Contains(3)) << "however often it was named";
  EXPECT_TRUE(cancels.any());
  cancels.Remove(5);
  EXPECT_FALSE(cancels.any());
}

}  // namespace
}  // namespace pith
