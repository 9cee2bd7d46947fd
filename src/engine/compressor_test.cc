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

}  // namespace
}  // namespace pith
