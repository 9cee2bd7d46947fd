// A turn that could not be dropped is still one.
#include "engine/turn_keeper.h"

#include <gtest/gtest.h>

#include "engine/rooms_test_util.h"

namespace pith {
namespace {

using testing::Rooms;

TEST(TurnKeeper, ATurnThatCouldNotBeDroppedIsDroppedLater) {
  Rooms rooms(testing::TinyOptions("snapkv:window=8 turns=flowkv", size_t{2} << 20));
  Sequence& source = rooms.New();
  ASSERT_TRUE(rooms.Read(source, 100));
  source.turns = {{10, 40}, {40, 100}};
  source.turn_start = 100;
  const Result<SequenceId> forked = rooms.table.Fork(source);
  ASSERT_TRUE(forked);
  Sequence& fork = *rooms.table.Lookup(*forked);
  // All its pages are shared, and it has no bytes to copy them.
  const size_t floor = fork.floor_bytes, ceiling = fork.ceiling_bytes;
  ASSERT_TRUE(fork.account->SetLimits(0, fork.account->used_bytes()));
  fork.floor_bytes = SIZE_MAX / 2;  // nothing is lent
  fork.ceiling_bytes = 0;
  EXPECT_FALSE(rooms.turns.MakeRoomForRows(fork, 1));
  EXPECT_EQ(fork.turns.size(), 2U);
  ASSERT_TRUE(fork.account->SetLimits(floor, ceiling));
  fork.floor_bytes = floor;
  EXPECT_TRUE(rooms.turns.MakeRoomForRows(fork, 1));
  EXPECT_TRUE(fork.turns.empty());
  for (const int32_t position : rooms.Positions(fork, 1, 1)) EXPECT_LT(position, 10);
  fork.ceiling_bytes = ceiling;
}

}  // namespace
}  // namespace pith
