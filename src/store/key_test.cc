#include "store/key.h"

#include <vector>

#include <gtest/gtest.h>

namespace pith::store {
namespace {

const KeySpace kSpace{.model = "smollm2", .format = "f16", .salt = ""};

std::vector<int32_t> Numbers(int32_t from, int32_t to) {
  std::vector<int32_t> numbers;
  for (int32_t i = from; i < to; ++i) numbers.push_back(i);
  return numbers;
}

// The worked example of the key's definition, in blocks of 4.
TEST(StoreKey, WorkedExample) {
  const Sha256Digest root = kSpace.Root();
  EXPECT_EQ(Key::Of(root).Hex(), "1f02964d6c4a47e6ce4b4175126fc825");
  const Chain chain = MakeChain(root, Numbers(100, 110), 4);
  ASSERT_EQ(chain.blocks.size(), 2U);
  EXPECT_EQ(chain.blocks[0].Hex(), "cfd7a8e28ba1b2dd056fb96c35ff817a");
  EXPECT_EQ(chain.blocks[1].Hex(), "4b393dc155664eefa6ce31795ef79a78");
  EXPECT_NE(chain.whole, chain.blocks[1]);
}

TEST(StoreKey, OneTokenChangesAllLaterKeysAndNoEarlierOne) {
  std::vector<int32_t> tokens = Numbers(0, 200);
  const Chain before = MakeChain(kSpace.Root(), tokens);
  tokens[100] += 1;
  const Chain after = MakeChain(kSpace.Root(), tokens);
  for (size_t i = 0; i < before.blocks.size(); ++i) {
    EXPECT_EQ(before.blocks[i] == after.blocks[i], (i + 1) * kBlockTokens <= 100) << i;
  }
  EXPECT_NE(before.whole, after.whole);
}

TEST(StoreKey, SpacesShareNothing) {
  const std::vector<int32_t> tokens = Numbers(0, 64);
  std::vector<Key> keys;
  for (const KeySpace& space : {kSpace, KeySpace{"other", "f16", ""}, KeySpace{"smollm2", "q8", ""},
                                KeySpace{"smollm2", "f16", "a"}, KeySpace{"", "", ""}}) {
    keys.push_back(MakeChain(space.Root(), tokens).whole);
  }
  for (size_t i = 0; i < keys.size(); ++i) {
    for (size_t j = 0; j < i; ++j) EXPECT_NE(keys[i], keys[j]);
  }
}

TEST(StoreKey, HexRoundTrip) {
  const Key key = Key::Of(kSpace.Root());
  EXPECT_EQ(Key::FromHex(key.Hex()), key);
  for (const char* bad : {"", "12", "1f02964d6c4a47e6ce4b4175126fc82g", "1f02964d6c4a47e6ce4b4175126fc8255"}) {
    EXPECT_FALSE(Key::FromHex(bad).has_value()) << bad;
  }
}

}  // namespace
}  // namespace pith::store
