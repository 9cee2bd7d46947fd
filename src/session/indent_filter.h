// Ends a text before a line that begins with too few blanks, wherever pieces of the text end: what an editor asks for
// within an indented block.
#ifndef PITH_SESSION_INDENT_FILTER_H_
#define PITH_SESSION_INDENT_FILTER_H_

#include <string>
#include <string_view>

namespace pith {

class IndentFilter {
 public:
  // 0: no line ends it.
  explicit IndentFilter(int least_blanks) : least_blanks_(static_cast<size_t>(least_blanks)) {}

  // Text up to where it may still be right. Once a line is not, hit() says so; it and what follows are gone. The first
  // line always is: it goes on from another text. An empty one is not.
  std::string Push(std::string_view text);
  // The text ends: blanks that were held back, as no line came of them.
  std::string Flush();
  bool hit() const { return hit_; }

 private:
  const size_t least_blanks_;
  std::string held_;  // blanks that the line begins with
  bool is_beginning_ = false;
  bool hit_ = false;
};

}  // namespace pith

#endif  // PITH_SESSION_INDENT_FILTER_H_
