// What is refused changes nothing, not even to make room for itself.
#include "engine/steps.h"

#include <vector>

#include <gtest/gtest.h>

#include "engine/rooms_test_util.h"

namespace pith {
namespace {

using testing::Rooms;
using testing::TinyOptions;

TEST(Steps, NoTurnIsClosedForAnItemThatIsRefused) {
  Rooms rooms(TinyOptions("snapkv:window=8 turns=flowkv", size_t{2} << 20));
  Sequence& sequence = rooms.New();
  ASSERT_TRUE(rooms.Read(sequence, 4 * kPageEntries));
  sequence.ceiling_bytes = sequence.account->used_bytes();  // no row more
  const std::vector<int32_t> wrong = {100000}, none, right = {5};
  Status status;
  for (const auto* tokens : {&wrong, &none}) {
    const StepItem item{.sequence = sequence.id, .tokens = *tokens};
    rooms.steps.Step({&item, 1}, {&status, 1});
    EXPECT_FALSE(status);
    EXPECT_EQ(sequence.turn_start, 0);
  }
  const StepItem item{.sequence = sequence.id, .tokens = right};
  rooms.steps.Step({&item, 1}, {&status, 1});
  EXPECT_EQ(sequence.turn_start, 4 * kPageEntries);
}

TEST(Steps, NobodyReadsATextTwiceAtOnce) {
  Rooms rooms(TinyOptions("full", size_t{2} << 20));
  const Sequence& one = rooms.New();
  const Sequence& other = rooms.New();
  const std::vector<int32_t> tokens = {5, 6, 7, 8};
  std::vector<float> logits;
  const SequenceId twice[] = {one.id, other.id, one.id};
  EXPECT_FALSE(rooms.steps.PrefillTogether(twice, tokens, 0, logits, {}));
  EXPECT_EQ(one.next_position, 0);
  EXPECT_TRUE(rooms.steps.PrefillTogether(std::span(twice).first(2), tokens, 0, logits, {}));
  EXPECT_EQ(one.next_position, 4);
}

}  // namespace
}  // namespace pith
