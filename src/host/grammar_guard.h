// How much a grammar costs libllama, before it pays.
//
// libllama follows a text through a grammar as a set of stacks, one for each way in which the rules fit so far. Of an
// ambiguous grammar (root ::= [a-z] x x x | [a-z], x ::= root | "") each character multiplies them, and one token may
// take minutes. This goes the same ways with stacks that share what they have in common, and stops at a bound.
#ifndef PITH_HOST_GRAMMAR_GUARD_H_
#define PITH_HOST_GRAMMAR_GUARD_H_

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

namespace pith {

class GrammarGuard {
 public:
  // GBNF within CheckGrammarBounds(). Null: it is none.
  static std::unique_ptr<GrammarGuard> Parse(std::string_view gbnf);

  // From the beginning. False: already there it costs too much.
  bool Start();
  // A token's bytes. False: accepting it would cost libllama too much.
  bool Accept(std::string_view piece);
  // Ways in which the text so far fits.
  size_t num_stacks() const { return stacks_.size(); }

 private:
  enum class Type : uint8_t { kEnd, kAlternative, kRule, kCharacter, kToken };
  struct Element {
    Type type = Type::kEnd;
    bool negated = false;
    uint32_t value = 0;  // kRule: its number; kCharacter: the first of ranges_
    uint32_t count = 0;  // kCharacter: of ranges_
  };
  using Rule = std::vector<Element>;
  // The top of a stack; what lies below is shared.
  struct Node {
    uint32_t element = 0;
    int32_t below = kEmpty;
    uint32_t depth = 1;
  };
  static constexpr int32_t kEmpty = -1;
  using Stacks = std::vector<int32_t>;

  class Parser;

  bool IsEnd(uint32_t element) const { return elements_[element].type <= Type::kAlternative; }
  bool Matches(const Element& element, uint32_t character) const;
  int32_t Push(uint32_t element, int32_t below);
  bool Advance(int32_t stack, Stacks& out);
  bool Follow(int32_t stack, const std::vector<uint32_t>& characters, Stacks& out);
  void DropUnused();

  std::vector<std::pair<uint32_t, uint32_t>> ranges_;
  std::vector<Element> elements_;      // of all rules
  std::vector<uint32_t> rule_starts_;  // in elements_
  uint32_t root_ = 0;

  std::vector<Node> nodes_;
  std::unordered_map<uint64_t, int32_t> known_;  // (element, below) -> node
  Stacks stacks_;
  std::string unfinished_;  // bytes of a character that the next token ends
  uint64_t cost_ = 0;       // of the token that is accepted
};

}  // namespace pith

#endif  // PITH_HOST_GRAMMAR_GUARD_H_
