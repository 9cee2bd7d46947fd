#include "cli/edit_line.h"

#ifdef PITH_LIBEDIT

#include <histedit.h>
#include <sys/stat.h>
#include <unistd.h>

#include <clocale>
#include <cstdio>
#include <cstdlib>
#include <cwchar>
#include <deque>
#include <filesystem>
#include <string_view>
#include <utility>

namespace pith::cli {
namespace {

constexpr int kHistoryLines = 1000;
constexpr int kEscape = 0x1b, kDelete = 0x7f, kEndOfInput = 0x04;
constexpr wchar_t kReturn = L'\x23ce';
// As in line_input.cc: what comes this soon after a line end was pasted with it.
constexpr int kPasteWaitMs = 40;

// Between the terminal's bytes and libedit: a message of many lines is one line with marks for the ends of its lines.
class LibeditLine final : public LineEditing {
 public:
  LibeditLine(std::string prompt, std::string history, NextByte next)
      : prompt_(std::move(prompt)), file_(std::move(history)), next_(std::move(next)) {}

  ~LibeditLine() override {
    if (edit_ != nullptr) el_end(edit_);
    if (history_ != nullptr) history_end(history_);
    if (screen_ != nullptr) std::fclose(screen_);
  }

  bool Open(int screen) {
    // Characters, and how wide they are. Numbers are written as ever.
    if (std::setlocale(LC_CTYPE, "C.UTF-8") == nullptr) return false;
    const int copy = ::dup(screen);
    if (copy < 0 || (screen_ = ::fdopen(copy, "w")) == nullptr) return false;
    edit_ = el_init("pith", stdin, screen_, screen_);
    history_ = history_init();
    if (edit_ == nullptr || history_ == nullptr) return false;
    HistEvent event;
    history(history_, &event, H_SETSIZE, kHistoryLines);
    history(history_, &event, H_SETUNIQUE, 1);
    if (!file_.empty()) history(history_, &event, H_LOAD, file_.c_str());
    el_set(edit_, EL_CLIENTDATA, this);
    el_set(edit_, EL_PROMPT, &Prompt);
    el_set(edit_, EL_EDITOR, "emacs");
    el_set(edit_, EL_SIGNAL, 0);
    // Between two lines libedit would give the terminal its own line discipline back, which shows what is typed in the
    // middle of an answer and keeps a Ctrl-D to itself.
    el_set(edit_, EL_SETTY, "-x", "-icanon", "-echo", nullptr);
    el_set(edit_, EL_HIST, history, history_);
    el_set(edit_, EL_GETCFN, &NextCharacter);
    // Usual keys that libedit leaves unbound.
    for (const auto& [keys, what] : {std::pair("\\e[3~", "ed-delete-next-char"), std::pair("\\e[H", "ed-move-to-beg"),
                                     std::pair("\\e[F", "ed-move-to-end"), std::pair("\\e[1~", "ed-move-to-beg"),
                                     std::pair("\\e[4~", "ed-move-to-end"), std::pair("\\e[1;5D", "ed-prev-word"),
                                     std::pair("\\e[1;5C", "em-next-word"), std::pair("^R", "em-inc-search-prev")}) {
      el_set(edit_, EL_BIND, keys, what, nullptr);
    }
    return true;
  }

  bool Read(const std::string& text, std::string& message) override {
    el_resize(edit_);
    for (const char byte : OneLine(text)) waiting_.push_back(static_cast<unsigned char>(byte));
    int count = 0;
    const char* line = el_gets(edit_, &count);
    std::fflush(screen_);
    if (line == nullptr || count <= 0) return false;
    std::string entered(line, static_cast<size_t>(count));
    if (entered.ends_with('\n')) entered.pop_back();
    if (entered.find_first_not_of(" \t") != std::string::npos) {
      HistEvent event;
      history(history_, &event, H_ENTER, entered.c_str());
      Save();
    }
    message = ManyLines(entered);
    return true;
  }

 private:
  static char* Prompt(EditLine* edit) {
    LibeditLine* self = nullptr;
    el_get(edit, EL_CLIENTDATA, &self);
    return self->prompt_.data();
  }

  static int NextCharacter(EditLine* edit, wchar_t* character) {
    LibeditLine* self = nullptr;
    el_get(edit, EL_CLIENTDATA, &self);
    return self->Next(*character) ? 1 : 0;
  }

  // What was typed on the line so far ends with a backslash.
  bool GoesOn() const {
    const LineInfo* line = el_line(edit_);
    return line->lastchar > line->buffer && line->cursor == line->lastchar && line->lastchar[-1] == '\\';
  }

  int Byte(int wait_ms) {
    if (waiting_.empty()) return next_(wait_ms);
    const int byte = waiting_.front();
    waiting_.pop_front();
    return byte;
  }

  // False: the end of input.
  bool Next(wchar_t& character) {
    if (!out_.empty()) {
      character = out_.front();
      out_.pop_front();
      return true;
    }
    const int byte = Byte(-1);
    if (byte < 0) return false;
    if (byte == '\r' || byte == '\n') {
      const int next = pasting_ ? 0 : Byte(kPasteWaitMs);
      if (!pasting_ && next >= 0) waiting_.push_front(next);
      const bool pasted = next >= 0 && next != kEndOfInput;
      const bool continued = !pasting_ && GoesOn();
      if (continued) out_.push_back(kReturn);
      character = continued ? wchar_t{kDelete} : pasted ? kReturn : L'\n';
      return true;
    }
    if (byte == kEscape) return Escape(character);
    if (pasting_ && byte == '\t') {
      character = L' ';
      return true;
    }
    character = Decode(byte);
    return true;
  }

  // ESC [ 200 ~ and 201 ~ are the ends of what is pasted; ESC and Enter is a line end; others are libedit's.
  bool Escape(wchar_t& character) {
    const int next = Byte(kPasteWaitMs);
    if (next == '\r' || next == '\n') {
      character = kReturn;
      return true;
    }
    std::string sequence;
    if (next >= 0) sequence += static_cast<char>(next);
    if (next == '[') {
      constexpr size_t kLongest = 32;
      for (int more = 0; sequence.size() < kLongest && !(more >= 0x40 && more <= 0x7e);) {
        more = Byte(kPasteWaitMs);
        if (more < 0) break;
        sequence += static_cast<char>(more);
      }
    }
    if (sequence == "[200~" || sequence == "[201~") {
      pasting_ = sequence == "[200~";
      return Next(character);
    }
    for (const char c : sequence) out_.push_back(static_cast<unsigned char>(c));
    character = kEscape;
    return true;
  }

  wchar_t Decode(int first) {
    std::mbstate_t state{};
    char byte = static_cast<char>(first);
    wchar_t character = 0;
    size_t taken = std::mbrtowc(&character, &byte, 1, &state);
    while (taken == static_cast<size_t>(-2)) {
      const int next = Byte(kPasteWaitMs);
      if (next < 0) return L'?';
      byte = static_cast<char>(next);
      taken = std::mbrtowc(&character, &byte, 1, &state);
    }
    return taken == static_cast<size_t>(-1) ? L'?' : character;
  }

  static std::string Replaced(std::string text, std::string_view from, std::string_view to) {
    for (size_t at = text.find(from); at != std::string::npos; at = text.find(from, at + to.size())) {
      text.replace(at, from.size(), to);
    }
    return text;
  }
  static std::string OneLine(const std::string& text) { return Replaced(text, "\n", kLineEnd); }
  static std::string ManyLines(const std::string& text) { return Replaced(text, kLineEnd, "\n"); }

  // For its owner's eyes alone. A history that cannot be kept is forgotten.
  void Save() {
    if (file_.empty()) return;
    const mode_t mask = ::umask(S_IRWXG | S_IRWXO);
    std::error_code ignored;
    std::filesystem::create_directories(std::filesystem::path(file_).parent_path(), ignored);
    HistEvent event;
    history(history_, &event, H_SAVE, file_.c_str());
    ::umask(mask);
  }

  std::string prompt_, file_;
  NextByte next_;
  EditLine* edit_ = nullptr;
  History* history_ = nullptr;
  std::FILE* screen_ = nullptr;
  std::deque<int> waiting_;   // bytes that come before the terminal's
  std::deque<wchar_t> out_;   // characters that libedit gets next
  bool pasting_ = false;
};

}  // namespace

std::unique_ptr<LineEditing> LineEditing::Create(const std::string& prompt, const std::string& history, int screen,
                                                 NextByte next) {
  const char* terminal = std::getenv("TERM");
  if (terminal == nullptr || *terminal == '\0' || std::string_view(terminal) == "dumb") return nullptr;
  auto line = std::make_unique<LibeditLine>(prompt, history, std::move(next));
  return line->Open(screen) ? std::move(line) : nullptr;
}

}  // namespace pith::cli

#else

namespace pith::cli {

std::unique_ptr<LineEditing> LineEditing::Create(const std::string&, const std::string&, int, NextByte) {
  return nullptr;
}

}  // namespace pith::cli

#endif
