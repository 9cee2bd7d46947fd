// Forks lose what their source loses, and nothing that they alone have read.
#include "engine/shrinker.h"

#include <vector>

#include <gtest/gtest.h>

#include "engine/rooms_test_util.h"

namespace pith {
namespace {

using testing::Rooms;

TEST(Shrinker, WhatAForkHasReadSinceStays) {
  Rooms rooms(testing::TinyOptions("full", size_t{2} << 20));
  Sequence& source = rooms.New();
  ASSERT_TRUE(rooms.Read(source, 150));
  const Result<SequenceId> forked = rooms.table.Fork(source);
  ASSERT_TRUE(forked);
  Sequence& fork = *rooms.table.Lookup(*forked);
  ASSERT_TRUE(rooms.Read(fork, 30));
  const ActiveRecipe active{.recipe = *ResolveForCompress(*ParseRecipe("keydiff"))};
  const Budget budget{.keep = 40, .keep_fraction = 40.0 / 150};
  const Shrink targets[] = {{.sequence = &fork, .budget = budget}, {.sequence = &source, .budget = budget}};
  const EntryGuard guard{.num_sinks = 4};
  const Status status = rooms.shrinker.Run(source, active, guard, targets);
  ASSERT_TRUE(status) << status.error().message;
  for (const int layer : {0, 1}) {
    for (const int head : {0, 1}) {
      std::vector<int32_t> kept = rooms.Positions(source, layer, head);
      ASSERT_EQ(kept.size(), 40U);
      EXPECT_EQ(kept[3], 3) << "sinks";
      for (int32_t position = 150; position < 180; ++position) kept.push_back(position);
      EXPECT_EQ(rooms.Positions(fork, layer, head), kept);
    }
  }
  EXPECT_TRUE(rooms.core.cache->Verify());
}

}  // namespace
}  // namespace pith
