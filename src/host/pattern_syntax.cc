#include "host/pattern_syntax.h"

#include <charconv>
#include <cstdint>
#include <optional>
#include <system_error>

#include <fmt/format.h>

#include "base/escaped.h"

namespace pith {
namespace {

class PatternScan {
 public:
  explicit PatternScan(std::string_view text) : text_(text) {}

  Status Run() {
    while (at_ < text_.size()) PITH_RETURN_IF_ERROR(Next());
    return depth_ > 0 ? Status(Bad("a '(' has no ')'")) : Status();
  }

 private:
  tl::unexpected<Error> Bad(std::string_view what) const {
    return InvalidArgument(fmt::format("\"{}\" is no regular expression: {}", Escaped(text_, 60), what));
  }

  Status Next() {
    const char c = text_[at_];
    if (c == '*' || c == '+' || c == '?' || c == '{') return Repetition();
    ++at_;
    repeats_ = false;
    can_repeat_ = true;
    if (c == '\\') {
      if (at_ >= text_.size()) return Bad("a backslash stands before nothing");
      ++at_;
    } else if (c == '[') {
      return Class();
    } else if (c == '(') {
      ++depth_;
      can_repeat_ = false;
      return Group();
    } else if (c == ')') {
      if (depth_-- == 0) return Bad("a ')' has no '('");
    } else if (c == '|' || c == '^') {
      can_repeat_ = false;
    }
    return {};
  }

  // Behind its parenthesis.
  Status Group() {
    if (!text_.substr(at_).starts_with('?')) return {};
    ++at_;
    if (at_ >= text_.size() || std::string_view(")*+{").find(text_[at_]) != std::string_view::npos)
      return Bad("\"(?\" begins no group");
    // Names, flags and the signs of look-around are no parts to repeat: up to what ends them.
    if (text_.substr(at_).starts_with("P<") || text_.substr(at_).starts_with('<')) {
      const bool looks_behind = text_.substr(at_).starts_with("<=") || text_.substr(at_).starts_with("<!");
      const size_t end = looks_behind ? at_ + 1 : text_.find('>', at_);
      if (end == std::string_view::npos) return Bad("a group's name has no end");
      at_ = end + 1;
    } else {
      ++at_;
    }
    return {};
  }

  Status Repetition() {
    const char c = text_[at_];
    if (c == '?' && repeats_ && !is_lazy_) {  // of the repetition before it: as few as there can be
      ++at_;
      is_lazy_ = true;
      return {};
    }
    if (c == '{') PITH_RETURN_IF_ERROR(Braces());
    if (!can_repeat_ || repeats_) return Bad(fmt::format("'{}' repeats nothing", c));
    ++at_;
    repeats_ = true;
    is_lazy_ = false;
    return {};
  }

  // "{m}", "{m,}", "{m,n}" or "{,n}": up to the closing one.
  Status Braces() {
    const size_t close = text_.find('}', at_);
    if (close == std::string_view::npos) return Bad("a '{' has no '}'");
    const std::string_view inside = text_.substr(at_ + 1, close - at_ - 1);
    const size_t comma = inside.find(',');
    std::optional<uint64_t> least, most;
    const bool is_least = Number(inside.substr(0, comma), least);
    const bool is_most = comma == std::string_view::npos || Number(inside.substr(comma + 1), most);
    if (!is_least || !is_most || (!least && !most))
      return Bad(fmt::format("{{{}}} is no repetition", Escaped(inside, 20)));
    if (least && most && *least > *most) return Bad(fmt::format("{{{}}} ends before it begins", Escaped(inside, 40)));
    at_ = close;
    return {};
  }

  // False: neither a number nor nothing.
  static bool Number(std::string_view text, std::optional<uint64_t>& number) {
    if (text.empty()) return true;
    uint64_t value = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    number = error == std::errc::result_out_of_range ? UINT64_MAX : value;
    return error != std::errc::invalid_argument && end == text.data() + text.size();
  }

  // Behind its bracket. ECMA-262's: "[]" is empty, "[^]" is anything.
  Status Class() {
    if (text_.substr(at_).starts_with('^')) ++at_;
    std::optional<uint32_t> low;  // of what may become a range
    while (at_ < text_.size() && text_[at_] != ']') {
      const bool is_range = low && text_[at_] == '-' && at_ + 1 < text_.size() && text_[at_ + 1] != ']';
      if (is_range) ++at_;
      const std::optional<uint32_t> here = ClassCharacter();
      if (at_ > text_.size()) return Bad("a backslash stands before nothing");
      if (is_range && here && *here < *low) return Bad("a range of a '[' ends before it begins");
      low = is_range ? std::nullopt : here;
    }
    if (at_ >= text_.size()) return Bad("a '[' has no ']'");
    ++at_;
    return {};
  }

  // None: a class of its own ("\d"), or an escape whose character is not looked up.
  std::optional<uint32_t> ClassCharacter() {
    const auto lead = static_cast<unsigned char>(text_[at_++]);
    if (lead == '\\') {
      ++at_;
      return std::nullopt;
    }
    if (lead < 0x80) return lead;
    uint32_t point = lead & (lead >= 0xF0 ? 0x07U : lead >= 0xE0 ? 0x0FU : 0x1FU);
    for (; at_ < text_.size() && (static_cast<unsigned char>(text_[at_]) & 0xC0U) == 0x80U; ++at_)
      point = (point << 6) | (static_cast<unsigned char>(text_[at_]) & 0x3FU);
    return point;
  }

  std::string_view text_;
  size_t at_ = 0;
  int depth_ = 0;
  bool can_repeat_ = false;  // what stands before
  bool repeats_ = false;     // that is a repetition
  bool is_lazy_ = false;     // with its question mark
};

}  // namespace

Status CheckPatternSyntax(std::string_view pattern) { return PatternScan(pattern).Run(); }

}  // namespace pith
