#include "host/grammar_bounds.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "base/escaped.h"

namespace pith {
namespace {

constexpr size_t kLongestGrammar = size_t{256} << 10;
constexpr int kDeepestGroup = 64;
constexpr uint64_t kMostTimes = 2000;   // libllama's own bound of one repetition, and of those inside each other
constexpr uint64_t kMostRules = 200000; // that all repetitions of a grammar make
constexpr size_t kLongestSchema = size_t{256} << 10;
constexpr size_t kDeepestSchema = 48;
constexpr size_t kMostNodes = 2000;     // of a schema with its alternatives written out
constexpr size_t kMostProperties = 256;  // of one object: the converter writes rules for every pair of optional ones
constexpr size_t kLongestName = 256;
constexpr double kMostInteger = 9e15;

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
        if (groups.size() > kDeepestGroup) return InvalidArgument(fmt::format("the grammar has more than {} parentheses inside each other", kDeepestGroup));
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
        if (rules > kMostRules || last > kMostRules) return InvalidArgument("the grammar's repetitions make more rules than a request may have");
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

  // "{m}", "{m,}", "{m,n}", "{,n}"
  Result<uint64_t> Times() {
    const size_t close = text_.find('}', at_);
    const std::string_view inside = text_.substr(at_ + 1, close == std::string_view::npos ? close : close - at_ - 1);
    at_ = close == std::string_view::npos ? text_.size() : close + 1;
    const size_t comma = std::min(inside.find(','), inside.size());
    uint64_t least = 0, most = 0;
    const auto read = [](std::string_view part, uint64_t& out) {
      while (part.starts_with(' ')) part.remove_prefix(1);
      return std::from_chars(part.data(), part.data() + part.size(), out).ec == std::errc();
    };
    const bool has_least = read(inside.substr(0, comma), least);
    const bool has_most = comma < inside.size() && read(inside.substr(comma + 1), most);
    if (has_least && has_most && least > most) {
      return InvalidArgument(fmt::format("the grammar's repetition {{{}}} ends before it begins", Escaped(inside, 40)));
    }
    if (std::max(least, most) > kMostTimes) {
      return InvalidArgument(fmt::format("the grammar repeats something more than {} times", kMostTimes));
    }
    return std::max<uint64_t>({least, most, 1});
  }

  std::string_view text_;
  size_t at_ = 0;
};

using Json = nlohmann::ordered_json;

class SchemaScan {
 public:
  explicit SchemaScan(const Json& root) : root_(root) {}

  Status Run() { return Visit(root_, 1, 0); }

 private:
  tl::unexpected<Error> Bad(const std::string& what) const { return InvalidArgument("the JSON schema cannot be used: " + what); }

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
    if (node.size() > kMostProperties) return Bad(fmt::format("an object of it has more than {} members", kMostProperties));
    for (const auto& [key, value] : node.items()) {
      if (key.size() > kLongestName) return Bad(fmt::format("a name in it is longer than {} bytes", kLongestName));
      PITH_RETURN_IF_ERROR(Visit(value, copies, depth + 1));
    }
    return {};
  }

  Status Count(size_t copies) {
    nodes_ += copies;
    if (nodes_ > kMostNodes) return Bad(fmt::format("it has more than {} parts", kMostNodes));
    return {};
  }

  Status CheckNode(const Json& node) {
    for (const auto& [low, high] : {std::pair("minItems", "maxItems"), {"minLength", "maxLength"}, {"minimum", "maximum"},
                                    {"exclusiveMinimum", "exclusiveMaximum"}, {"minProperties", "maxProperties"}}) {
      PITH_RETURN_IF_ERROR(CheckPair(node, low, high));
    }
    if (const auto pattern = node.find("pattern"); pattern != node.end() && pattern->is_string()) {
      const auto& text = pattern->get_ref<const std::string&>();
      if (text.size() > 1000) return Bad("a pattern in it is longer than 1000 bytes");
    }
    if (const auto ref = node.find("$ref"); ref != node.end() && ref->is_string()) return CheckRef(ref->get<std::string>());
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
};

}  // namespace

Status CheckGrammarBounds(std::string_view gbnf) {
  if (gbnf.size() > kLongestGrammar) {
    return InvalidArgument(fmt::format("the grammar has {} bytes, more than {}", gbnf.size(), kLongestGrammar));
  }
  return GrammarScan(gbnf).Run();
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
