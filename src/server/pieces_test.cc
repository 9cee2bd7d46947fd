#include "server/pieces.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <random>

namespace pith::server {
namespace {

using Ranges = std::vector<std::pair<int32_t, int32_t>>;

std::vector<int32_t> Counted(int32_t from, int32_t to) {
  std::vector<int32_t> tokens(static_cast<size_t>(to - from));
  std::iota(tokens.begin(), tokens.end(), from);
  return tokens;
}

std::vector<int32_t> Joined(std::initializer_list<std::vector<int32_t>> parts) {
  std::vector<int32_t> all;
  for (const std::vector<int32_t>& part : parts) all.insert(all.end(), part.begin(), part.end());
  return all;
}

std::vector<Piece> Find(const std::vector<int32_t>& text, const std::vector<int32_t>& other, size_t least,
                        size_t begin = 0) {
  return FindPieces(text, begin, text.size(), other, Ranges{{0, static_cast<int32_t>(other.size())}}, least);
}

TEST(Pieces, WhatWasInsertedLeftOutOrReplacedLiesBetween) {
  const std::vector<int32_t> other = Counted(0, 100);
  EXPECT_EQ(Find(Joined({Counted(0, 30), Counted(500, 520), Counted(30, 100)}), other, 10),
            (std::vector<Piece>{{0, 0, 30}, {50, 30, 70}}));
  EXPECT_EQ(Find(Joined({Counted(0, 30), Counted(60, 100)}), other, 10),
            (std::vector<Piece>{{0, 0, 30}, {30, 60, 40}}));
  EXPECT_EQ(Find(Joined({Counted(0, 30), {777}, Counted(31, 100)}), other, 10),
            (std::vector<Piece>{{0, 0, 30}, {31, 31, 69}}));
  EXPECT_EQ(Find(Joined({Counted(0, 30), {777}, Counted(31, 100)}), other, 10, 30), (std::vector<Piece>{{31, 31, 69}}));
  EXPECT_TRUE(Find(Counted(200, 300), other, 10).empty());
}

TEST(Pieces, ShortOnesAndThoseOutOfOrderStay) {
  const std::vector<int32_t> other = Counted(0, 100);
  const std::vector<int32_t> text = Joined({Counted(50, 59), {777}, Counted(60, 70), {778}, Counted(10, 40)});
  EXPECT_EQ(Find(text, other, 10), (std::vector<Piece>{{10, 60, 10}})) << "9 are too few, 10 to 40 lie before";
  EXPECT_EQ(Find(text, other, 9), (std::vector<Piece>{{0, 50, 9}, {10, 60, 10}}));
  EXPECT_TRUE(Find(text, other, 11).size() == 1 && Find(text, other, 11).front() == (Piece{21, 10, 30}));
  EXPECT_TRUE(Find(text, other, 31).empty());
  EXPECT_TRUE(Find({}, other, 5).empty());
  EXPECT_TRUE(Find(text, {}, 5).empty());
}

TEST(Pieces, NoneGoesBeyondARange) {
  const std::vector<int32_t> other = Counted(0, 100), text = Joined({{777}, Counted(20, 90)});
  EXPECT_EQ(FindPieces(text, 0, text.size(), other, Ranges{{0, 40}, {50, 60}, {65, 300}}, 10),
            (std::vector<Piece>{{1, 20, 20}, {31, 50, 10}, {46, 65, 25}}));
  EXPECT_EQ(FindPieces(text, 0, 60, other, Ranges{{65, 300}}, 10), (std::vector<Piece>{{46, 65, 14}}));
  EXPECT_TRUE(FindPieces(text, 0, text.size(), other, {}, 10).empty());
}

TEST(Pieces, OfTextsThatRepeatThemselvesTheLongestIsTaken) {
  const std::vector<int32_t> phrase = Counted(0, 12);
  const std::vector<int32_t> other = Joined({phrase, {100}, phrase, {101, 102, 103}, phrase, {104}});
  EXPECT_EQ(Find(Joined({{9}, phrase, {101, 102, 103}}), other, 5), (std::vector<Piece>{{1, 13, 15}}));
  const std::vector<int32_t> same(5000, 7);
  EXPECT_EQ(TokensOf(Find(same, same, 16)), 5000U);
}

TEST(Pieces, AreWhatTheySay) {
  std::mt19937 random(3);
  for (int round = 0; round < 300; ++round) {
    std::vector<int32_t> other(200), text;
    for (int32_t& token : other) token = static_cast<int32_t>(random() % 3);
    for (size_t at = 0; at < other.size();) {
      const size_t count = std::min<size_t>(1 + random() % 60, other.size() - at);
      if (random() % 4 != 0) text.insert(text.end(), &other[at], &other[at] + count);
      if (random() % 2 == 0) text.push_back(static_cast<int32_t>(random() % 4));
      at += count;
    }
    const size_t least = 1 + random() % 20, begin = random() % (text.size() + 1);
    size_t at = begin, from = 0;
    for (const Piece& piece : Find(text, other, least, begin)) {
      ASSERT_GE(piece.count, least);
      ASSERT_GE(piece.at, at);
      ASSERT_GE(piece.from, from);
      at = piece.end(), from = piece.from + piece.count;
      ASSERT_LE(at, text.size());
      ASSERT_LE(from, other.size());
      ASSERT_TRUE(std::equal(&text[piece.at], &text[piece.at] + piece.count, &other[piece.from]));
    }
  }
}

TEST(Pieces, WhatIsDoneIsCutOff) {
  std::vector<Piece> pieces = {{10, 50, 10}, {30, 70, 10}};
  DropBefore(5, pieces);
  EXPECT_EQ(pieces, (std::vector<Piece>{{10, 50, 10}, {30, 70, 10}}));
  DropBefore(13, pieces);
  EXPECT_EQ(pieces, (std::vector<Piece>{{13, 53, 7}, {30, 70, 10}}));
  EXPECT_EQ(TokensOf(pieces), 17U);
  DropBefore(30, pieces);
  EXPECT_EQ(pieces, (std::vector<Piece>{{30, 70, 10}}));
  DropBefore(40, pieces);
  EXPECT_TRUE(pieces.empty());
}

}  // namespace
}  // namespace pith::server
