#include "host/grammar_bounds.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "base/escaped.h"
#include "host/pattern_syntax.h"

namespace pith {
namespace {

constexpr size_t kLongestGrammar = size_t{256} << 10;
constexpr int kDeepestGroup = 64;
constexpr uint64_t kMostTimes = 2000;    // libllama's own bound of one repetition, and of those inside each other
constexpr uint64_t kMostRules = 200000;  // that all repetitions of a grammar make
constexpr double kMostNested = 1e12;     // times, of repetitions inside each other, through rules
constexpr double kMostNestedItems = 1e9;  // the same of a schema's arrays
constexpr double kMostLeastItems = 1e5;   // that each answer would have to have
constexpr double kMostPlaces = 4000;     // where a text may be at once, among alternatives
constexpr double kMostSkipped = 300;     // the same, behind what may be empty
constexpr int kDeepestRules = 1000;      // and groups, inside each other
constexpr size_t kLongestSchema = size_t{256} << 10;
constexpr size_t kDeepestSchema = 48;
constexpr size_t kMostNodes = 2000;      // of a schema with its alternatives written out
constexpr size_t kMostProperties = 256;  // of one object: the converter writes rules for every pair of optional ones
constexpr size_t kLongestName = 256;
constexpr double kMostInteger = 9e15;

// "{m}", "{m,}", "{m,n}" or "{,n}", of GBNF or of a regular expression.
struct Repetition {
  std::string_view text;                // between the braces
  std::optional<uint64_t> least, most;  // as they are written; most: behind the comma
  // That what is repeated may come, as far as that is bounded.
  uint64_t times() const { return std::max({least.value_or(0), most.value_or(0), uint64_t{1}}); }
};

// Which begins at `at`, and ends before it afterwards.
Repetition ReadRepetition(std::string_view text, size_t& at) {
  const size_t close = std::min(text.find('}', at), text.size());
  Repetition found{.text = text.substr(at + 1, close - at - 1), .least = {}, .most = {}};
  at = std::min(close + 1, text.size());
  const size_t comma = std::min(found.text.find(','), found.text.size());
  const auto read = [](std::string_view part) -> std::optional<uint64_t> {
    while (part.starts_with(' ')) part.remove_prefix(1);
    uint64_t number = 0;
    const std::errc error = std::from_chars(part.data(), part.data() + part.size(), number).ec;
    if (error == std::errc::result_out_of_range) return UINT64_MAX;
    return error == std::errc() ? std::optional(number) : std::nullopt;
  };
  found.least = read(found.text.substr(0, comma));
  if (comma < found.text.size()) found.most = read(found.text.substr(comma + 1));
  return found;
}

// Walks over GBNF; counts what its repetitions make.
class GrammarScan {
 public:
  explicit GrammarScan(std::string_view text) : text_(text) {}

  Status Run() {
    std::vector<uint64_t> groups;  // the elements since each open parenthesis began
    uint64_t elements = 0, last = 1, rules = 0;
    while (at_ < text_.size()) {
      const char c = text_[at_];
      if (c == '#') {
        at_ = std::min(text_.find('\n', at_), text_.size());
      } else if (c == '"' || c == '[') {
        last = Quoted(c == '"' ? '"' : ']');
        elements += last;
      } else if (c == '(') {
        groups.push_back(elements);
        if (groups.size() > kDeepestGroup)
          return InvalidArgument(
              fmt::format("the grammar has more than {} parentheses inside each other", kDeepestGroup));
        elements = 0;
        ++at_;
      } else if (c == ')') {
        last = std::max<uint64_t>(elements, 1);
        if (!groups.empty()) {
          elements += groups.back();
          groups.pop_back();
        }
        ++at_;
      } else if (c == '{') {
        PITH_ASSIGN_OR_RETURN(const uint64_t times, Times());
        rules += times * last;
        elements += times * last;
        last *= std::max<uint64_t>(times, 1);
        if (rules > kMostRules || last > kMostRules)
          return InvalidArgument("the grammar's repetitions make more rules than a request may have");
      } else {
        if (IsName(c)) {
          while (at_ < text_.size() && IsName(text_[at_])) ++at_;
          last = 1;
          ++elements;
        } else {
          ++at_;
        }
      }
    }
    return {};
  }

 private:
  static bool IsName(char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' || c == '_';
  }

  uint64_t Quoted(char end) {
    const size_t from = ++at_;
    while (at_ < text_.size() && text_[at_] != end) at_ += text_[at_] == '\\' ? 2 : 1;
    at_ = std::min(at_ + 1, text_.size());
    return end == '"' ? std::max<uint64_t>(at_ - from, 1) : 1;
  }

  Result<uint64_t> Times() {
    const Repetition found = ReadRepetition(text_, at_);
    if (found.least && found.most && *found.least > *found.most) {
      return InvalidArgument(
          fmt::format("the grammar's repetition {{{}}} ends before it begins", Escaped(found.text, 40)));
    }
    if (found.times() > kMostTimes)
      return InvalidArgument(fmt::format("the grammar repeats something more than {} times", kMostTimes));
    return found.times();
  }

  std::string_view text_;
  size_t at_ = 0;
};

// What libllama's parser of a text holds at once: the places of the grammar where the text may be. It looks at all of
// them for every token, and compares them with each other.
struct Places {
  bool may_be_empty = false;
  double first = 0;  // where what is described may begin
  double most = 0;   // anywhere in it
  double times = 1;  // that its innermost part may come
};

class GrammarPlaces {
 public:
  explicit GrammarPlaces(std::string_view text) : text_(text) { FindRules(); }

  Status Run() {
    for (const auto& rule : rules_) PITH_RETURN_IF_ERROR(OfRule(rule.first, 0));
    return {};
  }

 private:
  static bool IsName(char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' || c == '_';
  }
  void SkipBlanks(size_t& at) const {
    while (at < text_.size()) {
      if (text_[at] == '#')
        at = std::min(text_.find('\n', at), text_.size());
      else if (std::string_view(" \t\r\n").find(text_[at]) != std::string_view::npos)
        ++at;
      else
        return;
    }
  }
  std::string_view Name(size_t& at) const {
    const size_t from = at;
    while (at < text_.size() && IsName(text_[at])) ++at;
    return text_.substr(from, at - from);
  }
  bool BeginsRule(size_t at) const {
    if (Name(at).empty()) return false;
    while (at < text_.size() && (text_[at] == ' ' || text_[at] == '\t')) ++at;
    return text_.substr(at).starts_with("::=");
  }
  // Behind a literal or a class, which begins at `at`.
  void SkipQuoted(size_t& at) const {
    const char end = text_[at] == '"' ? '"' : ']';
    for (++at; at < text_.size() && text_[at] != end; ++at) at += text_[at] == '\\' ? 1 : 0;
    at = std::min(at + 1, text_.size());
  }

  void FindRules() {
    for (size_t at = 0; at < text_.size();) {
      SkipBlanks(at);
      if (at >= text_.size()) break;
      if (text_[at] == '"' || text_[at] == '[') {
        SkipQuoted(at);
      } else if (BeginsRule(at)) {
        const std::string name(Name(at));
        at = text_.find("::=", at) + 3;
        rules_[name] = at;
      } else if (Name(at).empty()) {
        ++at;
      }
    }
  }

  Result<Places> OfRule(const std::string& name, int depth) {
    if (const auto known = known_.find(name); known != known_.end()) return known->second;
    const auto rule = rules_.find(name);
    if (rule == rules_.end()) return Places{false, 1, 1};  // the parser's to refuse
    known_[name] = {false, 1, 1};                          // in itself
    size_t at = rule->second;
    PITH_ASSIGN_OR_RETURN(const Places places, Alternatives(at, depth));
    return known_[name] = places;
  }

  Result<Places> Alternatives(size_t& at, int depth) {
    if (depth > kDeepestRules) return InvalidArgument("the grammar's rules stand too deep inside each other");
    PITH_ASSIGN_OR_RETURN(Places all, Sequence(at, depth));
    while (at < text_.size() && text_[at] == '|') {
      PITH_ASSIGN_OR_RETURN(const Places one, Sequence(++at, depth));
      all.may_be_empty = all.may_be_empty || one.may_be_empty;
      all.first += one.first;
      all.most = std::max({all.most, one.most, all.first});
      all.times = std::max(all.times, one.times);
    }
    if (all.most > kMostPlaces)
      return InvalidArgument("the grammar has more alternatives in one place than a request may have");
    return all;
  }

  // Up to '|', ')', the next rule or the end.
  Result<Places> Sequence(size_t& at, int depth) {
    std::vector<Places> parts;
    for (SkipBlanks(at); at < text_.size() && text_[at] != '|' && text_[at] != ')' && !BeginsRule(at); SkipBlanks(at)) {
      PITH_ASSIGN_OR_RETURN(Places one, Element(at, depth));
      PITH_ASSIGN_OR_RETURN(one, Repeated(one, at));
      parts.push_back(one);
    }
    Places all{true, 0, 0};
    for (size_t i = parts.size(); i-- > 0;) {
      all.first = parts[i].first + (parts[i].may_be_empty ? all.first : 0);
      if (parts[i].may_be_empty && all.first > kMostSkipped) return TooOpen();
      all.most = std::max({all.most, parts[i].most, all.first});
      all.may_be_empty = all.may_be_empty && parts[i].may_be_empty;
      all.times = std::max(all.times, parts[i].times);
    }
    return all;
  }

  Result<Places> Element(size_t& at, int depth) {
    const char c = text_[at];
    if (c == '(') {
      PITH_ASSIGN_OR_RETURN(const Places inside, Alternatives(++at, depth + 1));
      at = std::min(at + 1, text_.size());
      return inside;
    }
    if (c == '"' || c == '[') {
      const bool is_nothing = text_.substr(at).starts_with("\"\"");
      SkipQuoted(at);
      return is_nothing ? Places{true, 0, 0} : Places{false, 1, 1};
    }
    const std::string name(Name(at));
    if (!name.empty()) return OfRule(name, depth + 1);
    ++at;
    return Places{false, 1, 1};  // '.', or what the parser refuses
  }

  Result<Places> Repeated(Places one, size_t& at) const {
    SkipBlanks(at);
    for (; at < text_.size() && std::string_view("*+?{").find(text_[at]) != std::string_view::npos; SkipBlanks(at)) {
      double least = 0, most = 1;
      if (text_[at] == '{') {
        const Repetition found = ReadRepetition(text_, at);
        least = static_cast<double>(found.least.value_or(0));
        most = static_cast<double>(found.times());
        one.times *= most;
        if (one.times > kMostNested)
          return InvalidArgument("the grammar's repetitions stand too deep inside each other");
      } else {
        least = text_[at] == '+' ? 1 : 0;
        ++at;
      }
      if (one.may_be_empty) one.first *= most;
      if (one.may_be_empty && one.first > kMostSkipped) return TooOpen();
      one.may_be_empty = one.may_be_empty || least == 0;
      one.most = std::max(one.most, one.first);
    }
    return one;
  }

  static tl::unexpected<Error> TooOpen() {
    return InvalidArgument(
        "the grammar repeats what may be empty, so that a text may be in too many of its places at once");
  }

  std::string_view text_;
  std::map<std::string, size_t, std::less<>> rules_;  // where their right sides begin
  std::map<std::string, Places, std::less<>> known_;
};

using Json = nlohmann::ordered_json;

// How often a part of a regular expression may come: repetitions inside each other multiply.
double TimesOfPattern(std::string_view pattern) {
  std::vector<double> outer;  // of the groups around this one, so far
  double most = 1, last = 1;
  for (size_t at = 0; at < pattern.size(); ++at) {
    const char c = pattern[at];
    if (c == '(') {
      outer.push_back(most);
      most = last = 1;
    } else if (c == ')' && !outer.empty()) {
      last = most;
      most = std::max(outer.back(), last);
      outer.pop_back();
    } else if (c == '{') {
      last *= static_cast<double>(ReadRepetition(pattern, at).times());
      most = std::max(most, last);
      --at;
    } else if (std::string_view("*+?").find(c) == std::string_view::npos) {
      if (c == '[') at = std::min(pattern.find(']', at + 1), pattern.size());
      if (c == '\\') ++at;
      last = 1;
    }
  }
  return most;
}

class SchemaScan {
 public:
  explicit SchemaScan(const Json& root) : root_(root) {}

  Status Run() {
    PITH_RETURN_IF_ERROR(Visit(root_, 1, 0));
    const Times times = Repeats(root_);
    if (times.most > kMostNestedItems) return Bad("its arrays repeat each other too often");
    if (times.least > kMostLeastItems)
      return Bad(fmt::format("no answer holds the {:.0f} items that it asks for", times.least));
    return {};
  }

 private:
  tl::unexpected<Error> Bad(const std::string& what) const {
    return InvalidArgument("the JSON schema cannot be used: " + what);
  }

  // Everything that nests counts, whatever its keyword, with the alternatives that it is written out for.
  Status Visit(const Json& node, size_t copies, size_t depth) {
    if (depth > kDeepestSchema) return Bad(fmt::format("it is nested deeper than {} levels", kDeepestSchema));
    if (node.is_array()) {
      for (const Json& one : node) PITH_RETURN_IF_ERROR(Visit(one, copies, depth + 1));
      return {};
    }
    if (!node.is_object()) return Count(copies);
    PITH_RETURN_IF_ERROR(Count(copies));
    PITH_RETURN_IF_ERROR(CheckNode(node));
    const auto type = node.find("type");
    if (type != node.end() && type->is_array()) copies *= std::clamp<size_t>(type->size(), 1, 8);
    if (node.size() > kMostProperties)
      return Bad(fmt::format("an object of it has more than {} members", kMostProperties));
    for (const auto& [key, value] : node.items()) {
      if (key.size() > kLongestName) return Bad(fmt::format("a name in it is longer than {} bytes", kLongestName));
      PITH_RETURN_IF_ERROR(Visit(value, copies, depth + 1));
    }
    return {};
  }

  // How often the innermost part of a node comes, at least and at most: arrays of arrays multiply.
  struct Times {
    double least = 1, most = 1;
  };
  Times Repeats(const Json& node) {
    if (!node.is_structured()) return {};
    const auto [known, is_new] = repeats_.try_emplace(&node);
    if (!is_new) return known->second;  // in itself: once
    Times all;
    const auto add = [&all](const Times& one) {
      all.least = std::max(all.least, one.least), all.most = std::max(all.most, one.most);
    };
    const auto count = [&node](const char* name, double otherwise) {
      const auto at = node.find(name);
      return at != node.end() && at->is_number() ? std::max(at->get<double>(), 1.0) : otherwise;
    };
    for (const auto& [key, value] : node.items()) {
      Times one = Repeats(value);
      if (key == "items" && node.is_object()) {
        const double least = count("minItems", 1);
        one.least *= least, one.most *= std::max(count("maxItems", least), least);
      }
      add(one);
    }
    if (const auto ref = node.is_object() ? node.find("$ref") : node.end(); ref != node.end() && ref->is_string()) {
      if (const Json* target = Find(ref->get_ref<const std::string&>()); target != nullptr) add(Repeats(*target));
    }
    return repeats_[&node] = all;
  }

  Status Count(size_t copies) {
    nodes_ += copies;
    if (nodes_ > kMostNodes) return Bad(fmt::format("it has more than {} parts", kMostNodes));
    return {};
  }

  Status CheckNode(const Json& node) {
    for (const auto& [low, high] : {std::pair("minItems", "maxItems"),
                                    {"minLength", "maxLength"},
                                    {"minimum", "maximum"},
                                    {"exclusiveMinimum", "exclusiveMaximum"},
                                    {"minProperties", "maxProperties"}}) {
      PITH_RETURN_IF_ERROR(CheckPair(node, low, high));
    }
    // A property of that name is an object, and true is what an old draft has in properties.
    if (const auto required = node.find("required"); required != node.end()) {
      const auto is_name = [](const Json& name) { return name.is_string(); };
      const bool is_list = required->is_array() && std::ranges::all_of(*required, is_name);
      if (!is_list && !required->is_object() && !required->is_boolean())
        return Bad("\"required\" must be an array of names");
    }
    if (const auto pattern = node.find("pattern"); pattern != node.end() && pattern->is_string()) {
      const auto& text = pattern->get_ref<const std::string&>();
      if (text.size() > 1000) return Bad("a pattern in it is longer than 1000 bytes");
      if (const Status syntax = CheckPatternSyntax(text); !syntax) return Bad(syntax.error().message);
      if (TimesOfPattern(text) > static_cast<double>(kMostRules)) return Bad("a pattern in it repeats repetitions");
    }
    if (const auto ref = node.find("$ref"); ref != node.end() && ref->is_string())
      return CheckRef(ref->get<std::string>());
    return {};
  }

  Status CheckPair(const Json& node, const char* low, const char* high) {
    std::optional<double> values[2];
    for (const int i : {0, 1}) {
      const auto at = node.find(i == 0 ? low : high);
      if (at == node.end() || !at->is_number()) continue;  // a property of that name, or the converter's to refuse
      values[i] = at->get<double>();
      if (std::abs(*values[i]) > kMostInteger) return Bad(fmt::format("{} is too large a number", i == 0 ? low : high));
      const bool is_count = std::string_view(low).ends_with("Items") || std::string_view(low).ends_with("Length");
      if (is_count && *values[i] > static_cast<double>(kMostTimes)) {
        return Bad(fmt::format("{} is above {}", i == 0 ? low : high, kMostTimes));
      }
    }
    if (values[0] && values[1] && *values[0] > *values[1]) return Bad(fmt::format("{} is above {}", low, high));
    return {};
  }

  // The converter follows references to references without an end.
  Status CheckRef(std::string ref) {
    std::set<std::string> seen;
    while (true) {
      if (ref.size() > kLongestName) return Bad(fmt::format("a reference in it is longer than {} bytes", kLongestName));
      if (!seen.insert(ref).second) return Bad("its references go in a circle");
      const Json* target = Find(ref);
      if (target == nullptr) return {};  // the converter says it
      if (const std::string next = OnlyReference(*target, 0); !next.empty()) {
        ref = next;
        continue;
      }
      return {};
    }
  }

  // Where a node is nothing but a reference, perhaps through allOf or anyOf.
  static std::string OnlyReference(const Json& node, size_t depth) {
    if (!node.is_object() || depth > kDeepestSchema) return {};
    if (const auto ref = node.find("$ref"); ref != node.end() && ref->is_string()) return ref->get<std::string>();
    for (const char* key : {"oneOf", "anyOf", "allOf"}) {
      const auto list = node.find(key);
      if (list == node.end() || !list->is_array() || list->size() != 1) continue;
      return OnlyReference(list->front(), depth + 1);
    }
    return {};
  }

  const Json* Find(std::string_view ref) const {
    if (!ref.starts_with("#/")) return nullptr;
    const Json* node = &root_;
    ref.remove_prefix(2);
    while (true) {
      const std::string part(ref.substr(0, ref.find('/')));
      if (node->is_object()) {
        const auto at = node->find(part);
        if (at == node->end()) return nullptr;
        node = &*at;
      } else {
        return nullptr;
      }
      if (part.size() >= ref.size()) return node;
      ref.remove_prefix(part.size() + 1);
    }
  }

  const Json& root_;
  size_t nodes_ = 0;
  std::map<const Json*, Times> repeats_;
};

}  // namespace

Status CheckGrammarBounds(std::string_view gbnf) {
  if (gbnf.size() > kLongestGrammar) {
    return InvalidArgument(fmt::format("the grammar has {} bytes, more than {}", gbnf.size(), kLongestGrammar));
  }
  PITH_RETURN_IF_ERROR(GrammarScan(gbnf).Run());
  return GrammarPlaces(gbnf).Run();
}

Status CheckSchemaBounds(std::string_view schema) {
  if (schema.size() > kLongestSchema) {
    return InvalidArgument(fmt::format("the JSON schema has {} bytes, more than {}", schema.size(), kLongestSchema));
  }
  size_t depth = 0;
  for (const char c : schema) {
    depth += c == '{' || c == '[';
    depth -= (c == '}' || c == ']') && depth > 0;
    if (depth > 4 * kDeepestSchema) return InvalidArgument("the JSON schema is nested too deep");
  }
  const Json parsed = Json::parse(schema, nullptr, false);
  if (parsed.is_discarded()) return InvalidArgument("the JSON schema cannot be used: it is no valid JSON");
  if (!parsed.is_object()) return InvalidArgument("the JSON schema cannot be used: it is no JSON object");
  return SchemaScan(parsed).Run();
}

}  // namespace pith
