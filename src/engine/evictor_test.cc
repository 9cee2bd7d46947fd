// When is too much: the share and its slack, to the entry; a prompt's end has none.
#include "engine/evictor.h"

#include <gtest/gtest.h>

#include "engine/entry_counts.h"
#include "engine/rooms_test_util.h"

namespace pith {
namespace {

using testing::Rooms;

TEST(Evictor, TheShareAndItsSlackAreHeldToTheEntry) {
  Rooms rooms(testing::TinyOptions("keydiff", size_t{1} << 20));
  Sequence& sequence = rooms.New();
  sequence.evicts = false;
  ASSERT_TRUE(rooms.Read(sequence, 60));
  RowGroup group{.sequence = &sequence, .num_rows = 1};
  sequence.share.keep_entries = 50;
  sequence.share.slack_entries = 10;
  EXPECT_FALSE(rooms.evictor.HoldsTooMuch(group, 0)) << "it was told to drop nothing";
  EXPECT_TRUE(rooms.evictor.EvictToShare(sequence));
  EXPECT_EQ(GlobalEntriesOf(rooms.core, sequence), 60 * rooms.core.layers.num_heads());
  sequence.evicts = true;
  EXPECT_FALSE(rooms.evictor.HoldsTooMuch(group, 0));
  group.settles = true;
  EXPECT_TRUE(rooms.evictor.HoldsTooMuch(group, 0));
  group.settles = false;
  sequence.share.slack_entries = 9;
  EXPECT_TRUE(rooms.evictor.HoldsTooMuch(group, 0));
  EXPECT_TRUE(rooms.evictor.EvictToShare(sequence));
  EXPECT_EQ(GlobalEntriesOf(rooms.core, sequence), 50 * rooms.core.layers.num_heads());
  EXPECT_FALSE(rooms.evictor.HoldsTooMuch(group, 0));
}

}  // namespace
}  // namespace pith
