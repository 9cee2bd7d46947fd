#include "server/text_memory.h"

#include <gtest/gtest.h>


namespace pith::testing {
namespace {

// Tokens of one byte each, or of two where a text is written in another way.
class PairModel final : public TextModel {
 public:
  Result<std::vector<int32_t>> Tokenize(std::string_view text, bool, bool) const override {
    return std::vector<int32_t>(text.begin(), text.end());
  }
  std::string Piece(int32_t) const override { return {}; }
  bool IsEnd(int32_t) const override { return false; }
  bool has_template() const override { return false; }
  Result<std::string> Render(std::span<const ChatMessage>, bool) const override { return std::string(); }
};

TEST(TextMemory, ATextGoesOnFromItsOwnTokens) {
  server::TextMemory memory;
  const PairModel model;
  memory.Add("me", "abc", {'a', 1000});  // "bc" in one
  EXPECT_EQ(*memory.Tokenize(model, "me", "abcde"), (std::vector<int32_t>{'a', 1000, 'd', 'e'}));
  EXPECT_EQ(*memory.Tokenize(model, "me", "abc"), (std::vector<int32_t>{'a', 1000}));
  EXPECT_EQ(*memory.Tokenize(model, "me", "abd"), (std::vector<int32_t>{'a', 'b', 'd'}));
  EXPECT_EQ(*memory.Tokenize(model, "you", "abcde"), (std::vector<int32_t>{'a', 'b', 'c', 'd', 'e'}));
  memory.Add("me", "abcdef", {'a', 1000, 1001, 'f'});
  EXPECT_EQ(*memory.Tokenize(model, "me", "abcdefg"), (std::vector<int32_t>{'a', 1000, 1001, 'f', 'g'}));
}

TEST(TextMemory, StaysWithinItsBytes) {
  server::TextMemory memory(10000);
  for (int i = 0; i < 100; ++i)
    memory.Add("me", std::to_string(i) + std::string(500, 'x'), std::vector<int32_t>(100, i));
  EXPECT_LE(memory.bytes(), 10000u);
  EXPECT_GT(memory.bytes(), 5000u);
  memory.Add("me", std::string(9000, 'y'), {1});
  EXPECT_EQ(memory.Tokenize(PairModel(), "me", std::string(9000, 'y'))->size(), 9000u) << "too long to be remembered";
}

}  // namespace
}  // namespace pith::testing
