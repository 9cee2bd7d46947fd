#include "cli/line_input.h"

#include <poll.h>
#include <signal.h>
#include <termios.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <iostream>
#include <utility>

#include "cli/terminal.h"

namespace pith::cli {
namespace {

constexpr char kEscape = 0x1b, kDelete = 0x7f, kBackspace = 0x08, kEndOfInput = 0x04, kEraseLine = 0x15,
               kEraseWord = 0x17;
// Longer than a terminal needs for the next part of what is pasted, shorter than a person for the next key.
constexpr int kPasteWaitMs = 40;

constexpr std::string_view kPasteOn = "\x1b[?2004h", kPasteOff = "\x1b[?2004l";

std::atomic<bool> g_taken{false};
termios g_original;  // written before g_taken
termios g_edited;  // what it has between two stops, libedit's changes included
int g_screen = STDERR_FILENO;  // where the terminal shows what is written

void Show(std::string_view text) {
  while (!text.empty()) {
    const ssize_t written = ::write(g_screen, text.data(), text.size());
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) return;
    text.remove_prefix(static_cast<size_t>(written));
  }
}

// Both may run in a signal handler.
void TakeOver() {
  ::tcsetattr(STDIN_FILENO, TCSADRAIN, &g_edited);
  Show(kPasteOn);
}
void GiveBack() {
  if (!g_taken.load()) return;
  ::tcsetattr(STDIN_FILENO, TCSADRAIN, &g_original);
  Show(kPasteOff);
}

// Ctrl-Z: the shell gets its terminal as it was.
void OnStop(int) {
  const int saved = errno;
  if (g_taken.load()) ::tcgetattr(STDIN_FILENO, &g_edited);
  GiveBack();
  ::raise(SIGSTOP);
  if (g_taken.load()) TakeOver();
  errno = saved;
}

bool IsContinuation(char byte) { return (static_cast<unsigned char>(byte) & 0xC0) == 0x80; }

}  // namespace

LineEditor::State LineEditor::Push(char byte, std::string& echo) {
  if (!escape_.empty() || byte == kEscape) {
    PushEscape(byte, echo);
    return State::kMore;
  }
  return PushPlain(byte, echo);
}

// ESC [ parameters letter; ESC and another key is that key with Alt.
void LineEditor::PushEscape(char byte, std::string& echo) {
  constexpr size_t kLongest = 32;
  escape_ += byte;
  if (escape_.size() == 1) return;
  if (escape_.size() == 2) {
    if (byte == '[' || byte == 'O') return;
    if (byte == '\n' || byte == '\r') NewLine(echo);
  } else {
    const bool ends = byte >= 0x40 && byte <= 0x7e;
    if (!ends && escape_.size() < kLongest) return;
    if (escape_ == "\x1b[200~") pasting_ = true;
    if (escape_ == "\x1b[201~") pasting_ = false;
  }
  escape_.clear();
}

LineEditor::State LineEditor::PushPlain(char byte, std::string& echo) {
  const size_t line = text_.rfind('\n') == std::string::npos ? 0 : text_.rfind('\n') + 1;
  switch (byte) {
    case '\r':
    case '\n':
      if (pasting_) {
        NewLine(echo);
        return State::kMore;
      }
      if (text_.ends_with('\\')) {
        text_.pop_back();
        NewLine(echo);
        return State::kMore;
      }
      echo += '\n';
      return State::kEntered;
    case kDelete:
    case kBackspace: {
      size_t count = text_.empty() ? 0 : 1;
      while (count > 0 && count < text_.size() && IsContinuation(text_[text_.size() - count])) ++count;
      Erase(count, echo);
      return State::kMore;
    }
    case kEraseLine:
      Erase(text_.size() - line, echo);
      return State::kMore;
    case kEraseWord: {
      size_t end = text_.find_last_not_of(' ');
      end = end == std::string::npos ? 0 : end + 1;
      const size_t blank = end == 0 ? std::string::npos : text_.find_last_of(" \n", end - 1);
      Erase(text_.size() - std::max(line, blank == std::string::npos ? 0 : blank + 1), echo);
      return State::kMore;
    }
    case kEndOfInput:
      return text_.empty() ? State::kEnd : State::kMore;
    default:
      if (static_cast<unsigned char>(byte) < 0x20 && byte != '\t') return State::kMore;
      text_ += byte;
      echo += byte;
      return State::kMore;
  }
}

void LineEditor::NewLine(std::string& echo) {
  // After kEntered the screen is on the next line already.
  if (!echo.ends_with('\n')) echo += '\n';
  text_ += '\n';
}

// Draws the last line again: what is erased may be wide, or a line end.
void LineEditor::Erase(size_t count, std::string& echo) {
  if (count == 0) return;
  const bool was_line_end = text_.back() == '\n';
  text_.erase(text_.size() - count);
  const size_t line = text_.rfind('\n');
  if (was_line_end) echo += "\x1b[A";
  echo += "\r\x1b[K";
  echo += line == std::string::npos ? prompt_ + text_ : text_.substr(line + 1);
}

MessageReader::MessageReader(std::string prompt, const std::string& history)
    : prompt_(std::move(prompt)), terminal_(::isatty(STDIN_FILENO) != 0) {
  if (!terminal_ || g_taken.load()) return;
  if (::tcgetattr(STDIN_FILENO, &g_original) != 0) {
    terminal_ = false;
    return;
  }
  for (const int fd : {STDERR_FILENO, STDOUT_FILENO, STDIN_FILENO}) {
    g_screen = fd;
    if (::isatty(fd) != 0) break;
  }
  g_edited = g_original;
  g_edited.c_lflag &= ~static_cast<tcflag_t>(ICANON | ECHO);  // ISIG stays: Ctrl-C is a signal
  g_edited.c_cc[VMIN] = 1;
  g_edited.c_cc[VTIME] = 0;
  g_taken.store(true);
  OnExitBySignal(GiveBack);
  struct sigaction action {};
  action.sa_handler = OnStop;
  ::sigemptyset(&action.sa_mask);
  action.sa_flags = SA_RESTART;
  ::sigaction(SIGTSTP, &action, nullptr);
  std::atexit(GiveBack);
  TakeOver();
  line_ = LineEditing::Create(prompt_, history, g_screen, [this](int wait_ms) {
    if (!HasInput(wait_ms) || !Fill()) return -1;
    return static_cast<int>(static_cast<unsigned char>(input_[at_++]));
  });
}

bool MessageReader::Prefill(std::string text) {
  if (line_ == nullptr) return false;
  prefill_ = std::move(text);
  return true;
}

MessageReader::~MessageReader() {
  line_.reset();
  if (!terminal_) return;
  GiveBack();
  g_taken.store(false);
}

bool MessageReader::Read(std::string& message) {
  const ExitOnInterrupt exit;
  if (line_ != nullptr) return line_->Read(std::exchange(prefill_, {}), message);
  if (terminal_) return ReadFromTerminal(message);
  if (!std::getline(std::cin, message)) return false;
  if (message.ends_with('\r')) message.pop_back();
  return true;
}

bool MessageReader::HasInput(int wait_ms) const {
  if (at_ < input_.size()) return true;
  pollfd waited{STDIN_FILENO, POLLIN, 0};
  int ready = 0;
  do {
    ready = ::poll(&waited, 1, wait_ms);
  } while (ready < 0 && errno == EINTR);
  return ready > 0 && (waited.revents & (POLLIN | POLLHUP)) != 0;
}

bool MessageReader::Fill() {
  if (at_ < input_.size()) return true;
  char buffer[4096];
  ssize_t count = 0;
  do {
    count = ::read(STDIN_FILENO, buffer, sizeof buffer);
  } while (count < 0 && errno == EINTR);
  if (count <= 0) return false;
  input_.assign(buffer, static_cast<size_t>(count));
  at_ = 0;
  return true;
}

bool MessageReader::ReadFromTerminal(std::string& message) {
  LineEditor editor(prompt_);
  Show(prompt_);
  for (;;) {
    std::string echo;
    auto state = LineEditor::State::kMore;
    while (at_ < input_.size() && state == LineEditor::State::kMore) state = editor.Push(input_[at_++], echo);
    if (state == LineEditor::State::kEntered && HasInput(kPasteWaitMs) && Fill() && input_[at_] != kEndOfInput) {
      editor.NewLine(echo);
      state = LineEditor::State::kMore;
    }
    Show(echo);
    if (state == LineEditor::State::kEnd) return false;
    if (state == LineEditor::State::kEntered) {
      message = editor.text();
      return true;
    }
    if (!Fill()) return false;
  }
}

}  // namespace pith::cli
