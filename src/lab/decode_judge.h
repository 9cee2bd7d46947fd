// `pith eval --mode decode`: recipes that evict while text is generated.
//
// The context is read, then the task's long text is given to the model one token at a time, as if it had generated
// it, and question and target after it, while the recipe holds the cache at its budget: the kept fraction of all
// entries up to the question. Rows say how well the target was foretold (facts told in the long text, far behind), and
// beside it NLL and KL along the long text itself (long_nll, long_kl).
#ifndef PITH_LAB_DECODE_JUDGE_H_
#define PITH_LAB_DECODE_JUDGE_H_

#include <memory>
#include <span>
#include <vector>

#include "engine/engine.h"
#include "host/model.h"
#include "lab/judge.h"
#include "pith/types.h"

namespace pith {

// A task in the order in which decoding meets it: context [n] is read at once, script is given token by token. Its
// first num_long tokens are the long text; the target begins at script[first_target].
struct DecodeTask {
  Task task;
  std::vector<int32_t> context;
  std::vector<int32_t> script;
  size_t num_long = 0;
  size_t first_target = 0;
  size_t num_tokens() const { return context.size() + script.size(); }
};

// Without long_text, all but the first 64 tokens of the context are the long text.
Result<DecodeTask> TokenizeForDecode(const HostModel& model, Task task);

class DecodeJudge {
 public:
  // options as for Judge; pins and compress are not used.
  static Result<std::unique_ptr<DecodeJudge>> Create(std::shared_ptr<HostModel> model, JudgeOptions options);

  // As Judge::Run.
  Status Run(const DecodeTask& task, const RowSink& sink);

 private:
  DecodeJudge(std::shared_ptr<HostModel> model, JudgeOptions options);

  // One pass along the script: the full cache in chunks, and the budgeted engine (null: none) token by token.
  Status Walk(const DecodeTask& task, Engine* budgeted, EvalRow& row);
  Status DecodeChunk(Engine& engine, SequenceId sequence, std::span<const int32_t> tokens);

  std::shared_ptr<HostModel> model_;
  JudgeOptions options_;
  double format_share_ = 1;
  std::unique_ptr<Engine> engine_;  // the full cache
  TargetReference reference_;
  std::vector<float> full_rows_, rows_;  // [chunk, vocab]
};

}  // namespace pith

#endif  // PITH_LAB_DECODE_JUDGE_H_
