#include "server/prefixes.h"

#include <gtest/gtest.h>

#include <numeric>

namespace pith::server {
namespace {

Prefix Of(SequenceId sequence, size_t num_tokens, size_t bytes, bool checkpoint = false) {
  Prefix prefix;
  prefix.sequence = sequence, prefix.checkpoint = checkpoint, prefix.bytes = bytes;
  prefix.tokens.resize(num_tokens);
  std::iota(prefix.tokens.begin(), prefix.tokens.end(), sequence * 100000);
  return prefix;
}

TEST(PrefixStore, EqualOnesLeaveInTheOrderOfTheirLastUse) {
  PrefixStore store;
  for (int i = 0; i < 4; ++i) store.Add(Of(i, 100, 1000));
  store.Touch(0);
  std::vector<SequenceId> gone;
  while (const auto victim = store.TakeVictim()) gone.push_back(victim->sequence);
  EXPECT_EQ(gone, (std::vector<SequenceId>{1, 2, 3, 0}));
  EXPECT_FALSE(store.TakeVictim());
}

TEST(PrefixStore, WhatIsCheapToHoldAndDearToReadStaysLonger) {
  PrefixStore store;
  store.Add(Of(0, 100, 100000));               // a tenth of the tokens in the same bytes
  store.Add(Of(1, 1000, 100000));
  store.Add(Of(2, 1000, 100000, true));        // what others begin with
  EXPECT_EQ(store.TakeVictim()->sequence, 0);
  EXPECT_EQ(store.TakeVictim()->sequence, 1);
  // Whoever comes now is as young as those that went were old: nothing stays for ever.
  std::vector<SequenceId> gone;
  for (int i = 3; i < 10 && (gone.empty() || gone.back() != 2); ++i) {
    store.Add(Of(i, 1000, 100000));
    gone.push_back(store.TakeVictim()->sequence);
  }
  EXPECT_EQ(gone.back(), 2);
}

TEST(PrefixStore, TheMostTokensWinThenHintsThenTheNewest) {
  PrefixStore store;
  for (int i = 0; i < 3; ++i) store.Add(Of(i, 100, 1000));
  Prefix hinted = Of(3, 100, 1000);
  hinted.cache_key = "me";
  hinted.slot = 2;
  store.Add(std::move(hinted));
  store.Add(Of(4, 100, 1000));
  const auto equal = [](const Prefix&) { return size_t{50}; };
  const auto sequence = [&](int index) { return store.prefixes()[static_cast<size_t>(index)].sequence; };
  EXPECT_EQ(sequence(store.Find("", -1, equal)), 4);
  EXPECT_EQ(sequence(store.Find("me", -1, equal)), 3);
  EXPECT_EQ(sequence(store.Find("", 2, equal)), 3);
  EXPECT_EQ(sequence(store.Find("me", -1, [](const Prefix& p) { return size_t{p.sequence == 1 ? 60U : 50U}; })), 1);
  EXPECT_EQ(store.Find("me", 2, [](const Prefix&) { return size_t{0}; }), -1);
}

TEST(CommonTokens, EndsWhereTextsDiffer) {
  const std::vector<int32_t> a = {1, 2, 3, 4}, b = {1, 2, 9}, none;
  EXPECT_EQ(CommonTokens(a, b), 2U);
  EXPECT_EQ(CommonTokens(b, a), 2U);
  EXPECT_EQ(CommonTokens(a, a), 4U);
  EXPECT_EQ(CommonTokens(a, none), 0U);
}

}  // namespace
}  // namespace pith::server
