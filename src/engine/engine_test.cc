// What fails half-way leaves a sequence that can be used.
#include "engine/engine.h"

#include <vector>

#include <gtest/gtest.h>

#include "engine/rooms_test_util.h"

namespace pith {
namespace {

TEST(Engine, WhatABenchmarkCouldNotFillIsEmpty) {
  const auto engine = Engine::Create(testing::TinyModel(), testing::TinyOptions("full", size_t{1} << 20));
  ASSERT_TRUE(engine) << engine.error().message;
  SequenceOptions options = (*engine)->options();
  options.floor_bytes = options.ceiling_bytes = size_t{100} << 10;
  const Result<SequenceId> id = (*engine)->NewSequence(options);
  ASSERT_TRUE(id) << id.error().message;
  EXPECT_FALSE((*engine)->FillForBenchmark(*id, 900));
  EXPECT_EQ((*engine)->stats(*id).entries, 0);
  EXPECT_TRUE((*engine)->FillForBenchmark(*id, 50));
  EXPECT_EQ((*engine)->EntryPositions(*id, 1, 1).size(), 50U);
}

}  // namespace
}  // namespace pith
