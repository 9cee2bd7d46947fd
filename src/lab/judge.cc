#include "lab/judge.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "base/logits.h"
#include "engine/full_cache.h"
#include "engine/resolved.h"

namespace pith {
Result<JudgedTask> TokenizeTask(const HostModel& model, Task task, bool aware) {
  JudgedTask judged;
  if (!task.messages.empty()) {
    return InvalidArgument(fmt::format("task {} is a conversation: judge it with --mode conversation", task.id));
  }
  if (!task.pinned_text.empty()) {
    PITH_ASSIGN_OR_RETURN(judged.compressed, model.Tokenize(task.pinned_text, false, true));
    judged.num_pinnable = judged.compressed.size();
  }
  std::vector<int32_t>& context = judged.compressed;
  PITH_ASSIGN_OR_RETURN(const std::vector<int32_t> read, model.Tokenize(task.context_text, false, true));
  context.insert(context.end(), read.begin(), read.end());
  std::vector<int32_t> question;
  if (!task.question_text.empty()) {
    PITH_ASSIGN_OR_RETURN(question, model.Tokenize(task.question_text, false, true));
  }
  PITH_ASSIGN_OR_RETURN(judged.target, model.Tokenize(task.target, false, true));
  if (aware && !question.empty()) {
    context.insert(context.end(), question.begin(), question.end() - 1);
    question.erase(question.begin(), question.end() - 1);
  }
  if (question.empty() && !context.empty()) {
    question.push_back(context.back());
    context.pop_back();
  }
  if (context.size() <= judged.num_pinnable)
    return Corrupt(fmt::format("task {}: its context has too few tokens", task.id));
  if (judged.target.empty()) return Corrupt(fmt::format("task {}: its target has no tokens", task.id));
  judged.first_row = question.size() - 1;
  judged.tail = std::move(question);
  judged.tail.insert(judged.tail.end(), judged.target.begin(), judged.target.end() - 1);
  judged.task = std::move(task);
  return judged;
}

std::string PinnedName(const std::string& policy) { return policy + " +pins"; }

Result<EngineOptions> FullCacheEngine(const JudgeOptions& options) {
  EngineOptions engine;
  engine.num_ctx = options.max_tokens + 1;
  engine.block_tokens = options.block_tokens;
  engine.num_threads = options.num_threads;
  engine.format = options.format;
  engine.compress = CompressMode::kAfter;
  engine.seed = options.seed;
  engine.saved = options.saved;
  PITH_ASSIGN_OR_RETURN(engine.recipe, ParseRecipe("full"));
  return engine;
}

Judge::Judge(std::shared_ptr<HostModel> model, JudgeOptions options)
    : model_(std::move(model)), options_(std::move(options)) {
  format_share_ = FormatShare(model_->info(), options_.format);
}

Result<std::unique_ptr<Judge>> Judge::Create(std::shared_ptr<HostModel> model, JudgeOptions options) {
  std::unique_ptr<Judge> judge(new Judge(std::move(model), std::move(options)));
  const JudgeOptions& o = judge->options_;
  PITH_ASSIGN_OR_RETURN(EngineOptions engine, FullCacheEngine(o));
  // The context, and a copy for each kept fraction.
  engine.max_sequences = 1 + static_cast<int>(std::max<size_t>(1, o.keeps.size()));
  if (o.compress == CompressMode::kAfter) engine.later_recipes = o.recipes;
  if (o.reference) {
    PITH_ASSIGN_OR_RETURN(judge->plain_,
                          PlainContext::Create(*judge->model_, o.max_tokens + 1, 512, false, o.num_threads));
  }
  PITH_ASSIGN_OR_RETURN(judge->engine_, Engine::Create(judge->model_, engine));
  return judge;
}

EvalRow Judge::NewRow(const JudgedTask& task, const std::string& policy, double keep, bool pinned) const {
  EvalRow row;
  row.id = task.task.id;
  row.task = task.task.task;
  row.length = task.task.length;
  row.tokens = task.compressed.size();
  row.policy = pinned ? PinnedName(policy) : policy;
  row.keep = keep;
  row.kept_bytes = format_share_;
  return row;
}

Status Judge::ReadContext(Engine& engine, SequenceId sequence, const JudgedTask& task, bool pinned) const {
  std::span<const int32_t> rest = task.compressed;
  if (pinned) {
    PITH_RETURN_IF_ERROR(engine.Prefill(sequence, rest.first(task.num_pinnable), true, nullptr, KeepGoing(options_)));
    rest = rest.subspan(task.num_pinnable);
  }
  return engine.Prefill(sequence, rest, false, nullptr, KeepGoing(options_));
}

Status Judge::Follow(Engine& engine, std::span<const SequenceId> sequences, const JudgedTask& task) {
  for (const SequenceId id : sequences) engine.SetEviction(id, false);
  const Status status = engine.PrefillTogether(sequences, task.tail, task.first_row, rows_, KeepGoing(options_));
  for (const SequenceId id : sequences) engine.SetEviction(id, true);
  return status ? CheckLogits(rows_) : status;
}

void Judge::Measure(size_t i, const JudgedTask& task, EvalRow& row) const {
  const size_t floats = task.target.size() * static_cast<size_t>(model_->info().num_vocab);
  const TargetMeasure measure = reference_.Compare(std::span<const float>(rows_).subspan(i * floats, floats), row.kl);
  row.nll = measure.nll;
  row.ok = measure.all_top;
}

Status Judge::SaveAndRestore(const JudgedTask& task, SequenceId& sequence, std::unique_ptr<SequenceHold>& hold,
                             double& bytes) {
  PITH_ASSIGN_OR_RETURN(const std::vector<std::byte> saved, engine_->SaveToMemory(sequence, {}));
  hold.reset();
  PITH_ASSIGN_OR_RETURN(const RestoredSequence restored, engine_->RestoreFromMemory(saved, engine_->options()));
  sequence = restored.sequence;
  hold = std::make_unique<SequenceHold>(*engine_, sequence);
  bytes = static_cast<double>(saved.size()) /
          static_cast<double>(FullCacheBytes(model_->info(), static_cast<int>(task.compressed.size())));
  return {};
}

// libllama's own attention on the same tokens; its kl is the distance from pith's full cache.
Status Judge::RunPlain(const JudgedTask& task, const RowSink& sink) {
  EvalRow row = NewRow(task, "libllama", 1, false);
  row.kept_bytes = 1;
  if (sink.done(row.policy, 1)) return {};
  plain_->Clear();
  PITH_RETURN_IF_ERROR(plain_->Decode(0, task.compressed));
  rows_.clear();
  PITH_RETURN_IF_ERROR(plain_->Decode(0, task.tail, &rows_));
  rows_.erase(rows_.begin(), rows_.begin() + static_cast<std::ptrdiff_t>(task.first_row) * model_->info().num_vocab);
  PITH_RETURN_IF_ERROR(CheckLogits(rows_));
  Measure(0, task, row);
  return sink.add(std::move(row));
}

// The reference is needed for every other row, so it is computed even where its own row is done.
Status Judge::RunFull(const JudgedTask& task, SequenceId base, bool pinned, const RowSink& sink) {
  PITH_ASSIGN_OR_RETURN(const SequenceId copy, engine_->Fork(base));
  const SequenceHold hold(*engine_, copy);
  PITH_RETURN_IF_ERROR(Follow(*engine_, {&copy, 1}, task));
  reference_.Set(rows_, task.target);
  EvalRow row = NewRow(task, "full", 1, false);
  if (pinned || sink.done(row.policy, 1)) return {};  // pins change nothing where nothing is dropped
  row.nll = reference_.own().nll;
  row.ok = reference_.own().all_top;
  return sink.add(std::move(row));
}

Status Judge::RunAfter(const JudgedTask& task, SequenceId base, bool pinned, const RowSink& sink) {
  for (size_t i = 0; i < options_.recipes.size(); ++i) {
    if (options_.stopped()) return Cancelled("stopped");
    std::vector<EvalRow> rows;
    std::vector<SequenceId> forks;
    std::vector<std::unique_ptr<SequenceHold>> holds;
    std::vector<CompressTarget> targets;
    for (const double keep : options_.keeps) {
      EvalRow row = NewRow(task, options_.names[i], keep, pinned);
      if (sink.done(row.policy, keep)) continue;
      PITH_ASSIGN_OR_RETURN(const SequenceId fork, engine_->Fork(base));
      holds.push_back(std::make_unique<SequenceHold>(*engine_, fork));
      forks.push_back(fork);
      targets.push_back({.sequence = fork, .keep_fraction = keep});
      rows.push_back(std::move(row));
    }
    if (rows.empty()) continue;
    PITH_ASSIGN_OR_RETURN(const std::vector<double> kept, engine_->CompressForks(base, options_.recipes[i], targets));
    std::vector<double> kept_bytes;
    for (const SequenceId fork : forks) kept_bytes.push_back(engine_->KeptBytes(fork));
    for (size_t k = 0; k < rows.size() && options_.saved; ++k) {
      PITH_RETURN_IF_ERROR(SaveAndRestore(task, forks[k], holds[k], kept_bytes[k]));
    }
    for (size_t k = 0; k < rows.size() && sink.look; ++k) sink.look(*engine_, forks[k], rows[k].policy, rows[k].keep);
    PITH_RETURN_IF_ERROR(Follow(*engine_, forks, task));
    for (size_t k = 0; k < rows.size(); ++k) {
      rows[k].kept = kept[k];
      rows[k].kept_bytes = kept_bytes[k];
      Measure(k, task, rows[k]);
      PITH_RETURN_IF_ERROR(sink.add(std::move(rows[k])));
    }
  }
  return {};
}

Status Judge::RunBlock(const JudgedTask& task, bool pinned, const RowSink& sink) {
  for (size_t i = 0; i < options_.recipes.size(); ++i) {
    for (const double keep : options_.keeps) {
      if (options_.stopped()) return Cancelled("stopped");
      EvalRow row = NewRow(task, options_.names[i], keep, pinned);
      if (sink.done(row.policy, keep)) continue;
      EngineOptions options;
      options.num_ctx = static_cast<int>(task.num_tokens()) + 1;
      options.block_tokens = options_.block_tokens;
      options.num_threads = options_.num_threads;
      options.format = options_.format;
      options.compress = CompressMode::kBlock;
      options.seed = options_.seed;
      KeepShare(model_->info(), options_.recipes[i], static_cast<int>(task.compressed.size()), keep, &options);
      PITH_ASSIGN_OR_RETURN(const std::unique_ptr<Engine> engine, Engine::Create(model_, options));
      PITH_ASSIGN_OR_RETURN(const SequenceId sequence, engine->NewSequence());
      PITH_RETURN_IF_ERROR(ReadContext(*engine, sequence, task, pinned));
      row.kept = engine->stats().kept_fraction;
      row.kept_bytes = engine->KeptBytes(sequence);
      if (sink.look) sink.look(*engine, sequence, row.policy, keep);
      PITH_RETURN_IF_ERROR(Follow(*engine, {&sequence, 1}, task));
      Measure(0, task, row);
      PITH_RETURN_IF_ERROR(sink.add(std::move(row)));
    }
  }
  return {};
}

Status Judge::RunOnce(const JudgedTask& task, bool pinned, const RowSink& sink) {
  bool all_done = pinned || (sink.done("full", 1) && (plain_ == nullptr || sink.done("libllama", 1)));
  for (const std::string& name : options_.names) {
    for (const double keep : options_.keeps) all_done = all_done && sink.done(pinned ? PinnedName(name) : name, keep);
  }
  if (all_done) return {};
  PITH_ASSIGN_OR_RETURN(const SequenceId base, engine_->NewSequence());
  const SequenceHold hold(*engine_, base);
  PITH_RETURN_IF_ERROR(ReadContext(*engine_, base, task, pinned));
  PITH_RETURN_IF_ERROR(RunFull(task, base, pinned, sink));
  if (plain_ != nullptr && !pinned) PITH_RETURN_IF_ERROR(RunPlain(task, sink));
  return options_.compress == CompressMode::kAfter ? RunAfter(task, base, pinned, sink) : RunBlock(task, pinned, sink);
}

Status Judge::Run(const JudgedTask& task, const RowSink& sink) {
  const bool pinnable = task.num_pinnable > 0;
  if (options_.pins != Pins::kOn || !pinnable) PITH_RETURN_IF_ERROR(RunOnce(task, false, sink));
  if (options_.pins != Pins::kOff && pinnable) PITH_RETURN_IF_ERROR(RunOnce(task, true, sink));
  return {};
}

}  // namespace pith
