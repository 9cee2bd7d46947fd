#include "cli/markdown.h"

#include <algorithm>

namespace pith::cli {
namespace {

constexpr std::string_view kReset = "\x1b[0m", kBold = "\x1b[1m", kItalic = "\x1b[3m", kCode = "\x1b[36m",
                           kDim = "\x1b[2m", kTitle = "\x1b[1;34m";
// A mark of a line is not longer.
constexpr size_t kLongestMark = 8;

bool IsBlank(char c) { return c == ' ' || c == '\t'; }

enum class Mark { kOpen, kNone, kFence, kHeading, kQuote, kList };

// What a line is that begins so; kOpen: more characters decide.
Mark MarkOf(std::string_view line) {
  const size_t first = line.find_first_not_of(' ');
  if (first == std::string_view::npos) return line.size() < kLongestMark ? Mark::kOpen : Mark::kNone;
  const std::string_view rest = line.substr(first);
  const auto run = static_cast<size_t>(std::ranges::find_if(rest, [&](char c) { return c != rest[0]; }) - rest.begin());
  const bool whole = run < rest.size();  // the run has ended
  switch (rest[0]) {
    case '`': return run >= 3 ? Mark::kFence : whole ? Mark::kNone : Mark::kOpen;
    case '#':
      if (run > 6) return Mark::kNone;
      return !whole ? Mark::kOpen : IsBlank(rest[run]) ? Mark::kHeading : Mark::kNone;
    case '>': return Mark::kQuote;
    case '-':
    case '+':
    case '*':
      if (run > 1) return Mark::kNone;
      return !whole ? Mark::kOpen : IsBlank(rest[1]) ? Mark::kList : Mark::kNone;
    default: break;
  }
  const auto digits = static_cast<size_t>(
      std::ranges::find_if(rest, [](char c) { return c < '0' || c > '9'; }) - rest.begin());
  if (digits == 0 || digits > 3) return Mark::kNone;
  if (digits == rest.size() || (digits + 1 == rest.size() && (rest[digits] == '.' || rest[digits] == ')'))) {
    return Mark::kOpen;
  }
  return (rest[digits] == '.' || rest[digits] == ')') && IsBlank(rest[digits + 1]) ? Mark::kList : Mark::kNone;
}

}  // namespace

void MarkdownStream::Restyle(std::string& out) const {
  out += kReset;
  if (heading_) out += kTitle;
  if (quote_ || fence_line_) out += kDim;
  if (fenced_ || code_) out += kCode;
  if (bold_) out += kBold;
  if (emphasis_) out += kItalic;
}

// held_ is the line's beginning, of which it is known now what it is.
void MarkdownStream::BeginLine(std::string& out) {
  const Mark mark = MarkOf(held_);
  line_begins_ = false;
  std::string text;
  text.swap(held_);
  if (mark == Mark::kFence) {
    fence_line_ = true;
    Restyle(out);
    out += text;
    return;
  }
  heading_ = !fenced_ && mark == Mark::kHeading;
  quote_ = !fenced_ && mark == Mark::kQuote;
  if (heading_ || quote_ || fenced_) Restyle(out);
  if (!fenced_ && mark == Mark::kList) {
    const size_t end = text.find_last_not_of(" \t") + 1;
    out += std::string(kBold) + text.substr(0, end) + std::string(kReset) + text.substr(end);
    before_ = ' ';
    return;
  }
  for (const char c : text) Character(c, out);
}

void MarkdownStream::EndLine(std::string& out) {
  if (line_begins_ && !held_.empty()) BeginLine(out);
  if (!stars_.empty()) Character('\0', out);
  const bool styled = heading_ || quote_ || bold_ || emphasis_ || code_ || fenced_ || fence_line_;
  if (fence_line_) fenced_ = !fenced_;
  heading_ = quote_ = bold_ = emphasis_ = code_ = fence_line_ = false;
  if (styled) out += kReset;
  out += '\n';
  line_begins_ = true;
  before_ = '\n';
}

// '\0': what is held back is what it is.
void MarkdownStream::Character(char c, std::string& out) {
  if (fenced_ || fence_line_) {
    if (c != '\0') out += c;
    return;
  }
  if (c == '*' && !code_) {
    stars_ += c;
    return;
  }
  if (!stars_.empty()) {
    std::string stars;
    stars.swap(stars_);
    bool& style = stars.size() == 1 ? emphasis_ : bold_;
    // Stars open before a word and close behind one; others are stars.
    const bool opens = !style && c != '\0' && !IsBlank(c);
    const bool closes = style && !IsBlank(before_);
    if (opens) {
      style = true;
      Restyle(out);
      out += stars;
    } else {
      out += stars;
      if (closes) {
        style = false;
        Restyle(out);
      }
    }
    before_ = '*';
  }
  if (c == '\0') return;
  if (c == '`') {
    code_ = !code_;
    if (code_) Restyle(out);
    out += c;
    if (!code_) Restyle(out);
  } else {
    out += c;
  }
  before_ = c;
}

std::string MarkdownStream::Push(std::string_view text) {
  std::string out;
  for (const char c : text) {
    if (c == '\n') {
      EndLine(out);
    } else if (line_begins_) {
      held_ += c;
      const Mark mark = MarkOf(held_);
      if (mark != Mark::kOpen) BeginLine(out);
    } else {
      Character(c, out);
    }
  }
  return out;
}

std::string MarkdownStream::Finish() {
  std::string out;
  if (line_begins_ && !held_.empty()) BeginLine(out);
  if (!stars_.empty()) Character('\0', out);
  if (heading_ || quote_ || bold_ || emphasis_ || code_ || fenced_ || fence_line_) out += kReset;
  *this = MarkdownStream();
  return out;
}

}  // namespace pith::cli
