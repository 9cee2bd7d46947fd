#include "cli/line_input.h"

#include <string>

#include <gtest/gtest.h>

namespace pith::cli {
namespace {

struct Typed {
  std::string text;
  std::string echo;
  LineEditor::State state = LineEditor::State::kMore;
  size_t taken = 0;
};

// Up to the first byte after which the editor says anything but "more".
Typed Type(const std::string& keys) {
  LineEditor editor("> ");
  Typed typed;
  while (typed.taken < keys.size() && typed.state == LineEditor::State::kMore) {
    typed.state = editor.Push(keys[typed.taken++], typed.echo);
  }
  typed.text = editor.text();
  return typed;
}

TEST(LineEditor, EnterSends) {
  const Typed typed = Type("hello\nmore");
  EXPECT_EQ(typed.text, "hello");
  EXPECT_EQ(typed.echo, "hello\n");
  EXPECT_EQ(typed.state, LineEditor::State::kEntered);
  EXPECT_EQ(typed.taken, 6u);
}

TEST(LineEditor, LongLinesAreWhole) {
  const std::string text(100'000, 'x');
  EXPECT_EQ(Type(text + "\n").text, text);
}

TEST(LineEditor, WhatIsPastedIsOneMessage) {
  const Typed typed = Type("see: \x1b[200~one\rtwo\n\tthree\\\n\x1b[201~!\n");
  EXPECT_EQ(typed.text, "see: one\ntwo\n\tthree\\\n!");
  EXPECT_EQ(typed.state, LineEditor::State::kEntered);
}

TEST(LineEditor, GoesOnWithTheNextLine) {
  EXPECT_EQ(Type("one\\\ntwo\n").text, "one\ntwo");
  EXPECT_EQ(Type("one\x1b\ntwo\n").text, "one\ntwo") << "Alt+Enter";
  LineEditor editor("> ");
  std::string echo;
  for (const char c : std::string("one\n")) editor.Push(c, echo);
  editor.NewLine(echo);
  for (const char c : std::string("two\n")) editor.Push(c, echo);
  EXPECT_EQ(editor.text(), "one\ntwo");
  EXPECT_EQ(echo, "one\ntwo\n");
}

TEST(LineEditor, Erases) {
  EXPECT_EQ(Type("ab\x7f\x7f\x7f" "c\n").text, "c");
  EXPECT_EQ(Type("a\xc3\xaf\x7f\n").text, "a") << "a whole character";
  EXPECT_EQ(Type("a\xf0\x9f\x98\x80\x08\n").text, "a");
  EXPECT_EQ(Type("one two  \x17\n").text, "one ");
  EXPECT_EQ(Type("one\x17\n").text, "");
  EXPECT_EQ(Type("one\\\ntwo three\x15" "four\n").text, "one\nfour");
  EXPECT_EQ(Type("one\\\n\x7f\x7f\n").text, "on") << "back over a line end";
}

TEST(LineEditor, OtherKeysDoNothing) {
  EXPECT_EQ(Type("a\x1b[D\x1b[1;5Cb\x1bOPc\x01\n").text, "abc");
  EXPECT_EQ(Type("a\x04\n").text, "a");
  EXPECT_EQ(Type("\x04").state, LineEditor::State::kEnd);
}

}  // namespace
}  // namespace pith::cli
