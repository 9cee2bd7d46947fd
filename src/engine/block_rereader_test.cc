// Blocks that are repeated: what their entries are paid stays with them, competes, and costs no byte beyond the budget.
#include "engine/block_rereader.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "engine/entry_counts.h"
#include "engine/rooms_test_util.h"

namespace pith {
namespace {

using testing::Rooms;

constexpr int kBlock = 160;  // holds the instruction of a random model, whose words are bytes
const std::string kRecipe = "score=kvzip:read=blocks alloc=global";

EngineOptions Options(const std::string& recipe, size_t budget_bytes, int block_tokens = kBlock) {
  EngineOptions options = testing::TinyOptions(recipe, budget_bytes);
  options.block_tokens = block_tokens;
  return options;
}

// [layer, head] of every entry the number in its page, by its position.
using Scores = std::vector<std::map<int32_t, float>>;

Scores ScoresOf(const Rooms& rooms, const Sequence& sequence) {
  Scores scores;
  for (const HeadCache& head : std::as_const(*rooms.core.cache).heads(sequence.cache_id)) {
    std::vector<int32_t> positions(static_cast<size_t>(head.num_entries()));
    std::vector<float> column(positions.size());
    head.ReadPositions(positions);
    head.ReadColumn(sequence.setup->active.front().first_column, column);
    auto& of_head = scores.emplace_back();
    for (size_t i = 0; i < positions.size(); ++i) of_head[positions[i]] = column[i];
  }
  return scores;
}

TEST(BlockRereader, WhatABlockIsPaidIsWhatAWholePromptWouldBe) {
  EngineOptions after = Options("full", 0);
  after.compress = CompressMode::kAfter;
  after.later_recipes = {*ParseRecipe("kvzip")};
  Rooms rooms(after);
  Sequence& source = rooms.New();
  ASSERT_TRUE(rooms.Read(source, 70));
  const ActiveRecipe kvzip = source.setup->active.back();
  ASSERT_TRUE(rooms.reader.ReadAll(source, kvzip, {.num_sinks = kvzip.recipe.num_sinks}));

  Rooms by_blocks(Options(kRecipe, 0));
  Sequence& sequence = by_blocks.New();
  ASSERT_TRUE(by_blocks.Read(sequence, 70));
  EXPECT_EQ(FirstNotRepeated(by_blocks.core, sequence), 0) << "there is room, and nothing to be judged";
  sequence.share.keep_entries = 40;
  ASSERT_TRUE(by_blocks.rereader.Settle(sequence));
  EXPECT_EQ(FirstNotRepeated(by_blocks.core, sequence), 70);
  EXPECT_EQ(GlobalEntriesOf(by_blocks.core, sequence), 40 * by_blocks.core.layers.num_heads());
  const Scores scores = ScoresOf(by_blocks, sequence);
  size_t at = 0;
  double least_kept = 1, most_gone = 0;
  for (int layer = 0; layer < by_blocks.core.layers.count(); ++layer) {
    for (int head = 0; head < by_blocks.core.num_kv_heads(layer); ++head, ++at) {
      const std::span<const float> column = source.repeat->column(layer, head, 0);
      for (int32_t position = 4; position < 70; ++position) {
        const float paid = column[static_cast<size_t>(position)];
        const auto kept = scores[at].find(position);
        if (kept == scores[at].end()) {
          most_gone = std::max<double>(most_gone, paid);
        } else {
          EXPECT_NEAR(kept->second, paid, 1e-6);
          least_kept = std::min<double>(least_kept, paid);
        }
      }
    }
  }
  EXPECT_GE(least_kept, most_gone) << "of all heads together";
  EXPECT_GT(most_gone, 0) << "control";
}

TEST(BlockRereader, ScoresFollowTheirEntriesWithinTheBudget) {
  for (const std::string rest :
       {"", " format=q4", " act=residue", " act=residue format=q4", " act=residue format=q8"}) {
    SCOPED_TRACE(rest);
    const bool low = rest.find("format") != std::string::npos;
    const size_t ceiling = size_t{low ? 110U : 200U} << 10;
    Rooms rooms(Options(kRecipe + rest, size_t{1} << 20));
    Sequence& sequence = rooms.New(0, ceiling);
    sequence.prompt_continues = true;
    ASSERT_TRUE(rooms.Read(sequence, 500));
    ASSERT_LT(GlobalEntriesOf(rooms.core, sequence), 500 * rooms.core.layers.num_heads()) << "control: some are gone";
    EXPECT_LE(sequence.account->used_bytes(), ceiling);
    const Scores before = ScoresOf(rooms, sequence);
    const int32_t judged = FirstNotRepeated(rooms.core, sequence);
    EXPECT_GT(judged, 200);
    EXPECT_LT(judged, 500) << "the last block waits for the next one";

    const Result<SequenceId> forked = rooms.table.Fork(sequence);
    ASSERT_TRUE(forked);
    Sequence& fork = *rooms.table.Lookup(*forked);
    EXPECT_EQ(ScoresOf(rooms, fork), before);
    sequence.prompt_continues = false;
    ASSERT_TRUE(rooms.Read(sequence, 200));
    EXPECT_EQ(ScoresOf(rooms, fork), before) << "what the other is paid is its own";
    EXPECT_LE(GlobalEntriesOf(rooms.core, sequence),
              (sequence.share.keep_entries + (low ? kPageEntries : 0)) * rooms.core.layers.num_heads());
    EXPECT_EQ(FirstNotRepeated(rooms.core, sequence), 700);
    const Scores after = ScoresOf(rooms, sequence);
    size_t old = 0, paid = 0, gone = 0;
    for (size_t h = 0; h < after.size(); ++h) {
      for (const auto& [position, score] : after[h]) {
        EXPECT_GE(score, 0);
        EXPECT_LE(score, 1);
        paid += score > 0;
        if (position >= judged) continue;
        EXPECT_EQ(score, before[h].at(position));
        ++old;
      }
      for (const auto& [position, score] : before[h]) gone += !after[h].contains(position);
    }
    EXPECT_GT(old, 0U);
    EXPECT_GT(paid, old / 2);
    EXPECT_GT(gone, 0U) << "control: old and new ones compete";
    EXPECT_LE(rooms.core.ledger->peak_bytes(), rooms.core.ledger->limit_bytes());
    EXPECT_TRUE(rooms.core.cache->Verify());
  }
}

TEST(BlockRereader, DecodingRepeatsWhatWasWritten) {
  Rooms rooms(Options(kRecipe, size_t{1} << 20));
  Sequence& sequence = rooms.New(0, size_t{200} << 10);
  ASSERT_TRUE(rooms.Read(sequence, 400));
  const int32_t before = FirstNotRepeated(rooms.core, sequence);
  EXPECT_EQ(before, 400);
  for (int32_t i = 0; i < 200; ++i) {
    const int32_t token = 3 + i % 90;
    ASSERT_TRUE(rooms.steps.DecodeBatch({&sequence.id, 1}, {&token, 1}));
    ASSERT_LE(sequence.account->used_bytes(), size_t{200} << 10);
  }
  EXPECT_EQ(sequence.next_position, 600);
  EXPECT_GT(FirstNotRepeated(rooms.core, sequence), 450);
  EXPECT_LE(GlobalEntriesOf(rooms.core, sequence), sequence.most_entries() * rooms.core.layers.num_heads());
  EXPECT_TRUE(rooms.core.cache->Verify());
}

TEST(BlockRereader, WithoutRoomForAPassKeysJudge) {
  Rooms rooms(Options(kRecipe, size_t{1} << 20, 32));
  Sequence& sequence = rooms.New(0, size_t{200} << 10);
  EXPECT_FALSE(rooms.reader.BlockChunk(*sequence.setup->policy().repeat()));
  ASSERT_TRUE(rooms.Read(sequence, 500));
  EXPECT_EQ(FirstNotRepeated(rooms.core, sequence), 500);
  EXPECT_LE(sequence.account->used_bytes(), size_t{200} << 10);
  for (const auto& of_head : ScoresOf(rooms, sequence)) {
    for (const auto& [position, score] : of_head) EXPECT_EQ(score, 0);
  }
}

TEST(BlockRereader, AStopLeavesTheSequenceAsItWas) {
  Rooms rooms(Options(kRecipe, size_t{1} << 20));
  Sequence& sequence = rooms.New(0, size_t{200} << 10);
  sequence.prompt_continues = true;
  ASSERT_TRUE(rooms.Read(sequence, 500));
  const Scores before = ScoresOf(rooms, sequence);
  const auto used = [&] { return sequence.account->used_bytes() - sequence.logit_bytes.bytes(); };
  const size_t used_before = used();
  rooms.cancelled = true;
  const Status stopped = rooms.rereader.MakeRoomForRows(sequence, kBlock);
  ASSERT_FALSE(stopped);
  EXPECT_EQ(stopped.error().code, ErrorCode::kCancelled);
  EXPECT_EQ(ScoresOf(rooms, sequence), before);
  EXPECT_EQ(used(), used_before);
  rooms.cancelled = false;
  ASSERT_TRUE(rooms.rereader.MakeRoomForRows(sequence, kBlock));
  EXPECT_NE(ScoresOf(rooms, sequence), before) << "control";
}

TEST(BlockRereader, PromptsInPiecesBesideAnothersTokens) {
  Rooms rooms(Options(kRecipe, size_t{1} << 20));
  Sequence& reader = rooms.New(0, size_t{200} << 10);
  Sequence& writer = rooms.New(0, size_t{200} << 10);
  ASSERT_TRUE(rooms.Read(writer, 40));
  std::vector<int32_t> piece(48), token(1);
  for (int step = 0; step < 10; ++step) {
    for (size_t i = 0; i < piece.size(); ++i) piece[i] = (reader.next_position + static_cast<int>(i)) * 7 % 100 + 3;
    token[0] = 3 + step;
    reader.prompt_continues = step < 9;
    const StepItem items[] = {{.sequence = writer.id, .tokens = token}, {.sequence = reader.id, .tokens = piece}};
    Status statuses[2];
    rooms.steps.Step(items, statuses);
    ASSERT_TRUE(statuses[0] && statuses[1]);
    EXPECT_FALSE(writer.kept_logits.empty() && writer.logits_row < 0) << "a pass does not end their validity";
    EXPECT_LE(reader.account->used_bytes(), size_t{200} << 10);
  }
  EXPECT_EQ(writer.next_position, 50);
  EXPECT_EQ(reader.next_position, 480);
  EXPECT_EQ(FirstNotRepeated(rooms.core, reader), 480) << "the prompt's end was judged, too";
  EXPECT_LE(GlobalEntriesOf(rooms.core, reader), reader.share.keep_entries * rooms.core.layers.num_heads());
}

TEST(BlockRereader, AStepOfMoreRowsThanFindRoomAtOnce) {
  constexpr int kRows = 300;
  std::vector<int32_t> tokens;
  for (int i = 0; i < kRows; ++i) tokens.push_back(i * 7 % 100 + 3);
  Rooms rooms(Options(kRecipe, size_t{1} << 20, kRows + 1));
  Sequence& at_once = rooms.New(0, size_t{200} << 10);
  Sequence& writer = rooms.New(0, size_t{100} << 10);
  ASSERT_LT(rooms.rereader.RowsAtOnce(at_once), kRows / 2) << "control";
  const StepItem items[] = {{.sequence = writer.id, .tokens = {tokens.data(), 1}},
                            {.sequence = at_once.id, .tokens = tokens}};
  Status statuses[2];
  rooms.steps.Step(items, statuses);
  ASSERT_TRUE(statuses[0]);
  ASSERT_TRUE(statuses[1]) << statuses[1].error().message;
  EXPECT_EQ(at_once.next_position, kRows);
  EXPECT_LE(at_once.account->used_bytes(), size_t{200} << 10);
  EXPECT_EQ(FirstNotRepeated(rooms.core, at_once), kRows) << "it settled";

  Rooms alone(Options(kRecipe, size_t{1} << 20, kRows + 1));
  Sequence& prefilled = alone.New(0, size_t{200} << 10);
  ASSERT_TRUE(alone.Read(prefilled, kRows));
  EXPECT_EQ(GlobalEntriesOf(rooms.core, at_once), GlobalEntriesOf(alone.core, prefilled));
  EXPECT_EQ(rooms.Positions(at_once, 0, 0), alone.Positions(prefilled, 0, 0));
}

}  // namespace
}  // namespace pith
