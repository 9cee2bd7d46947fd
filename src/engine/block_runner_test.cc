// What a step guarantees to one of its sequences no other one takes; names of cancelled sequences go with them.
#include "engine/block_runner.h"

#include <algorithm>
#include <random>
#include <vector>

#include <gtest/gtest.h>

#include "engine/rooms_test_util.h"

namespace pith {
namespace {

using testing::Rooms;
using testing::TinyOptions;

// Fails nowhere, and looks what a sequence is guaranteed within its step.
class Look final : public StepFaults {
 public:
  explicit Look(const Rooms*& rooms) : rooms_(rooms) {}
  bool FailsAt(int32_t sequence, int) override {
    const Sequence& looked_at = *rooms_->table.Lookup(sequence);
    step_bytes = looked_at.step_bytes;
    guaranteed = looked_at.account->floor_bytes();
    return false;
  }
  size_t step_bytes = 0, guaranteed = 0;

 private:
  const Rooms*& rooms_;
};

TEST(BlockRunner, RowsInFlightAreGuaranteedWhileTheStepRuns) {
  const Rooms* looked_at = nullptr;
  Look look(looked_at);
  EngineOptions options = TinyOptions("keydiff", size_t{1} << 20);
  options.faults = &look;
  Rooms rooms(options);
  looked_at = &rooms;
  Sequence& sequence = rooms.New();
  ASSERT_TRUE(rooms.Read(sequence, 50));
  EXPECT_EQ(look.step_bytes, sequence.setup->flight.Bytes(50, 1));
  EXPECT_GE(look.guaranteed, sequence.floor_bytes);
  EXPECT_EQ(sequence.step_bytes, 0U);
  EXPECT_EQ(sequence.account->floor_bytes(), sequence.floor_bytes);
}

TEST(BlockRunner, WhoDropsIsNeverFull) {
  for (const char* recipe : {"keydiff", "snapkv:window=8", "layer_defensivekv"}) {
    SCOPED_TRACE(recipe);
    EngineOptions options = TinyOptions(recipe, size_t{700} << 10);
    options.num_ctx = 4000;
    Rooms rooms(options);
    std::vector<Sequence*> sequences;
    for (int i = 0; i < 3; ++i) sequences.push_back(&rooms.New(size_t{90} << 10, size_t{400} << 10));
    std::mt19937 random(7);
    for (int step = 0; step < 150; ++step) {
      rooms.runner.Begin();
      const std::vector<int32_t> tokens(64, 5 + step % 50);
      size_t left = 64;
      for (Sequence* sequence : sequences) {
        const size_t rows = std::min<size_t>(left, random() % 3 == 0 ? 48 : random() % 16);
        if (rows == 0 || sequence->next_position + 64 > 4000) continue;
        left -= rows;
        RowGroup& group = rooms.runner.Add(*sequence, std::span(tokens).first(rows), rows - 1, 0);
        group.settles = random() % 2 == 0;
      }
      if (rooms.runner.groups().empty()) continue;
      rooms.runner.Run();
      for (const RowGroup& group : rooms.runner.groups()) ASSERT_TRUE(group.status()) << group.error->message;
      ASSERT_LE(rooms.core.ledger->used_bytes(), rooms.core.plan.budget_bytes);
    }
    EXPECT_TRUE(rooms.core.cache->Verify());
  }
}

TEST(BlockRunner, NobodyWaitsForACancelledSequenceThatIsGone) {
  Rooms rooms(TinyOptions("full", size_t{2} << 20));
  Sequence& other = rooms.New();
  const SequenceId gone = rooms.New().id;
  rooms.table.Free(gone);
  rooms.runner.cancels().Add(gone);  // from another thread, which did not know
  ASSERT_TRUE(rooms.Read(other, 5));
  EXPECT_FALSE(rooms.runner.cancels().any());
  rooms.runner.cancels().Add(other.id);
  const Status status = rooms.Read(other, 5);
  ASSERT_FALSE(status);
  EXPECT_EQ(status.error().code, ErrorCode::kCancelled);
  EXPECT_TRUE(rooms.runner.cancels().any()) << "until it is freed";
}

}  // namespace
}  // namespace pith
