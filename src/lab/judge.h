// One item of `pith eval`: a context is read and compressed, then question and
// target are teacher-forced in one pass over what was kept.
#ifndef PITH_LAB_JUDGE_H_
#define PITH_LAB_JUDGE_H_

#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "engine/engine.h"
#include "host/model.h"
#include "lab/eval_row.h"
#include "lab/jsonl.h"
#include "lab/measure.h"
#include "pith/types.h"

namespace pith {

// Frees a sequence at the end of a scope.
class SequenceHold {
 public:
  SequenceHold(Engine& engine, SequenceId sequence) : engine_(engine), sequence_(sequence) {}
  ~SequenceHold() { engine_.Free(sequence_); }
  SequenceHold(const SequenceHold&) = delete;
  SequenceHold& operator=(const SequenceHold&) = delete;

 private:
  Engine& engine_;
  SequenceId sequence_;
};

// A task as tokens. compressed [n]: what recipes act on; its first num_pinnable are the instruction that pins
// protect. tail: what follows up to the token before the target's last; its rows from `first_row` on say the target.
struct JudgedTask {
  Task task;
  std::vector<int32_t> compressed;
  std::vector<int32_t> tail;
  std::vector<int32_t> target;
  size_t num_pinnable = 0;
  size_t first_row = 0;
  size_t num_tokens() const { return compressed.size() + tail.size(); }
};

// The three texts apart, special tokens parsed, no BOS added. aware: the question
// but its last token belongs to the compressed part. kCorrupt: a text without tokens.
Result<JudgedTask> TokenizeTask(const HostModel& model, Task task, bool aware);

enum class Pins : uint8_t { kOff, kOn, kBoth };

struct JudgeOptions {
  std::vector<std::string> names;  // as given; policy of the rows
  std::vector<Recipe> recipes;
  std::vector<double> keeps;
  CompressMode compress = CompressMode::kAfter;
  PageFormat format = {};
  Pins pins = Pins::kOff;
  bool reference = false;  // a row "libllama" as well
  // What was compressed is saved in this form and restored before it is judged; the bytes of rows are then those of the
  // saved sequence. None: it is not.
  std::optional<CodedForm> saved;
  int block_tokens = 0;
  int num_threads = 1;
  uint64_t seed = 0;
  int max_tokens = 0;  // of the longest task
  int perturbation_queries = 32;  // last queries whose attention outputs are compared (Perturbation)
  std::function<bool()> stopped = [] { return false; };  // asked between pieces of work: kCancelled where it says yes
};

// The same question as Engine::Prefill() asks it.
inline auto KeepGoing(const JudgeOptions& options) {
  return [&options](size_t, size_t) { return !options.stopped(); };
}

// An engine that holds the longest task's full cache and compresses copies of it afterwards. Who asks adds its
// sequences and recipes.
Result<EngineOptions> FullCacheEngine(const JudgeOptions& options);

// Rows that exist already, and where new ones go.
struct RowSink {
  std::function<bool(const std::string& policy, double keep)> done = [](const std::string&, double) { return false; };
  std::function<Status(EvalRow)> add;
  // Looks at a sequence right after it was compressed.
  std::function<void(const Engine&, SequenceId, const std::string& policy, double keep)> look;
};

// What rows call a policy under which the instruction was pinned.
std::string PinnedName(const std::string& policy);

class Judge {
 public:
  static Result<std::unique_ptr<Judge>> Create(std::shared_ptr<HostModel> model, JudgeOptions options);

  // One row for the full cache, then one per recipe and kept fraction, but for those that are done.
  // The context is read once. kCancelled when options.stopped().
  Status Run(const JudgedTask& task, const RowSink& sink);

 private:
  Judge(std::shared_ptr<HostModel> model, JudgeOptions options);

  Status RunOnce(const JudgedTask& task, bool pinned, const RowSink& sink);
  Status RunFull(const JudgedTask& task, SequenceId base, bool pinned, const RowSink& sink);
  Status RunPlain(const JudgedTask& task, const RowSink& sink);
  Status RunAfter(const JudgedTask& task, SequenceId base, bool pinned, const RowSink& sink);
  Status RunBlock(const JudgedTask& task, bool pinned, const RowSink& sink);
  Status ReadContext(Engine& engine, SequenceId sequence, const JudgedTask& task, bool pinned) const;
  // Saves a sequence and puts it back under another name. Its share of the full cache's bytes when saved goes to
  // `bytes`.
  Status SaveAndRestore(const JudgedTask& task, SequenceId& sequence, std::unique_ptr<SequenceHold>& hold,
                        double& bytes);
  // Feeds the tail to sequences without eviction; rows_ are what they say of the target.
  Status Follow(Engine& engine, std::span<const SequenceId> sequences, const JudgedTask& task);
  // Measures the i-th sequence of the last Follow().
  void Measure(size_t i, const JudgedTask& task, EvalRow& row) const;
  EvalRow NewRow(const JudgedTask& task, const std::string& policy, double keep, bool pinned) const;

  std::shared_ptr<HostModel> model_;
  JudgeOptions options_;
  double format_share_ = 1;
  std::unique_ptr<Engine> engine_;  // recipe full: the reference, and the source of forks
  std::unique_ptr<PlainContext> plain_;  // null unless asked for
  TargetReference reference_;       // what the full cache says
  std::vector<float> rows_;         // [sequences, target, vocab] scratch
};

}  // namespace pith

#endif  // PITH_LAB_JUDGE_H_
