#include "session/indent_filter.h"

#include <utility>

namespace pith {

std::string IndentFilter::Push(std::string_view text) {
  if (least_blanks_ == 0) return std::string(text);
  std::string out;
  for (const char c : text) {
    if (hit_) break;
    if (is_beginning_ && (c == ' ' || c == '\t')) {
      held_ += c;
      continue;
    }
    if (is_beginning_ && held_.size() < least_blanks_) {
      hit_ = true;
      held_.clear();
      break;
    }
    out += std::exchange(held_, std::string());
    out += c;
    is_beginning_ = c == '\n';
  }
  return out;
}

std::string IndentFilter::Flush() { return std::exchange(held_, std::string()); }

}  // namespace pith
