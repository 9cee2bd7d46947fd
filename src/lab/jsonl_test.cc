#include "lab/jsonl.h"

#include <string>

#include <gtest/gtest.h>

namespace pith {
namespace {

constexpr const char* kGood =
    R"({"id": "a", "task": "niah", "length": 512, "context_text": "c", "question_text": "", )"
    R"("target": " t", "more": [1]})";

std::string With(const std::string& from, const std::string& to) {
  std::string line = kGood;
  line.replace(line.find(from), from.size(), to);
  return line;
}

TEST(Jsonl, ReadsTasks) {
  const auto tasks = ParseTasks(std::string(kGood) + "\r\n\n  \n" + With("\"a\"", "\"b\""), "t.jsonl");
  ASSERT_TRUE(tasks) << tasks.error().message;
  ASSERT_EQ(tasks->size(), 2u);
  EXPECT_EQ((*tasks)[0].id, "a");
  EXPECT_EQ((*tasks)[0].task, "niah");
  EXPECT_EQ((*tasks)[0].length, 512);
  EXPECT_EQ((*tasks)[0].question_text, "");
  EXPECT_EQ((*tasks)[0].target, " t");
  EXPECT_EQ((*tasks)[1].id, "b");
}

TEST(Jsonl, SaysWhatIsWrongAndWhere) {
  const auto message = [](const std::string& line) {
    const auto tasks = ParseTasks("\n" + line, "t.jsonl");
    EXPECT_FALSE(tasks) << line;
    if (tasks) return std::string();
    EXPECT_EQ(tasks.error().code, ErrorCode::kCorrupt);
    return tasks.error().message;
  };
  EXPECT_EQ(message("{"), "t.jsonl, line 2: this is not valid JSON");
  EXPECT_EQ(message("[1]"), "t.jsonl, line 2: this is not a JSON object");
  EXPECT_EQ(message("{} {}"), "t.jsonl, line 2: this is not valid JSON");
  EXPECT_EQ(message(With("\"id\"", "\"ID\"")), "t.jsonl, line 2: the field \"id\" is missing");
  EXPECT_EQ(message(With("\"c\"", "7")), "t.jsonl, line 2: the field \"context_text\" is not a string");
  EXPECT_EQ(message(With("\" t\"", "\"\"")), "t.jsonl, line 2: the field \"target\" is empty");
  EXPECT_EQ(message(With("512", "-1")), "t.jsonl, line 2: the field \"length\" is no number of tokens");
  EXPECT_EQ(message(With("512", "1e3")), "t.jsonl, line 2: the field \"length\" is no number of tokens");
  EXPECT_EQ(message(With("512", "99999999999")), "t.jsonl, line 2: the field \"length\" is no number of tokens");
  EXPECT_EQ(message(With("512", "null")), "t.jsonl, line 2: the field \"length\" is no number of tokens");
  EXPECT_EQ(message(std::string(kGood) + "\n" + kGood), "t.jsonl, line 3: the id \"a\" appears twice");
  EXPECT_EQ(message("\xff"), "t.jsonl, line 2: this is not valid UTF-8");
  EXPECT_EQ(message(With("[1]", std::string(100000, '['))),
            "t.jsonl, line 2: this JSON is nested more than 32 deep");
  EXPECT_EQ(ParseTasks("\n\n", "t.jsonl").error().message, "t.jsonl holds no tasks");
}

}  // namespace
}  // namespace pith
