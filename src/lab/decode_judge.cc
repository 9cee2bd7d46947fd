#include "lab/decode_judge.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "base/logits.h"
#include "engine/full_cache.h"
#include "engine/resolved.h"

namespace pith {
namespace {

constexpr size_t kPromptTokens = 64;
// Rows of logits that are compared at once.
constexpr size_t kChunk = 64;

}  // namespace

Result<DecodeTask> TokenizeForDecode(const HostModel& model, Task task) {
  DecodeTask made;
  for (const std::string* text : {&task.pinned_text, &task.context_text}) {
    if (text->empty()) continue;
    PITH_ASSIGN_OR_RETURN(const std::vector<int32_t> tokens, model.Tokenize(*text, false, true));
    made.context.insert(made.context.end(), tokens.begin(), tokens.end());
  }
  if (!task.long_text.empty()) {
    PITH_ASSIGN_OR_RETURN(made.script, model.Tokenize(task.long_text, false, true));
  } else if (made.context.size() > 2 * kPromptTokens) {
    made.script.assign(made.context.begin() + kPromptTokens, made.context.end());
    made.context.resize(kPromptTokens);
  }
  if (made.context.empty() || made.script.size() < 2) {
    return Corrupt(fmt::format("task {}: there is no long text to generate", task.id));
  }
  made.num_long = made.script.size();
  for (const std::string* text : {&task.question_text, &task.target}) {
    if (text == &task.target) made.first_target = made.script.size();
    if (text->empty()) continue;
    PITH_ASSIGN_OR_RETURN(const std::vector<int32_t> tokens, model.Tokenize(*text, false, true));
    made.script.insert(made.script.end(), tokens.begin(), tokens.end());
  }
  if (made.script.size() == made.first_target)
    return Corrupt(fmt::format("task {}: its target has no tokens", task.id));
  made.task = std::move(task);
  return made;
}

DecodeJudge::DecodeJudge(std::shared_ptr<HostModel> model, JudgeOptions options)
    : model_(std::move(model)), options_(std::move(options)) {
  format_share_ = FormatShare(model_->info(), options_.format);
}

Result<std::unique_ptr<DecodeJudge>> DecodeJudge::Create(std::shared_ptr<HostModel> model, JudgeOptions options) {
  std::unique_ptr<DecodeJudge> judge(new DecodeJudge(std::move(model), std::move(options)));
  EngineOptions engine;
  engine.num_ctx = judge->options_.max_tokens + 1;
  engine.num_threads = judge->options_.num_threads;
  engine.format = judge->options_.format;
  PITH_ASSIGN_OR_RETURN(engine.recipe, ParseRecipe("full"));
  PITH_ASSIGN_OR_RETURN(judge->engine_, Engine::Create(judge->model_, engine));
  return judge;
}

// rows_ [tokens.size(), vocab]: what the engine says after each of the tokens.
Status DecodeJudge::DecodeChunk(Engine& engine, SequenceId sequence, std::span<const int32_t> tokens) {
  rows_.clear();
  for (const int32_t token : tokens) {
    if (options_.stopped()) return Cancelled("stopped");
    PITH_RETURN_IF_ERROR(engine.Decode(sequence, token));
    const std::span<const float> row = engine.logits(sequence);
    rows_.insert(rows_.end(), row.begin(), row.end());
  }
  return CheckLogits(rows_);
}

Status DecodeJudge::Walk(const DecodeTask& task, Engine* budgeted, EvalRow& row) {
  PITH_ASSIGN_OR_RETURN(const SequenceId full, engine_->NewSequence());
  const SequenceHold hold(*engine_, full);
  PITH_RETURN_IF_ERROR(engine_->Prefill(full, task.context, false, nullptr, KeepGoing(options_)));
  SequenceId sequence = 0;
  if (budgeted != nullptr) {
    PITH_ASSIGN_OR_RETURN(sequence, budgeted->NewSequence());
    PITH_RETURN_IF_ERROR(budgeted->Prefill(sequence, task.context, false, nullptr, KeepGoing(options_)));
  }
  // Token i of the script foretells token i + 1. Chunks end where the long text and the question do.
  double nll[2] = {}, kl[2] = {};
  size_t count[2] = {};
  bool ok = true;
  const size_t last = task.script.size() - 1, borders[] = {task.num_long - 1, task.first_target - 1, last};
  for (size_t at = 0, part = 0; at < last;) {
    while (at >= borders[part]) ++part;
    const size_t end = std::min(at + kChunk, borders[part]);
    const std::span<const int32_t> tokens = std::span(task.script).subspan(at, end - at);
    const std::span<const int32_t> next = std::span(task.script).subspan(at + 1, end - at);
    PITH_RETURN_IF_ERROR(engine_->PrefillTogether({&full, 1}, tokens, 0, full_rows_, KeepGoing(options_)));
    PITH_RETURN_IF_ERROR(CheckLogits(full_rows_));
    if (budgeted != nullptr) PITH_RETURN_IF_ERROR(DecodeChunk(*budgeted, sequence, tokens));
    at = end;
    if (part == 1) continue;  // the question is given, nothing of it is measured
    reference_.Set(full_rows_, next);
    double chunk_kl = 0;
    const TargetMeasure measure = budgeted != nullptr ? reference_.Compare(rows_, chunk_kl) : reference_.own();
    const size_t to = part == 2 ? 1 : 0;
    nll[to] += measure.nll * static_cast<double>(next.size());
    kl[to] += chunk_kl * static_cast<double>(next.size());
    count[to] += next.size();
    if (to == 1) ok = ok && measure.all_top;
  }
  row.long_nll = nll[0] / static_cast<double>(count[0]);
  row.long_kl = kl[0] / static_cast<double>(count[0]);
  row.nll = nll[1] / static_cast<double>(count[1]);
  row.kl = kl[1] / static_cast<double>(count[1]);
  row.ok = ok;
  if (budgeted != nullptr) {
    row.kept = budgeted->stats().kept_fraction;
    budgeted->Free(sequence);
  }
  row.kept_bytes = row.kept * format_share_;
  return {};
}

Status DecodeJudge::Run(const DecodeTask& task, const RowSink& sink) {
  EvalRow fresh;
  fresh.id = task.task.id;
  fresh.task = task.task.task;
  fresh.length = task.task.length;
  fresh.tokens = task.context.size() + task.num_long;
  if (!sink.done("full", 1)) {
    EvalRow row = fresh;
    row.policy = "full";
    PITH_RETURN_IF_ERROR(Walk(task, nullptr, row));
    PITH_RETURN_IF_ERROR(sink.add(std::move(row)));
  }
  for (size_t i = 0; i < options_.recipes.size(); ++i) {
    for (const double keep : options_.keeps) {
      if (sink.done(options_.names[i], keep)) continue;
      EngineOptions options;
      options.num_ctx = static_cast<int>(task.num_tokens()) + 1;
      options.num_threads = options_.num_threads;
      options.format = options_.format;
      options.compress = CompressMode::kBlock;
      options.seed = options_.seed;
      KeepShare(model_->info(), options_.recipes[i], static_cast<int>(fresh.tokens), keep, &options);
      PITH_ASSIGN_OR_RETURN(const std::unique_ptr<Engine> engine, Engine::Create(model_, options));
      EvalRow row = fresh;
      row.policy = options_.names[i];
      row.keep = keep;
      PITH_RETURN_IF_ERROR(Walk(task, engine.get(), row));
      PITH_RETURN_IF_ERROR(sink.add(std::move(row)));
    }
  }
  return {};
}

}  // namespace pith
