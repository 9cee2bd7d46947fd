// Markdown in colours, for a terminal, as it streams by.
#ifndef PITH_CLI_MARKDOWN_H_
#define PITH_CLI_MARKDOWN_H_

#include <string>
#include <string_view>

namespace pith::cli {

// Colours go around what is written: every character of the text stays, marks included, so that what is copied from the
// screen is the text. Headings, **bold**, *emphasis*, `code`, fenced blocks, quotes and list marks.
class MarkdownStream {
 public:
  // What the terminal gets for the next piece of text; a mark whose end is not there yet is held back.
  std::string Push(std::string_view text);
  // The rest, and all colours off.
  std::string Finish();

 private:
  void Character(char c, std::string& out);
  void BeginLine(std::string& out);
  void EndLine(std::string& out);
  void Restyle(std::string& out) const;

  std::string held_;        // the beginning of a line, until it is known what it is
  std::string stars_;       // a run of stars
  bool line_begins_ = true;
  bool fenced_ = false;     // between two ``` lines
  bool fence_line_ = false;
  bool heading_ = false, quote_ = false;
  bool bold_ = false, emphasis_ = false, code_ = false;
  char before_ = '\n';      // the last character
};

}  // namespace pith::cli

#endif  // PITH_CLI_MARKDOWN_H_
