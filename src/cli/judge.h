// One item of `pith eval`: a context is read and compressed, then question and
// target are teacher-forced in one pass over what was kept.
#ifndef PITH_CLI_JUDGE_H_
#define PITH_CLI_JUDGE_H_

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "cli/jsonl.h"
#include "engine/engine.h"
#include "host/model.h"
#include "pith/types.h"

namespace pith::cli {

// A task as tokens. compressed [n]: what recipes act on. tail: what follows up to
// the token before the target's last; its rows from `first_row` on say the target.
struct JudgedTask {
  Task task;
  std::vector<int32_t> compressed;
  std::vector<int32_t> tail;
  std::vector<int32_t> target;
  size_t first_row = 0;
  size_t num_tokens() const { return compressed.size() + tail.size(); }
};

// The three texts apart, special tokens parsed, no BOS added. aware: the question
// but its last token belongs to the compressed part. kCorrupt: a text without tokens.
Result<JudgedTask> TokenizeTask(const HostModel& model, Task task, bool aware);

struct EvalRow {
  std::string id;
  std::string task;
  int length = 0;
  size_t tokens = 0;
  std::string policy;
  double keep = 1;
  double kept = 1;
  double nll = 0;
  double kl = 0;
  bool ok = false;
  double kept_bytes = 1;
};

struct JudgeOptions {
  std::vector<std::string> names;  // as given; policy of the rows
  std::vector<Recipe> recipes;
  std::vector<double> keeps;
  CompressMode compress = CompressMode::kAfter;
  KvFormat format = KvFormat::kF16;
  int block_tokens = 0;
  int num_threads = 1;
  uint64_t seed = 0;
  int max_tokens = 0;  // of the longest task
};

class Judge {
 public:
  static Result<std::unique_ptr<Judge>> Create(std::shared_ptr<HostModel> model, JudgeOptions options);

  // Appends one row for the full cache, then one per recipe and kept fraction.
  // kCancelled at Ctrl-C; rows of finished parts stay.
  Status Run(const JudgedTask& task, std::vector<EvalRow>& rows);

  size_t rows_per_task() const { return 1 + options_.recipes.size() * options_.keeps.size(); }

 private:
  Judge(std::shared_ptr<HostModel> model, JudgeOptions options);

  Status RunAfter(const JudgedTask& task, SequenceId base, std::vector<EvalRow>& rows);
  Status RunBlock(const JudgedTask& task, std::vector<EvalRow>& rows);
  // Feeds the tail to the sequence without eviction and measures the target.
  Status Follow(Engine& engine, SequenceId sequence, const JudgedTask& task, EvalRow& row);
  EvalRow NewRow(const JudgedTask& task, const std::string& policy, double keep) const;

  std::shared_ptr<HostModel> model_;
  JudgeOptions options_;
  double format_share_ = 1;
  std::unique_ptr<Engine> engine_;  // recipe full: the reference, and the source of forks
  std::vector<float> full_rows_;    // [target, vocab] of the full cache
  std::vector<float> rows_;         // [tail, vocab] scratch
};

}  // namespace pith::cli

#endif  // PITH_CLI_JUDGE_H_
