#include "cli/judge.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include <fmt/format.h>

#include "cli/command.h"
#include "cli/measure.h"
#include "cli/terminal.h"

namespace pith::cli {
namespace {

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

bool KeepGoing(size_t, size_t) { return !Interrupted(); }

}  // namespace

Result<JudgedTask> TokenizeTask(const HostModel& model, Task task, bool aware) {
  JudgedTask judged;
  PITH_ASSIGN_OR_RETURN(judged.compressed, model.Tokenize(task.context_text, false, true));
  std::vector<int32_t> question;
  if (!task.question_text.empty()) {
    PITH_ASSIGN_OR_RETURN(question, model.Tokenize(task.question_text, false, true));
  }
  PITH_ASSIGN_OR_RETURN(judged.target, model.Tokenize(task.target, false, true));
  std::vector<int32_t>& context = judged.compressed;
  if (aware && !question.empty()) {
    context.insert(context.end(), question.begin(), question.end() - 1);
    question.erase(question.begin(), question.end() - 1);
  }
  if (question.empty() && !context.empty()) {
    question.push_back(context.back());
    context.pop_back();
  }
  if (context.empty()) return Corrupt(fmt::format("task {}: its context has too few tokens", task.id));
  if (judged.target.empty()) return Corrupt(fmt::format("task {}: its target has no tokens", task.id));
  judged.first_row = question.size() - 1;
  judged.tail = std::move(question);
  judged.tail.insert(judged.tail.end(), judged.target.begin(), judged.target.end() - 1);
  judged.task = std::move(task);
  return judged;
}

Judge::Judge(std::shared_ptr<HostModel> model, JudgeOptions options)
    : model_(std::move(model)), options_(std::move(options)) {
  format_share_ = FormatShare(model_->info(), options_.format);
}

Result<std::unique_ptr<Judge>> Judge::Create(std::shared_ptr<HostModel> model, JudgeOptions options) {
  std::unique_ptr<Judge> judge(new Judge(std::move(model), std::move(options)));
  const JudgeOptions& o = judge->options_;
  EngineOptions engine;
  engine.num_ctx = o.max_tokens + 1;
  engine.block_tokens = o.block_tokens;
  engine.num_threads = o.num_threads;
  engine.format = o.format;
  engine.compress = CompressMode::kAfter;
  engine.seed = o.seed;
  engine.max_sequences = 2;  // the context and a compressed copy of it
  PITH_ASSIGN_OR_RETURN(engine.recipe, ParseRecipe("full"));
  if (o.compress == CompressMode::kAfter) engine.later_recipes = o.recipes;
  PITH_ASSIGN_OR_RETURN(judge->engine_, Engine::Create(judge->model_, engine));
  return judge;
}

EvalRow Judge::NewRow(const JudgedTask& task, const std::string& policy, double keep) const {
  EvalRow row;
  row.id = task.task.id;
  row.task = task.task.task;
  row.length = task.task.length;
  row.tokens = task.compressed.size();
  row.policy = policy;
  row.keep = keep;
  row.kept_bytes = format_share_;
  return row;
}

Status Judge::Follow(Engine& engine, SequenceId sequence, const JudgedTask& task, EvalRow& row) {
  rows_.clear();
  engine.SetEviction(false);
  const Status status = engine.Prefill(sequence, task.tail, false, &rows_, KeepGoing);
  engine.SetEviction(true);
  PITH_RETURN_IF_ERROR(status);
  const auto vocab = static_cast<size_t>(model_->info().num_vocab);
  const auto said = std::span<const float>(rows_).subspan(task.first_row * vocab);
  const TargetMeasure measure = MeasureTarget(said, task.target);
  row.nll = measure.nll;
  row.ok = measure.all_top;
  if (row.policy == "full") {
    full_rows_.assign(said.begin(), said.end());
  } else {
    row.kl = MeanKl(full_rows_, said, vocab);
  }
  return {};
}

Status Judge::RunAfter(const JudgedTask& task, SequenceId base, std::vector<EvalRow>& rows) {
  for (const double keep : options_.keeps) {
    for (size_t i = 0; i < options_.recipes.size(); ++i) {
      if (Interrupted()) return Cancelled("stopped");
      PITH_ASSIGN_OR_RETURN(const SequenceId copy, engine_->Fork(base));
      const SequenceHold hold(*engine_, copy);
      EvalRow row = NewRow(task, options_.names[i], keep);
      PITH_ASSIGN_OR_RETURN(row.kept, engine_->Compress(copy, options_.recipes[i], keep));
      row.kept_bytes = row.kept * format_share_;
      PITH_RETURN_IF_ERROR(Follow(*engine_, copy, task, row));
      rows.push_back(std::move(row));
    }
  }
  return {};
}

Status Judge::RunBlock(const JudgedTask& task, std::vector<EvalRow>& rows) {
  const auto num_compressed = static_cast<double>(task.compressed.size());
  for (const double keep : options_.keeps) {
    for (size_t i = 0; i < options_.recipes.size(); ++i) {
      if (Interrupted()) return Cancelled("stopped");
      EngineOptions options;
      options.num_ctx = static_cast<int>(task.num_tokens()) + 1;
      options.block_tokens = options_.block_tokens;
      options.num_threads = options_.num_threads;
      options.format = options_.format;
      options.compress = CompressMode::kBlock;
      options.seed = options_.seed;
      options.recipe = options_.recipes[i];
      options.keep_entries = std::max(1, static_cast<int>(std::floor(keep * num_compressed)));
      PITH_ASSIGN_OR_RETURN(const std::unique_ptr<Engine> engine, Engine::Create(model_, options));
      PITH_ASSIGN_OR_RETURN(const SequenceId sequence, engine->NewSequence());
      EvalRow row = NewRow(task, options_.names[i], keep);
      PITH_RETURN_IF_ERROR(engine->Prefill(sequence, task.compressed, false, nullptr, KeepGoing));
      row.kept = engine->stats().kept_fraction;
      row.kept_bytes = row.kept * format_share_;
      PITH_RETURN_IF_ERROR(Follow(*engine, sequence, task, row));
      rows.push_back(std::move(row));
    }
  }
  return {};
}

Status Judge::Run(const JudgedTask& task, std::vector<EvalRow>& rows) {
  PITH_ASSIGN_OR_RETURN(const SequenceId base, engine_->NewSequence());
  const SequenceHold hold(*engine_, base);
  PITH_RETURN_IF_ERROR(engine_->Prefill(base, task.compressed, false, nullptr, KeepGoing));
  {
    PITH_ASSIGN_OR_RETURN(const SequenceId copy, engine_->Fork(base));
    const SequenceHold hold_copy(*engine_, copy);
    EvalRow row = NewRow(task, "full", 1);
    PITH_RETURN_IF_ERROR(Follow(*engine_, copy, task, row));
    rows.push_back(std::move(row));
  }
  return options_.compress == CompressMode::kAfter ? RunAfter(task, base, rows) : RunBlock(task, rows);
}

}  // namespace pith::cli
