// Tasks of `pith eval`: one JSON object a line.
#ifndef PITH_LAB_JSONL_H_
#define PITH_LAB_JSONL_H_

#include <string>
#include <string_view>
#include <vector>

#include "host/model.h"
#include "pith/types.h"

namespace pith {

struct Task {
  std::string id;
  std::string task;
  int length = 0;             // approximate tokens of context
  std::string pinned_text;    // an instruction before the context, which pins protect; may be empty
  std::vector<ChatMessage> messages;  // of --mode conversation, in place of a context; may be empty
  std::string answer_text;    // there: the beginning of the answer; may be empty
  std::string context_text;   // raw, with special tokens in it
  std::string long_text;      // generated between context and question, one token at a time; may be empty
  std::string question_text;  // may be empty
  std::string target;         // not empty
};

// Empty lines are skipped, unknown fields ignored. kCorrupt with the line's
// number; `name` begins the sentence.
Result<std::vector<Task>> ParseTasks(std::string_view text, std::string_view name);

}  // namespace pith

#endif  // PITH_LAB_JSONL_H_
