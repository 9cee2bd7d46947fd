#include "host/grammar_guard.h"

#include <algorithm>
#include <optional>
#include <unordered_set>

namespace pith {
namespace {

// Steps and comparisons of stacks for one token; libllama takes some nanoseconds for each.
constexpr uint64_t kMostCost = 2'000'000;
constexpr size_t kMostStacks = 8000;
// Comparing or copying a stack costs by its depth.
constexpr uint32_t kDepthOfOne = 16;
constexpr size_t kMostUnused = 100'000;  // nodes, before they are dropped
constexpr size_t kMostElements = 4'000'000;
constexpr uint64_t kNoEnd = UINT64_MAX;
constexpr uint64_t kMostTimes = 2000;  // libllama takes more for no end

uint32_t Length(unsigned char first) {
  if (first < 0x80) return 1;
  if (first >= 0xf0) return 4;
  return first >= 0xe0 ? 3 : 2;
}

// The character at the front, which is taken off; nothing: it is not whole.
std::optional<uint32_t> TakeCharacter(std::string_view& text) {
  if (text.empty()) return std::nullopt;
  const auto first = static_cast<unsigned char>(text.front());
  const uint32_t length = Length(first);
  if (text.size() < length) return std::nullopt;
  uint32_t code = length == 1 ? first : first & (0xffu >> (length + 1));
  for (uint32_t i = 1; i < length; ++i) code = code << 6 | (static_cast<unsigned char>(text[i]) & 0x3fu);
  text.remove_prefix(length);
  return code;
}

}  // namespace

// libllama's parser of GBNF, with its way of writing out repetitions.
class GrammarGuard::Parser {
 public:
  Parser(std::string_view text, GrammarGuard& guard) : text_(text), guard_(guard) {}

  bool Run() {
    SkipBlanks(true);
    while (!text_.empty()) {
      const std::string_view name = TakeName();
      SkipBlanks(false);
      if (name.empty() || !Take("::=")) return false;
      SkipBlanks(true);
      if (!Alternatives(Symbol(name), false)) return false;
      if (!text_.empty() && text_.front() != '\n' && text_.front() != '\r') return false;
      SkipBlanks(true);
    }
    const auto root = symbols_.find("root");
    if (root == symbols_.end()) return false;
    guard_.root_ = root->second;
    for (const Rule& rule : rules_) {
      if (rule.empty()) return false;  // only named
      guard_.rule_starts_.push_back(static_cast<uint32_t>(guard_.elements_.size()));
      guard_.elements_.insert(guard_.elements_.end(), rule.begin(), rule.end());
    }
    return true;
  }

 private:
  static bool IsWord(char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-';
  }
  bool Take(std::string_view what) {
    if (!text_.starts_with(what)) return false;
    text_.remove_prefix(what.size());
    return true;
  }
  void SkipBlanks(bool lines) {
    while (!text_.empty()) {
      const char c = text_.front();
      if (c == '#') {
        text_.remove_prefix(std::min(text_.find_first_of("\r\n"), text_.size()));
      } else if (c == ' ' || c == '\t' || (lines && (c == '\r' || c == '\n'))) {
        text_.remove_prefix(1);
      } else {
        return;
      }
    }
  }
  std::string_view TakeName() {
    size_t length = 0;
    while (length < text_.size() && IsWord(text_[length])) ++length;
    const std::string_view name = text_.substr(0, length);
    text_.remove_prefix(length);
    return name;
  }
  uint32_t NewRule() {
    rules_.emplace_back();
    return static_cast<uint32_t>(rules_.size() - 1);
  }
  uint32_t Symbol(std::string_view name) {
    const auto [at, is_new] = symbols_.try_emplace(std::string(name), 0);
    if (is_new) at->second = NewRule();
    return at->second;
  }
  bool SetRule(uint32_t number, Rule rule) {
    num_elements_ += rule.size();
    rules_[number] = std::move(rule);
    return num_elements_ <= kMostElements;
  }

  bool Alternatives(uint32_t number, bool nested) {
    Rule rule;
    do {
      if (!rule.empty()) {
        SkipBlanks(true);
      }
      if (!Sequence(rule, nested)) return false;
      rule.push_back({.type = Type::kAlternative});
    } while (Take("|"));
    rule.back().type = Type::kEnd;
    return SetRule(number, std::move(rule));
  }

  std::optional<uint32_t> Character() {
    if (!Take("\\")) return TakeCharacter(text_);
    if (text_.empty()) return std::nullopt;
    const char kind = text_.front();
    text_.remove_prefix(1);
    switch (kind) {
      case 'x':
        return Hexadecimal(2);
      case 'u':
        return Hexadecimal(4);
      case 'U':
        return Hexadecimal(8);
      case 't':
        return '\t';
      case 'r':
        return '\r';
      case 'n':
        return '\n';
      default:
        return static_cast<unsigned char>(kind);
    }
  }
  std::optional<uint32_t> Hexadecimal(size_t digits) {
    uint32_t value = 0;
    for (size_t i = 0; i < digits; ++i) {
      if (text_.empty()) return std::nullopt;
      const char c = text_.front();
      const int digit = c >= '0' && c <= '9'   ? c - '0'
                        : c >= 'a' && c <= 'f' ? c - 'a' + 10
                        : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                               : -1;
      if (digit < 0) return std::nullopt;
      value = value << 4 | static_cast<uint32_t>(digit);
      text_.remove_prefix(1);
    }
    return value;
  }

  Element Range(std::vector<std::pair<uint32_t, uint32_t>> ranges, bool negated) {
    const auto first = static_cast<uint32_t>(guard_.ranges_.size());
    guard_.ranges_.insert(guard_.ranges_.end(), ranges.begin(), ranges.end());
    return {
        .type = Type::kCharacter, .negated = negated, .value = first, .count = static_cast<uint32_t>(ranges.size())};
  }

  bool Literal(Rule& rule) {
    while (!Take("\"")) {
      const std::optional<uint32_t> character = Character();
      if (!character) return false;
      rule.push_back(Range({{*character, *character}}, false));
    }
    return true;
  }
  bool Class(Rule& rule) {
    const bool negated = Take("^");
    std::vector<std::pair<uint32_t, uint32_t>> ranges;
    while (!Take("]")) {
      const std::optional<uint32_t> low = Character();
      if (!low) return false;
      std::optional<uint32_t> high = low;
      if (text_.size() > 1 && text_[0] == '-' && text_[1] != ']') {
        text_.remove_prefix(1);
        high = Character();
        if (!high) return false;
      }
      ranges.emplace_back(*low, *high);
    }
    rule.push_back(Range(std::move(ranges), negated));
    return true;
  }

  bool Sequence(Rule& rule, bool nested) {
    size_t last = rule.size();
    while (!text_.empty()) {
      const size_t before = rule.size();
      const char c = text_.front();
      if (Take("\"")) {
        last = before;
        if (!Literal(rule)) return false;
      } else if (Take("[")) {
        last = before;
        if (!Class(rule)) return false;
      } else if (c == '<' || c == '!') {
        const size_t end = text_.find('>');
        if (end == std::string_view::npos) return false;
        text_.remove_prefix(end + 1);
        last = before;
        rule.push_back({.type = Type::kToken});
      } else if (IsWord(c)) {
        last = before;
        rule.push_back({.type = Type::kRule, .value = Symbol(TakeName())});
      } else if (Take("(")) {
        SkipBlanks(true);
        const uint32_t group = NewRule();
        if (!Alternatives(group, true) || !Take(")")) return false;
        last = before;
        rule.push_back({.type = Type::kRule, .value = group});
      } else if (Take(".")) {
        last = before;
        rule.push_back(Range({}, true));
      } else if (c == '*' || c == '+' || c == '?' || c == '{') {
        if (!Repetition(rule, last)) return false;
      } else {
        break;
      }
      SkipBlanks(nested);
    }
    return true;
  }

  std::optional<uint64_t> Number() {
    size_t digits = 0;
    uint64_t value = 0;
    while (digits < text_.size() && text_[digits] >= '0' && text_[digits] <= '9' && digits < 9) {
      value = value * 10 + static_cast<uint64_t>(text_[digits++] - '0');
    }
    text_.remove_prefix(digits);
    return digits == 0 ? std::nullopt : std::optional(value);
  }
  bool Repetition(Rule& rule, size_t last) {
    if (last == rule.size()) return false;
    uint64_t least = 0, most = kNoEnd;
    if (Take("+")) {
      least = 1;
    } else if (Take("?")) {
      most = 1;
    } else if (!Take("*")) {
      text_.remove_prefix(1);
      SkipBlanks(false);
      const std::optional<uint64_t> first = Number();
      if (!first) return false;
      least = *first;
      SkipBlanks(false);
      if (Take(",")) {
        SkipBlanks(false);
        most = Number().value_or(kNoEnd);
        SkipBlanks(false);
      } else {
        most = least;
      }
      if (!Take("}")) return false;
      if (most != kNoEnd && most > kMostTimes) most = kNoEnd;
    }
    return WriteOut(rule, last, least, most);
  }
  // S{m,n}: m times S, then S' ::= S S'' | nothing, n - m deep; without an end S' ::= S S' | nothing.
  bool WriteOut(Rule& rule, size_t last, uint64_t least, uint64_t most) {
    const Rule part(rule.begin() + static_cast<std::ptrdiff_t>(last), rule.end());
    if (least == 0) rule.resize(last);
    if (least > kMostTimes || part.size() * std::max<uint64_t>(least, 1) > kMostElements) return false;
    for (uint64_t i = 1; i < least; ++i) rule.insert(rule.end(), part.begin(), part.end());
    const bool endless = most == kNoEnd;
    const uint64_t optional = endless ? 1 : most - std::min(least, most);
    uint32_t deepest = 0;
    for (uint64_t i = 0; i < optional; ++i) {
      const uint32_t number = NewRule();
      Rule more = part;
      if (i > 0 || endless) more.push_back({.type = Type::kRule, .value = endless ? number : deepest});
      more.push_back({.type = Type::kAlternative});
      more.push_back({.type = Type::kEnd});
      if (!SetRule(number, std::move(more))) return false;
      deepest = number;
    }
    if (optional > 0) rule.push_back({.type = Type::kRule, .value = deepest});
    return true;
  }

  std::string_view text_;
  GrammarGuard& guard_;
  std::map<std::string, uint32_t> symbols_;
  std::vector<Rule> rules_;
  size_t num_elements_ = 0;
};

std::unique_ptr<GrammarGuard> GrammarGuard::Parse(std::string_view gbnf) {
  auto guard = std::make_unique<GrammarGuard>();
  return Parser(gbnf, *guard).Run() ? std::move(guard) : nullptr;
}

bool GrammarGuard::Matches(const Element& element, uint32_t character) const {
  for (uint32_t i = 0; i < element.count; ++i) {
    const auto& [low, high] = ranges_[element.value + i];
    if (low <= character && character <= high) return !element.negated;
  }
  return element.negated;
}

int32_t GrammarGuard::Push(uint32_t element, int32_t below) {
  const uint64_t key = uint64_t{element} << 32 | static_cast<uint32_t>(below);
  const auto [at, is_new] = known_.try_emplace(key, static_cast<int32_t>(nodes_.size()));
  if (is_new) {
    const uint32_t depth = below == kEmpty ? 1 : nodes_[static_cast<size_t>(below)].depth + 1;
    nodes_.push_back({element, below, depth});
  }
  return at->second;
}

// The stack with characters on top that it may go on with.
bool GrammarGuard::Advance(int32_t stack, Stacks& out) {
  Stacks todo = {stack};
  std::unordered_set<int32_t> seen;
  while (!todo.empty()) {
    const int32_t top = todo.back();
    todo.pop_back();
    const uint32_t depth = top == kEmpty ? 0 : nodes_[static_cast<size_t>(top)].depth;
    cost_ += 1 + depth / kDepthOfOne;
    if (cost_ > kMostCost) return false;
    if (!seen.insert(top).second) continue;
    const Node node = top == kEmpty ? Node() : nodes_[static_cast<size_t>(top)];
    if (top == kEmpty || elements_[node.element].type != Type::kRule) {
      cost_ += out.size() * (1 + depth / kDepthOfOne);
      if (std::ranges::find(out, top) == out.end()) out.push_back(top);
      if (out.size() > kMostStacks) return false;
      continue;
    }
    const int32_t rest = IsEnd(node.element + 1) ? node.below : Push(node.element + 1, node.below);
    for (uint32_t at = rule_starts_[elements_[node.element].value];; ++at) {
      todo.push_back(IsEnd(at) ? rest : Push(at, rest));
      while (!IsEnd(at)) ++at;
      if (elements_[at].type == Type::kEnd) break;
    }
  }
  return true;
}

bool GrammarGuard::Follow(int32_t stack, const std::vector<uint32_t>& characters, Stacks& out) {
  const auto behind = [this](int32_t top) {
    const Node& node = nodes_[static_cast<size_t>(top)];
    return IsEnd(node.element + 1) ? node.below : Push(node.element + 1, node.below);
  };
  if (elements_[nodes_[static_cast<size_t>(stack)].element].type == Type::kToken) return Advance(behind(stack), out);
  Stacks now = {stack}, next;
  for (const uint32_t character : characters) {
    next.clear();
    for (const int32_t top : now) {
      if (top == kEmpty) continue;
      const Element& element = elements_[nodes_[static_cast<size_t>(top)].element];
      if (element.type != Type::kCharacter || !Matches(element, character)) continue;
      if (!Advance(behind(top), next)) return false;
    }
    now.swap(next);
    if (now.empty()) return true;
  }
  for (const int32_t top : now) {
    cost_ += out.size();
    if (cost_ > kMostCost || out.size() > kMostStacks) return false;
    if (std::ranges::find(out, top) == out.end()) out.push_back(top);
  }
  return true;
}

bool GrammarGuard::Start() {
  nodes_.clear(), known_.clear(), stacks_.clear(), unfinished_.clear();
  cost_ = 0;
  for (uint32_t at = rule_starts_[root_];; ++at) {
    if (!Advance(IsEnd(at) ? kEmpty : Push(at, kEmpty), stacks_)) return false;
    while (!IsEnd(at)) ++at;
    if (elements_[at].type == Type::kEnd) return true;
  }
}

bool GrammarGuard::Accept(std::string_view piece) {
  unfinished_ += piece;
  std::string_view text = unfinished_;
  std::vector<uint32_t> characters;
  while (const std::optional<uint32_t> character = TakeCharacter(text)) characters.push_back(*character);
  unfinished_ = std::string(text);
  cost_ = 0;
  Stacks next;
  for (const int32_t stack : stacks_) {
    if (stack != kEmpty && !Follow(stack, characters, next)) return false;
  }
  stacks_.swap(next);
  if (nodes_.size() > kMostUnused) DropUnused();
  return true;
}

void GrammarGuard::DropUnused() {
  const std::vector<Node> old = std::move(nodes_);
  nodes_.clear(), known_.clear();
  std::vector<int32_t> moved(old.size(), kEmpty - 1);
  for (int32_t& stack : stacks_) {
    std::vector<int32_t> path;  // from the top down to what has moved already
    int32_t at = stack;
    for (; at != kEmpty && moved[static_cast<size_t>(at)] < kEmpty; at = old[static_cast<size_t>(at)].below)
      path.push_back(at);
    int32_t below = at == kEmpty ? kEmpty : moved[static_cast<size_t>(at)];
    for (; !path.empty(); path.pop_back()) {
      const auto index = static_cast<size_t>(path.back());
      below = moved[index] = Push(old[index].element, below);
    }
    stack = below;
  }
}

}  // namespace pith
