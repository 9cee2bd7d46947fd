#include "lab/conversation_judge.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "base/logits.h"
#include "engine/resolved.h"

namespace pith {
namespace {

// Counts what it is fed.
class CountingSequence final : public TokenSequence {
 public:
  Status Feed(std::span<const int32_t> tokens, bool pin, const Progress&) override {
    count_ += static_cast<int>(tokens.size());
    pinned_ += pin ? static_cast<int>(tokens.size()) : 0;
    return {};
  }
  Status Decode(int32_t) override { return ++count_, Status(); }
  std::span<const float> logits() const override { return {}; }
  int num_tokens() const override { return count_; }
  int num_pinned() const { return pinned_; }

 private:
  int count_ = 0, pinned_ = 0;
};

// The task's messages, which the sequence has read.
Result<Conversation> Read(const TextModel& text, const Task& task, TokenSequence& sequence, const Progress& progress) {
  std::span<const ChatMessage> messages = task.messages;
  ConversationOptions options;
  if (!messages.empty() && messages.front().role == "system") options.system = messages.front().content;
  Conversation conversation(text, std::move(options));
  PITH_RETURN_IF_ERROR(conversation.Take({messages.begin(), messages.end()}));
  PITH_RETURN_IF_ERROR(conversation.Replay(sequence, progress));
  return conversation;
}

}  // namespace

Result<ConversationTask> TokenizeConversation(std::shared_ptr<const HostModel> model, Task task) {
  if (task.messages.empty()) {
    return Corrupt(fmt::format("task {} has no messages, and --mode conversation judges what has", task.id));
  }
  const HostText text(model);
  ConversationTask made;
  CountingSequence history;
  PITH_ASSIGN_OR_RETURN(Conversation conversation, Read(text, task, history, {}));
  made.num_history = static_cast<size_t>(history.num_tokens());
  PITH_RETURN_IF_ERROR(conversation.Say(task.question_text));
  if (!task.answer_text.empty()) {
    PITH_ASSIGN_OR_RETURN(made.answer, model->Tokenize(task.answer_text, false, false));
  }
  PITH_ASSIGN_OR_RETURN(made.target, model->Tokenize(task.target, false, false));
  if (made.target.empty()) return Corrupt(fmt::format("task {}: its target has no tokens", task.id));
  made.answer.insert(made.answer.end(), made.target.begin(), made.target.end() - 1);
  made.num_tokens = made.num_history + conversation.pending().size() + made.answer.size();
  made.task = std::move(task);
  return made;
}

Result<std::unique_ptr<ConversationJudge>> ConversationJudge::Create(std::shared_ptr<HostModel> model,
                                                                     JudgeOptions options) {
  if (!model->has_chat_template()) {
    return Unsupported("this model has no chat template, which conversations are judged through");
  }
  return std::unique_ptr<ConversationJudge>(new ConversationJudge(std::move(model), std::move(options)));
}

Result<EngineOptions> ConversationJudge::EngineFor(const ConversationTask& task, const Recipe& recipe,
                                                   double keep) const {
  // Beside the text: a second reading of a turn, or the text of a topic.
  constexpr int kRoom = 4096;
  EngineOptions options;
  options.num_ctx = static_cast<int>(task.num_tokens) + kRoom;
  options.block_tokens = options_.block_tokens;
  options.num_threads = options_.num_threads;
  options.format = options_.format;
  options.seed = options_.seed;
  options.recipe = recipe;
  const auto num_history = static_cast<int>(task.num_history);
  if (recipe.turns) {
    CountingSequence counted;
    PITH_ASSIGN_OR_RETURN(const Conversation conversation, Read(text_, task.task, counted, {}));
    (void)conversation;
    const double pinned = counted.num_pinned();
    TurnOptions& turns = *options.recipe.turns;
    if (turns.method == TurnMethod::kFlowKv) {
      const double left = (keep * num_history - pinned) / std::max(1.0, num_history - pinned);
      turns.drop = 1 - std::clamp(left, 0.001, 1.0);
    } else {
      options.keep_entries = std::max(1, static_cast<int>(keep * num_history));
    }
  } else if (options_.compress == CompressMode::kAfter || keep >= 1) {
    options.compress = CompressMode::kAfter;
    options.later_recipes = {recipe};
    PITH_ASSIGN_OR_RETURN(options.recipe, ParseRecipe("full"));
  } else {
    KeepShare(model_->info(), recipe, num_history, keep, &options);
  }
  return options;
}

Status ConversationJudge::Answer(const ConversationTask& task, const Recipe& recipe, double keep, EvalRow& row) {
  PITH_ASSIGN_OR_RETURN(const EngineOptions options, EngineFor(task, recipe, keep));
  PITH_ASSIGN_OR_RETURN(std::shared_ptr<Engine> engine, Engine::Create(model_, options));
  PITH_ASSIGN_OR_RETURN(const std::unique_ptr<EngineSequence> sequence,
                        EngineSequence::Create(engine, SequenceOptions(options)));
  PITH_ASSIGN_OR_RETURN(Conversation conversation, Read(text_, task.task, *sequence, KeepGoing(options_)));
  PITH_RETURN_IF_ERROR(conversation.Say(task.task.question_text));
  // The turn before is over, and the question is known.
  PITH_RETURN_IF_ERROR(sequence->BeginTurn(conversation.messages(), KeepGoing(options_)));
  const bool after = !recipe.turns && options.compress == CompressMode::kAfter;
  if (after && keep < 1) {
    const Result<double> kept = engine->Compress(sequence->id(), recipe, keep);
    if (!kept) return tl::unexpected<Error>(kept.error());
  }
  row.kept = engine->stats(sequence->id()).kept_fraction;
  row.kept_bytes = engine->KeptBytes(sequence->id());
  std::vector<int32_t> tail(conversation.pending().begin(), conversation.pending().end());
  tail.insert(tail.end(), task.answer.begin(), task.answer.end());
  const SequenceId id = sequence->id();
  engine->SetEviction(id, false);
  PITH_RETURN_IF_ERROR(
      engine->PrefillTogether({&id, 1}, tail, tail.size() - task.target.size(), rows_, KeepGoing(options_)));
  return CheckLogits(rows_);
}

Status ConversationJudge::Run(const ConversationTask& task, const RowSink& sink) {
  const auto new_row = [&](const std::string& policy, double keep) {
    EvalRow row;
    row.id = task.task.id;
    row.task = task.task.task;
    row.length = task.task.length;
    row.tokens = task.num_history;
    row.policy = policy;
    row.keep = keep;
    return row;
  };
  bool all_done = sink.done("full", 1);
  for (const std::string& name : options_.names) {
    for (const double keep : options_.keeps) all_done = all_done && sink.done(name, keep);
  }
  if (all_done) return {};
  PITH_ASSIGN_OR_RETURN(const Recipe full, ParseRecipe("full"));
  EvalRow row = new_row("full", 1);
  PITH_RETURN_IF_ERROR(Answer(task, full, 1, row));
  reference_.Set(rows_, task.target);
  row.nll = reference_.own().nll;
  row.ok = reference_.own().all_top;
  if (!sink.done("full", 1)) PITH_RETURN_IF_ERROR(sink.add(std::move(row)));
  for (size_t i = 0; i < options_.recipes.size(); ++i) {
    for (const double keep : options_.keeps) {
      if (options_.stopped()) return Cancelled("stopped");
      if (sink.done(options_.names[i], keep)) continue;
      row = new_row(options_.names[i], keep);
      PITH_RETURN_IF_ERROR(Answer(task, options_.recipes[i], keep, row));
      const TargetMeasure measure = reference_.Compare(rows_, row.kl);
      row.nll = measure.nll;
      row.ok = measure.all_top;
      PITH_RETURN_IF_ERROR(sink.add(std::move(row)));
    }
  }
  return {};
}

}  // namespace pith
