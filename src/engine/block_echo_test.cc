// Blocks that are judged by their own queries: against plain sums over keys and queries, and when they are not.
#include "engine/block_echo.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "engine/entry_counts.h"
#include "engine/rooms_test_util.h"
#include "host/halves.h"

namespace pith {
namespace {

using testing::Rooms;

constexpr int kSinks = 4;

EngineOptions Options(const std::string& rest, size_t budget_bytes, int block_tokens) {
  EngineOptions options = testing::TinyOptions("score=kvzip:read=echo alloc=global" + rest, budget_bytes);
  options.block_tokens = block_tokens;
  return options;
}

std::vector<float> ColumnOf(const Rooms& rooms, const Sequence& sequence, int layer, int kv_head) {
  const HeadCache& head = rooms.core.cache->head(sequence.cache_id, layer, kv_head);
  std::vector<float> column(static_cast<size_t>(head.num_entries()));
  head.ReadColumn(sequence.setup->active.front().first_column, column);
  return column;
}

// Of rows [start, end), the largest share of a softmax over the first tokens, the entries of the page in which they
// begin, themselves and themselves turned on, that one of their queries, turned on as far, pays to each.
std::vector<float> PaidByEcho(const Rooms& rooms, const Sequence& sequence, int layer, int kv_head, int start,
                              bool turns_queries) {
  const LayerShape& shape = rooms.core.shape(layer);
  const HeadCache& head = rooms.core.cache->head(sequence.cache_id, layer, kv_head);
  const auto dim = static_cast<size_t>(shape.key_dim);
  const int end = head.num_entries(), rows = end - start, group = shape.num_heads / shape.num_kv_heads;
  std::vector<float> keys(static_cast<size_t>(end) * dim), factors(2 * shape.rotation->pairs.size());
  head.ReadKeys(keys.data());
  shape.rotation->TurnOn(rows, factors);
  const auto key = [&](int i) {
    return std::vector<float>(keys.begin() + i * shape.key_dim, keys.begin() + (i + 1) * shape.key_dim);
  };
  std::vector<std::vector<float>> seen;
  const int page = start / kPageEntries * kPageEntries;
  for (int i = 0; i < std::min(kSinks, page); ++i) seen.push_back(key(i));
  const size_t first = seen.size() + static_cast<size_t>(start - page);
  for (int i = page; i < end; ++i) seen.push_back(key(i));
  const size_t echo = seen.size();
  for (int i = start; i < end; ++i) {
    seen.push_back(key(i));
    shape.rotation->Apply(factors, seen.back().data());
  }
  std::vector<float> paid(static_cast<size_t>(rows), 0);
  for (int t = 0; t < rows; ++t) {
    for (int g = 0; g < group; ++g) {
      std::vector<float> query(dim);
      ToFloats(sequence.queries.row(rooms.core.layers.IndexOf(layer), start + t) +
                   static_cast<size_t>(kv_head * group + g) * dim,
               dim, query.data());
      if (turns_queries) shape.rotation->Apply(factors, query.data());
      std::vector<double> weights;
      for (const std::vector<float>& of_key : seen) {
        if (weights.size() > echo + static_cast<size_t>(t)) break;
        double product = 0;
        for (size_t d = 0; d < dim; ++d) product += static_cast<double>(query[d]) * static_cast<double>(of_key[d]);
        weights.push_back(std::exp(product * static_cast<double>(rooms.core.ops->params(layer).scale)));
      }
      double sum = 0;
      for (const double weight : weights) sum += weight;
      for (size_t i = 0; i < paid.size(); ++i)
        paid[i] = std::max(paid[i], static_cast<float>(weights[first + i] / sum));
    }
  }
  return paid;
}

TEST(BlockEcho, IsWhatItsQueriesTurnedOnPay) {
  EngineOptions options = Options("", 0, 64);
  options.keep_queries = 64;
  Rooms rooms(options);
  Sequence& sequence = rooms.New();
  for (const int rows : {40, 50}) {
    const int start = sequence.next_position;
    ASSERT_TRUE(rooms.Read(sequence, rows));
    float largest_error = 0, unturned_error = 0;
    for (int layer = 0; layer < rooms.core.layers.count(); ++layer) {
      for (int head = 0; head < rooms.core.num_kv_heads(layer); ++head) {
        const std::vector<float> column = ColumnOf(rooms, sequence, layer, head);
        const std::vector<float> paid = PaidByEcho(rooms, sequence, layer, head, start, true);
        const std::vector<float> unturned = PaidByEcho(rooms, sequence, layer, head, start, false);
        for (size_t i = 0; i < paid.size(); ++i) {
          const float found = column[static_cast<size_t>(start) + i];
          largest_error = std::max(largest_error, std::abs(found - paid[i]));
          unturned_error = std::max(unturned_error, std::abs(found - unturned[i]));
        }
      }
    }
    EXPECT_LT(largest_error, 1e-4F) << "as far as queries in 16 bits say, of " << rows << " rows";
    EXPECT_GT(unturned_error, 1e-3F) << "control";
  }
}

TEST(BlockEcho, KeepsItsTurnedQueriesWhereEntriesAreFitted) {
  for (const bool fits : {true, false}) {
    EngineOptions options = Options(fits ? " act=residue" : "", 0, 64);
    options.keep_queries = 64;
    Rooms rooms(options);
    Sequence& sequence = rooms.New();
    std::vector<int32_t> tokens;
    for (int i = 0; i < 40; ++i) tokens.push_back(i * 7 % 100 + 3);
    rooms.runner.Begin();
    rooms.runner.Add(sequence, tokens, tokens.size() - 1, 0);
    rooms.runner.Run();
    ASSERT_TRUE(rooms.runner.groups().front().status());
    const ReferenceQueries kept = rooms.runner.TakeEchoedQueries(sequence);
    EXPECT_TRUE(rooms.runner.TakeEchoedQueries(sequence).empty()) << "taken once";
    ASSERT_EQ(kept.empty(), !fits) << "control: nothing is fitted";
    if (!fits) continue;
    ASSERT_EQ(kept.num_rows(), 40);
    for (int layer = 0; layer < rooms.core.layers.count(); ++layer) {
      const LayerShape& shape = rooms.core.shape(rooms.core.layers.LayerOf(layer));
      const auto dim = static_cast<size_t>(shape.key_dim);
      std::vector<float> factors(2 * shape.rotation->pairs.size()), query(dim), found(dim);
      shape.rotation->TurnOn(40, factors);
      for (size_t at = 0; at < 40 * kept.width(layer); at += dim) {
        const auto row = static_cast<int>(at / kept.width(layer));
        ToFloats(sequence.queries.row(layer, row) + at % kept.width(layer), dim, query.data());
        shape.rotation->Apply(factors, query.data());
        ToFloats(kept.rows(layer) + at, dim, found.data());
        for (size_t d = 0; d < dim; ++d) ASSERT_NEAR(found[d], query[d], 2e-3F * (1 + std::abs(query[d])));
      }
    }
  }
}

TEST(BlockEcho, WaitsForARepetitionToWhichEntriesAreFittedWhereLittleStays) {
  const auto first_not_judged = [](const std::string& rest, int keep) {
    Rooms rooms(Options(rest, 0, 64));
    Sequence& sequence = rooms.New();
    sequence.share.keep_entries = keep;
    sequence.share.slack_entries = 0;
    const std::vector<int32_t> tokens(40, 7);
    rooms.runner.Begin();
    rooms.runner.Add(sequence, tokens, tokens.size() - 1, 0);
    rooms.runner.Run();
    EXPECT_TRUE(rooms.runner.groups().front().status());
    return FirstNotRepeated(rooms.core, sequence);
  };
  EXPECT_EQ(first_not_judged(" act=residue", 24), 40);
  EXPECT_EQ(first_not_judged(" act=residue", 23), 0) << "less than 60% of what was read";
  EXPECT_EQ(first_not_judged("", 23), 40) << "control: nothing is fitted";
}

// Of the first layer, whose keys hang on nothing that was dropped: entries with other keys than their tokens have.
TEST(BlockEcho, EntriesStandInForWhatGoes) {
  const auto count_made = [](const std::string& rest) {
    Rooms full(testing::TinyOptions("full", size_t{4} << 20)), rooms(Options(rest, size_t{1} << 20, 64));
    Sequence& whole = full.New();
    Sequence& sequence = rooms.New(0, size_t{200} << 10);
    EXPECT_TRUE(full.Read(whole, 480));
    EXPECT_TRUE(rooms.Read(sequence, 480));
    EXPECT_LE(sequence.account->used_bytes(), size_t{200} << 10);
    EXPECT_LE(rooms.core.ledger->peak_bytes(), rooms.core.ledger->limit_bytes());
    EXPECT_TRUE(rooms.core.cache->Verify());
    int num_made = 0;
    for (int head = 0; head < rooms.core.num_kv_heads(0); ++head) {
      const HeadCache& all = full.core.cache->head(whole.cache_id, 0, head);
      const HeadCache& left = rooms.core.cache->head(sequence.cache_id, 0, head);
      const auto dim = static_cast<size_t>(all.layout().key_dim), count = static_cast<size_t>(left.num_entries());
      std::vector<float> keys(static_cast<size_t>(all.num_entries()) * dim), own(count * dim);
      std::vector<int32_t> positions(count);
      all.ReadKeys(keys.data());
      left.ReadKeys(own.data());
      left.ReadPositions(positions);
      for (size_t i = 0; i < count; ++i) {
        const float* key = keys.data() + static_cast<size_t>(positions[i]) * dim;
        num_made += !std::equal(key, key + dim, own.data() + i * dim,
                                [](float a, float b) { return std::abs(a - b) < 1e-2F * (1 + std::abs(a)); });
      }
    }
    return num_made;
  };
  EXPECT_GT(count_made(" act=residue"), 0);
  EXPECT_EQ(count_made(""), 0) << "control";
}

TEST(BlockEcho, WaitsForARepetitionBehindFewRows) {
  Rooms rooms(Options("", 0, 160));
  Sequence& sequence = rooms.New();
  ASSERT_TRUE(rooms.Read(sequence, 40));
  EXPECT_EQ(FirstNotRepeated(rooms.core, sequence), 40);
  ASSERT_TRUE(rooms.Read(sequence, 8));
  EXPECT_EQ(FirstNotRepeated(rooms.core, sequence), 40) << "too few to compete";
  ASSERT_TRUE(rooms.Read(sequence, 40));
  EXPECT_EQ(FirstNotRepeated(rooms.core, sequence), 40) << "what waits is repeated with all behind it";
  sequence.share.keep_entries = 60;
  ASSERT_TRUE(rooms.rereader.Settle(sequence));
  EXPECT_EQ(FirstNotRepeated(rooms.core, sequence), 88);
  ASSERT_TRUE(rooms.Read(sequence, 40));
  EXPECT_EQ(FirstNotRepeated(rooms.core, sequence), 128) << "nothing waits any more";
}

// Blocks in which no repetition would find its place.
TEST(BlockEcho, JudgesBlocksOfAnySizeWithinTheBudget) {
  for (const char* format : {"", " format=q4"}) {
    SCOPED_TRACE(format);
    const size_t ceiling = size_t{*format != 0 ? 110U : 200U} << 10;
    Rooms rooms(Options(format, size_t{1} << 20, 32));
    Sequence& sequence = rooms.New(0, ceiling);
    ASSERT_FALSE(rooms.reader.BlockChunk(*sequence.setup->policy().repeat()));
    ASSERT_TRUE(rooms.Read(sequence, 480));
    EXPECT_LT(GlobalEntriesOf(rooms.core, sequence), 480 * rooms.core.layers.num_heads()) << "control: some are gone";
    EXPECT_EQ(FirstNotRepeated(rooms.core, sequence), 480);
    EXPECT_LE(sequence.account->used_bytes(), ceiling);
    for (int layer = 0; layer < rooms.core.layers.count(); ++layer) {
      for (int head = 0; head < rooms.core.num_kv_heads(layer); ++head) {
        for (const float paid : ColumnOf(rooms, sequence, layer, head)) {
          EXPECT_GT(paid, 0);
          EXPECT_LE(paid, 1);
        }
      }
    }
    EXPECT_LE(rooms.core.ledger->peak_bytes(), rooms.core.ledger->limit_bytes());
    EXPECT_TRUE(rooms.core.cache->Verify());
  }
}

}  // namespace
}  // namespace pith
