// `pith eval --mode conversation`: messages are read turn by turn through the model's template, as a chat does, and
// then a question, of whose answer the target is judged.
//
//   recipe            how it gets to `keep` of the bytes
//   turns=flowkv      each turn when it is over, the pinned system message counted
//   turns=epicache    block by block, in the cache of the question's topic
//   others            --compress block: evicted after each block; after: all at once before the question
#ifndef PITH_LAB_CONVERSATION_JUDGE_H_
#define PITH_LAB_CONVERSATION_JUDGE_H_

#include <memory>
#include <vector>

#include "lab/judge.h"
#include "session/conversation.h"
#include "session/token_sequence.h"

namespace pith {

// A task with messages.
struct ConversationTask {
  Task task;
  std::vector<int32_t> answer;  // its beginning, of at least one token, and the target but its last token
  std::vector<int32_t> target;
  size_t num_history = 0;       // tokens of the messages
  size_t num_tokens = 0;        // of everything
};

// kCorrupt: no messages, or texts without tokens. Errors of the template.
Result<ConversationTask> TokenizeConversation(std::shared_ptr<const HostModel> model, Task task);

class ConversationJudge {
 public:
  static Result<std::unique_ptr<ConversationJudge>> Create(std::shared_ptr<HostModel> model, JudgeOptions options);

  // One row for the full cache, then one per recipe and kept fraction, but for those that are done.
  Status Run(const ConversationTask& task, const RowSink& sink);

 private:
  ConversationJudge(std::shared_ptr<HostModel> model, JudgeOptions options)
      : model_(std::move(model)), text_(model_), options_(std::move(options)) {}

  Result<EngineOptions> EngineFor(const ConversationTask& task, const Recipe& recipe, double keep) const;
  // rows_ become what a recipe says of the target.
  Status Answer(const ConversationTask& task, const Recipe& recipe, double keep, EvalRow& row);

  std::shared_ptr<HostModel> model_;
  HostText text_;
  JudgeOptions options_;
  TargetReference reference_;  // what the full cache says
  std::vector<float> rows_;    // [target, vocab] scratch
};

}  // namespace pith

#endif  // PITH_LAB_CONVERSATION_JUDGE_H_
