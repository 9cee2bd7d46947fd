// A part is a part in the order of time, whatever stands where in the cache.
#include "engine/compressor.h"

#include <algorithm>
#include <vector>

#include <gtest/gtest.h>

#include "engine/rooms_test_util.h"

namespace pith {
namespace {

using testing::Rooms;

TEST(Compressor, APartOfASequenceWithLoweredEntries) {
  EngineOptions options = testing::TinyOptions("full", size_t{2} << 20);
  options.compress = CompressMode::kAfter;
  Rooms rooms(options);
  Sequence& sequence = rooms.New();
  ASSERT_TRUE(rooms.Read(sequence, 320));
  const CompressTarget whole{.sequence = sequence.id, .keep_fraction = 0.6};
  const auto lowered =
      rooms.compressor.CompressForks(sequence, *ParseRecipe("score=keydiff act=demote:lo=q4"), {&whole, 1});
  ASSERT_TRUE(lowered) << lowered.error().message;
  ASSERT_FALSE(rooms.core.cache->head(sequence.cache_id, 0, 0).TimeOrder().empty());
  constexpr int32_t kFrom = 100, kTo = 200;
  const auto kept = rooms.compressor.CompressPart(sequence, *ParseRecipe("keydiff"), 0.5, kFrom, kTo);
  ASSERT_TRUE(kept) << kept.error().message;
  EXPECT_NEAR(*kept, 0.5, 0.01);
  for (const int layer : {0, 1}) {
    for (const int head : {0, 1}) {
      const std::vector<int32_t> positions = rooms.Positions(sequence, layer, head);
      const auto inside = std::ranges::count_if(positions, [](int32_t at) { return at >= kFrom && at < kTo; });
      EXPECT_EQ(inside, 50);
      EXPECT_EQ(positions.size(), 320U - 50U) << "all others are there";
    }
  }
}

TEST(Compressor, TypesOfTheCacheOutweighAFormatThatIsLeftOpen) {
  EngineOptions options = testing::TinyOptions("keydiff format=auto", size_t{2} << 20);
  options.compress = CompressMode::kAfter;
  for (const KvFormat types : {KvFormat::kF16, KvFormat::kQ8, KvFormat::kQ4}) {
    options.format = types;
    Rooms rooms(options);
    Sequence& sequence = rooms.New();
    ASSERT_TRUE(rooms.Read(sequence, 320));
    const CompressTarget target{.sequence = sequence.id, .keep_fraction = 0.5};
    const auto kept = rooms.compressor.CompressForks(sequence, options.recipe, {&target, 1});
    ASSERT_TRUE(kept) << kept.error().message;
    const bool is_open = types == KvFormat::kF16;
    EXPECT_EQ(rooms.core.cache->layout(sequence.cache_id).full().Name(), is_open ? "q4" : PageFormat(types).Name());
    EXPECT_EQ(kept->front() > 0.6, is_open) << "a share of bytes, or of entries";
  }
}

TEST(Compressor, WithoutRoomForWhatIsKnownBetweenPiecesTheRestComesAtOnce) {
  EngineOptions options = testing::TinyOptions("full", size_t{4} << 20);
  options.compress = CompressMode::kAfter;
  options.later_recipes.push_back(*ParseRecipe("kvzip:chunk=64 act=residue"));
  const Recipe& recipe = options.later_recipes.front();
  const auto count = [&](bool has_room) {
    Rooms rooms(options);
    Sequence& sequence = rooms.New();
    EXPECT_TRUE(rooms.Read(sequence, 200));
    while (!*rooms.compressor.ReadAgain(sequence, recipe, {}, 1 << 20)) {
    }
    const size_t floor = sequence.floor_bytes, ceiling = sequence.ceiling_bytes;
    if (!has_room) {
      EXPECT_TRUE(sequence.account->SetLimits(0, 0));
      sequence.floor_bytes = SIZE_MAX / 2;  // nothing is lent
      sequence.ceiling_bytes = 0;
    }
    int calls = 0;
    for (bool is_done = false; !is_done && calls < 100; ++calls) {
      const Result<bool> done = rooms.compressor.CompressOn(sequence, recipe, 0.5);
      EXPECT_TRUE(done) << done.error().message;
      is_done = !done || *done;
    }
    EXPECT_LT(rooms.Positions(sequence, 1, 1).size(), 200U);
    sequence.floor_bytes = floor, sequence.ceiling_bytes = ceiling;
    return calls;
  };
  EXPECT_EQ(count(false), 1);
  EXPECT_GE(count(true), 4) << "control: a head in a piece";
}

}  // namespace
}  // namespace pith
