// Lines from a terminal with editing and a history, by libedit where pith was built with it.
#ifndef PITH_CLI_EDIT_LINE_H_
#define PITH_CLI_EDIT_LINE_H_

#include <functional>
#include <memory>
#include <string>
#include <string_view>

namespace pith::cli {

class LineEditing {
 public:
  // What stands for a line end within a message while it is edited, in one line.
  static constexpr std::string_view kLineEnd = "\xe2\x8f\x8e";  // U+23CE

  // Where bytes come from: waits at most wait_ms (-1: for ever) for one; -1: none came, or the input has ended.
  using NextByte = std::function<int(int wait_ms)>;

  // Null: pith was built without libedit, or the terminal cannot move its cursor. history: the file that keeps what was
  // entered; empty: none. screen: what the terminal shows.
  static std::unique_ptr<LineEditing> Create(const std::string& prompt, const std::string& history, int screen,
                                             NextByte next);
  virtual ~LineEditing() = default;

  // The next message, which begins as `text`. False: the end of input.
  virtual bool Read(const std::string& text, std::string& message) = 0;
};

}  // namespace pith::cli

#endif  // PITH_CLI_EDIT_LINE_H_
