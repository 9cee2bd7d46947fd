// Messages from standard input.
//
// The terminal's own line discipline cuts lines at 4,095 bytes and knows no pasted text. At a terminal pith therefore
// edits the line itself: Enter sends it; what is pasted is one message however many lines it has; a backslash at the
// end of a line, or Alt+Enter, goes on with the next line. Where libedit is there, it edits, with a history
// (edit_line.h), and the editor here is for terminals that cannot move their cursor.
#ifndef PITH_CLI_LINE_INPUT_H_
#define PITH_CLI_LINE_INPUT_H_

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>
#include <utility>

#include "cli/edit_line.h"

namespace pith::cli {

// Bytes of a terminal in, a message and what the terminal is to show out.
class LineEditor {
 public:
  enum class State {
    kMore,     // the message goes on
    kEntered,  // Enter was pressed: it is complete, unless more has already come (NewLine())
    kEnd,      // Ctrl-D on an empty message: the end of input
  };
  // prompt: what stands before the message's first line on the screen.
  explicit LineEditor(std::string prompt) : prompt_(std::move(prompt)) {}

  State Push(char byte, std::string& echo);
  // Goes on after kEntered.
  void NewLine(std::string& echo);
  const std::string& text() const { return text_; }

 private:
  State PushPlain(char byte, std::string& echo);
  void PushEscape(char byte, std::string& echo);
  void Erase(size_t count, std::string& echo);

  std::string prompt_;
  std::string text_;
  std::string escape_;  // an unfinished control sequence
  bool pasting_ = false;
};

// Takes a terminal over until it is gone, also when a signal ends or stops the program. At most one at a time.
class MessageReader {
 public:
  // history: a file that keeps what was entered at a terminal; empty: none.
  explicit MessageReader(std::string prompt, const std::string& history = {});
  ~MessageReader();
  MessageReader(const MessageReader&) = delete;
  MessageReader& operator=(const MessageReader&) = delete;

  bool is_terminal() const { return terminal_; }
  // The next message without its line end: from a terminal as above, else one line. False: there is none.
  bool Read(std::string& message);
  // The next message begins as this text, where it can be edited. False: it cannot.
  bool Prefill(std::string text);

 private:
  bool ReadFromTerminal(std::string& message);
  bool HasInput(int wait_ms) const;
  // False: the input has ended, and all of it is taken.
  bool Fill();

  std::string prompt_;
  bool terminal_;
  std::unique_ptr<LineEditing> line_;
  std::string prefill_;
  std::string input_;  // bytes read and not taken yet
  size_t at_ = 0;
};

}  // namespace pith::cli

#endif  // PITH_CLI_LINE_INPUT_H_
