// pith eval: what recipes cost in quality, on tasks with known answers.
#include <algorithm>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <utility>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "base/json_text.h"
#include "base/stopwatch.h"
#include "cli/command.h"
#include "cli/read_tasks.h"
#include "cli/terminal.h"
#include "lab/conversation_judge.h"
#include "lab/decode_judge.h"
#include "lab/eval_html.h"
#include "lab/eval_maps.h"
#include "lab/eval_results.h"
#include "lab/jsonl.h"
#include "lab/judge.h"
#include "lab/perturbation.h"

namespace pith::cli {
namespace {

using nlohmann::ordered_json;

constexpr const char* kEvalExamples = R"(
Tasks are JSON lines with id, task, length, context_text, question_text and target, and perhaps pinned_text (before the
context) and long_text (after it). The texts are tokenised apart, with special tokens parsed and no BOS. Agnostic: the
context is read and compressed, then question and target follow. Aware: the question but its last token is read before
compressing. Decode: the long text is generated token by token under the budget, then question and target follow.
Conversation: tasks with messages, question_text, answer_text and target, read turn by turn through the model's template;
recipes with turns= act at the end of each turn.
  nll       mean negative log-likelihood of the target's tokens (nats)
  kl        mean KL(full cache || compressed) over the same positions
  accuracy  share of items whose every target token is the likeliest
  kept      share of the context's entries that stay; bytes: their share of the full f16 cache
  long nll, long kl  (decode) the same two along the long text

scripts/make_tasks.py makes tasks from any text. Without --tasks a small set of pith's own is used.

Examples:
  pith eval --recipes snapkv,keydiff,h2o --html report.html
  pith eval --tasks tasks.jsonl --recipes snapkv,keydiff --keep 0.5,0.2 --lengths 512
  pith eval --tasks tasks.jsonl --recipes "snapkv:window=16,pool=7;score=tova alloc=ada" --mode aware --json
  pith eval --tasks tasks.jsonl --recipes snapkv,h2o --resume rows.jsonl --progress
  pith eval --mode decode --recipes "rkv,roco,h2o,streamingllm" --keep 0.3
  pith eval --mode conversation --tasks eval/conversations.jsonl --recipes "pith turns=flowkv;pith" --keep 0.2
  pith eval --perturbation --recipes snapkv,criticalkv --keep 0.5,0.2
)";

struct EvalFlags {
  ModelFlags model;
  OutputFlags output;
  std::string tasks;
  std::string recipes;
  std::string keep = "0.5,0.2,0.1";
  std::string mode = "agnostic";
  std::string lengths;
  std::string kinds;
  std::string compress = "after";
  std::string format;
  std::string save_format;
  std::string output_file;
  std::string resume_file;
  std::string html_file;
  std::string pins = "off";
  bool perturbation = false;
  int queries = JudgeOptions{}.perturbation_queries;
  bool reference = false;
  int ctx = 0;
  int block = 0;
  int limit = 0;
  int html_texts = 4;
  uint64_t seed = 0;
};

// Recipes and fractions as the judge wants them; "full" has its row anyway.
Result<JudgeOptions> MakeJudgeOptions(const EvalFlags& flags) {
  JudgeOptions options;
  std::set<std::string> seen;
  for (const std::string& name : SplitRecipes(flags.recipes)) {
    PITH_ASSIGN_OR_RETURN(Recipe recipe, ParseRecipe(name));
    const bool is_full = recipe.policy->keeps_everything() && recipe.policy->prune() == nullptr && !recipe.prefill &&
                         !recipe.format && !recipe.auto_format;
    if (!seen.insert(name).second || (is_full && flags.save_format.empty())) continue;
    if (recipe.prefill && flags.compress != "block") {
      return InvalidArgument(
          fmt::format("{} changes how the prompt is read, which happens once for all recipes here: use "
                      "--compress block",
                      name));
    }
    if (recipe.turns && flags.mode != "conversation") {
      return InvalidArgument(fmt::format("{} acts between the turns of a conversation: use --mode conversation", name));
    }
    if (NeedsWholePrompt(recipe) && flags.compress == "block") {
      return InvalidArgument(
          fmt::format("{} drops nothing before it has the whole prompt: leave --compress block out", name));
    }
    if (flags.mode == "decode" && !AlternativeFor(recipe, false).policy->decodes()) {
      return InvalidArgument(fmt::format("the recipe {} does not evict while decoding", name));
    }
    // Not to be taken for the row of the full cache, which is neither saved nor restored.
    options.names.push_back(flags.save_format.empty() ? name : name + " saved");
    options.recipes.push_back(std::move(recipe));
  }
  PITH_ASSIGN_OR_RETURN(options.keeps, ParseNumbers(flags.keep, "--keep", 0.001, 1));
  PITH_ASSIGN_OR_RETURN(options.format, ParseFormats(flags.format));
  if (!flags.save_format.empty()) {
    PITH_ASSIGN_OR_RETURN(options.saved, ParseCodedForm(flags.save_format));
  }
  options.compress = flags.compress == "block" ? CompressMode::kBlock : CompressMode::kAfter;
  options.pins = flags.pins == "on" ? Pins::kOn : flags.pins == "both" ? Pins::kBoth : Pins::kOff;
  options.reference = flags.reference;
  options.block_tokens = flags.block;
  options.num_threads = flags.model.num_threads();
  options.seed = flags.seed;
  options.perturbation_queries = flags.queries;
  options.stopped = Interrupted;
  return options;
}

Status CheckEval(const EvalFlags& flags) {
  PITH_RETURN_IF_ERROR(flags.model.Check());
  PITH_ASSIGN_OR_RETURN(const JudgeOptions options, MakeJudgeOptions(flags));
  if (!flags.lengths.empty()) PITH_RETURN_IF_ERROR(ParseIntegers(flags.lengths, "--lengths", 1, 100'000'000));
  const bool decode = flags.mode == "decode";
  if (decode && (flags.compress != "after" || flags.pins != "off" || flags.reference)) {
    return InvalidArgument("--mode decode evicts as it goes: leave --compress, --pins and --reference out");
  }
  const bool conversation = flags.mode == "conversation";
  if (!flags.save_format.empty() && (conversation || decode || flags.compress != "after" || !options.saved)) {
    return InvalidArgument("--save-format comp[:...] goes with --mode agnostic or aware and --compress after");
  }
  if (conversation && (flags.pins != "off" || flags.reference || !flags.html_file.empty())) {
    return InvalidArgument("--mode conversation reads messages turn by turn: leave --pins, --reference and --html out");
  }
  if (conversation && flags.tasks.empty()) {
    return InvalidArgument("--mode conversation needs --tasks with messages, such as eval/conversations.jsonl");
  }
  if (!flags.perturbation) return {};
  if (conversation || decode || flags.compress != "after" || flags.pins != "off" || flags.reference ||
      !flags.resume_file.empty() || !flags.html_file.empty()) {
    return InvalidArgument(
        "--perturbation goes with --tasks, --recipes, --keep, --queries, --mode agnostic or aware, and --output");
  }
  if (options.names.empty()) return InvalidArgument("--perturbation needs --recipes, the first of which is the base");
  return {};
}

Result<std::vector<Task>> ChooseTasks(const EvalFlags& flags, std::string& fingerprint) {
  const std::string name = NameOfTasks(flags.tasks);
  PITH_ASSIGN_OR_RETURN(std::vector<Task> tasks, ReadTasks(flags.tasks, flags.lengths, fingerprint));
  if (tasks.empty() && !flags.lengths.empty()) {
    return InvalidArgument(fmt::format("{} holds no task of length {}", name, flags.lengths));
  }
  if (!flags.kinds.empty()) {
    const std::string kinds = "," + flags.kinds + ",";
    std::erase_if(tasks, [&kinds](const Task& task) { return kinds.find("," + task.task + ",") == std::string::npos; });
    if (tasks.empty()) return InvalidArgument(fmt::format("{} holds no task of the kind {}", name, flags.kinds));
  } else if (flags.mode == "decode") {
    // Those made for it, where there are any.
    const auto made = [](const Task& task) { return !task.long_text.empty(); };
    if (std::any_of(tasks.begin(), tasks.end(), made)) std::erase_if(tasks, std::not_fn(made));
  }
  if (flags.limit > 0 && tasks.size() > static_cast<size_t>(flags.limit))
    tasks.resize(static_cast<size_t>(flags.limit));
  return tasks;
}

// What every result says of the run it comes from.
ordered_json RunJson(const EvalFlags& flags, const JudgeOptions& options, const ModelInfo& info) {
  return {{"mode", flags.mode},
          {"compress", flags.mode == "decode" ? "block" : flags.compress},
          {"format", options.format.Name()},
          {"save_format", options.saved ? options.saved->Name() : "exact"},
          {"model", info.description},
          {"architecture", info.architecture},
          {"recipes", options.names},
          {"keep", options.keeps}};
}

// What rows must share to belong to one file of --resume.
ordered_json RunName(const EvalFlags& flags, const JudgeOptions& options, const ModelInfo& info,
                     const std::string& fingerprint) {
  ordered_json name = {{"model", info.description}, {"model_bytes", info.file_bytes}, {"tasks", fingerprint},
                       {"mode", flags.mode},        {"compress", flags.compress},     {"format", options.format.Name()},
                       {"seed", options.seed}};
  if (options.saved) name["save_format"] = options.saved->Name();
  return name;
}

Status CheckLength(const std::string& id, size_t num_tokens, int ctx, JudgeOptions& options) {
  if (num_tokens > static_cast<size_t>(ctx)) {
    return InvalidArgument(fmt::format("task {} has {} tokens, and the context holds {}: choose shorter ones with "
                                       "--lengths, or give a larger context with -c",
                                       id, num_tokens, ctx));
  }
  options.max_tokens = std::max(options.max_tokens, static_cast<int>(num_tokens));
  return {};
}

// Time that a task takes, in tokens read: the context once, the rest for every row.
double Work(const JudgedTask& task, size_t rows) {
  return static_cast<double>(task.compressed.size() + rows * (task.tail.size() + 8));
}
double Work(const DecodeTask& task, size_t rows) { return static_cast<double>(rows * task.num_tokens()); }
double Work(const ConversationTask& task, size_t rows) { return static_cast<double>(rows * task.num_tokens); }

// Judges every task; a broken one ends the run, an interrupt leaves what is there. AnyJudge: Judge, DecodeJudge or
// ConversationJudge.
template <typename AnyJudge, typename AnyTask>
Status JudgeAll(const EvalFlags& flags, AnyJudge& judge, std::span<const AnyTask> tasks, size_t rows_per_task,
                const std::function<void(const AnyTask&, RowSink&)>& prepare, EvalResults& results) {
  double total = 0, done = 0;
  for (const AnyTask& task : tasks) total += Work(task, rows_per_task);
  ProgressLine progress("evaluating", flags.output.progress);
  for (const AnyTask& task : tasks) {
    const double work = Work(task, rows_per_task);
    size_t finished = 0;
    RowSink sink;
    sink.done = [&](const std::string& policy, double keep) { return results.Has(task.task.id, policy, keep); };
    sink.add = [&](EvalRow row) {
      ++finished;
      const double share = static_cast<double>(finished) / static_cast<double>(rows_per_task);
      progress.Update(done + work * std::min(1.0, share), total, task.task.id + " " + row.policy);
      return results.Add(std::move(row));
    };
    prepare(task, sink);
    progress.Update(done, total, task.task.id);
    const Status status = judge.Run(task, sink);
    if (Interrupted()) return {};
    PITH_RETURN_IF_ERROR(status);
    // Rows that were there already took no time.
    if (finished == 0) {
      total -= work;
    } else {
      done += work;
    }
  }
  return {};
}

// One run of the command, in the order of its methods.
class Evaluation {
 public:
  explicit Evaluation(const EvalFlags& flags) : flags_(flags) {}

  Status Load() {
    for (const std::string& path : {flags_.output_file, flags_.html_file}) PITH_RETURN_IF_ERROR(CheckOutput(path));
    PITH_ASSIGN_OR_RETURN(tasks_, ChooseTasks(flags_, fingerprint_));
    PITH_ASSIGN_OR_RETURN(options_, MakeJudgeOptions(flags_));
    PITH_ASSIGN_OR_RETURN(model_, LoadModel(flags_.model, flags_.output));
    const int ctx = ContextOf(model_->info(), flags_.ctx);
    std::vector<std::string> ids;
    for (Task& task : tasks_) {
      ids.push_back(task.id);
      if (flags_.mode == "conversation") {
        PITH_ASSIGN_OR_RETURN(ConversationTask one, TokenizeConversation(model_, std::move(task)));
        PITH_RETURN_IF_ERROR(CheckLength(one.task.id, one.num_tokens, ctx, options_));
        conversations_.push_back(std::move(one));
      } else if (flags_.mode == "decode") {
        PITH_ASSIGN_OR_RETURN(DecodeTask one, TokenizeForDecode(*model_, std::move(task)));
        PITH_RETURN_IF_ERROR(CheckLength(one.task.id, one.num_tokens(), ctx, options_));
        decode_tasks_.push_back(std::move(one));
      } else {
        PITH_ASSIGN_OR_RETURN(JudgedTask one, TokenizeTask(*model_, std::move(task), flags_.mode == "aware"));
        PITH_RETURN_IF_ERROR(CheckLength(one.task.id, one.num_tokens(), ctx, options_));
        judged_tasks_.push_back(std::move(one));
      }
    }
    std::unique_ptr<EvalLog> log;
    if (!flags_.resume_file.empty()) {
      PITH_ASSIGN_OR_RETURN(log,
                            EvalLog::Open(flags_.resume_file, RunName(flags_, options_, model_->info(), fingerprint_)));
    }
    results_.emplace(std::move(log), std::move(ids));
    if (!flags_.html_file.empty()) maps_.emplace(*model_, flags_.html_texts);
    return {};
  }

  Status Run() {
    if (flags_.perturbation) return RunPerturbation();
    const size_t rows = 1 + (flags_.reference ? 1 : 0) + options_.recipes.size() * options_.keeps.size();
    if (flags_.mode == "conversation") {
      PITH_ASSIGN_OR_RETURN(const auto judge, ConversationJudge::Create(model_, options_));
      return JudgeAll<ConversationJudge, ConversationTask>(flags_, *judge, conversations_, rows,
                                                           [](const ConversationTask&, RowSink&) {}, *results_);
    }
    if (flags_.mode == "decode") {
      PITH_ASSIGN_OR_RETURN(const std::unique_ptr<DecodeJudge> judge, DecodeJudge::Create(model_, options_));
      return JudgeAll<DecodeJudge, DecodeTask>(flags_, *judge, decode_tasks_, rows,
                                               [](const DecodeTask&, RowSink&) {}, *results_);
    }
    PITH_ASSIGN_OR_RETURN(const std::unique_ptr<Judge> judge, Judge::Create(model_, options_));
    const auto watch = [this](const JudgedTask& task, RowSink& sink) {
      if (!maps_) return;
      sink.look = [this, &task](const Engine& engine, SequenceId sequence, const std::string& policy, double keep) {
        maps_->Look(engine, sequence, task, policy, keep);
      };
    };
    return JudgeAll<Judge, JudgedTask>(flags_, *judge, judged_tasks_, rows, watch, *results_);
  }

  // What there is, is worth keeping even where the run failed or was stopped.
  Result<int> Report(const Status& status, double seconds) {
    const bool complete = status && !Interrupted();
    ordered_json json = RunJson(flags_, options_, model_->info());
    json["complete"] = complete;
    json["seconds"] = seconds;
    results_->Sort(options_.names);
    if (flags_.perturbation) {
      if (perturbation_ != nullptr) json["perturbation"] = perturbation_->ToJson();
    } else {
      json["items"] = ordered_json::array();
      for (const EvalRow& row : results_->rows()) json["items"].push_back(RowToJson(row));
      json["table"] = TableToJson(results_->rows());
    }
    const std::string dumped = JsonText(json, 1);
    if (!flags_.output_file.empty()) PITH_RETURN_IF_ERROR(WriteFile(flags_.output_file, dumped + "\n"));
    if (maps_) PITH_RETURN_IF_ERROR(WriteFile(flags_.html_file, ReportHtml(json, maps_->ToJson())));
    PITH_RETURN_IF_ERROR(status);
    if (flags_.output.json) {
      PrintJson(dumped);
    } else if (flags_.perturbation) {
      perturbation_->Print();
    } else {
      PrintTable(results_->rows());
      fmt::print("{} rows in {:.0f} s\n", results_->rows().size(), seconds);
    }
    return Interrupted() ? kExitInterrupted : kExitOk;
  }

 private:
  Status RunPerturbation() {
    PITH_ASSIGN_OR_RETURN(perturbation_, Perturbation::Create(model_, options_));
    ProgressLine progress("comparing outputs", flags_.output.progress);
    for (size_t i = 0; i < judged_tasks_.size(); ++i) {
      progress.Update(static_cast<double>(i), static_cast<double>(judged_tasks_.size()), judged_tasks_[i].task.id);
      const Status status = perturbation_->Run(judged_tasks_[i]);
      if (Interrupted()) return {};
      PITH_RETURN_IF_ERROR(status);
    }
    return {};
  }

  const EvalFlags& flags_;
  std::string fingerprint_;
  JudgeOptions options_;
  std::shared_ptr<HostModel> model_;
  std::vector<Task> tasks_;
  std::vector<JudgedTask> judged_tasks_;
  std::vector<DecodeTask> decode_tasks_;
  std::vector<ConversationTask> conversations_;
  std::optional<EvalResults> results_;
  std::optional<EvalMaps> maps_;
  std::unique_ptr<Perturbation> perturbation_;
};

Result<int> RunEval(const EvalFlags& flags) {
  Evaluation evaluation(flags);
  PITH_RETURN_IF_ERROR(evaluation.Load());
  const Stopwatch watch;
  const Status status = evaluation.Run();
  return evaluation.Report(status, watch.seconds());
}

void AddWhatFlags(CLI::App& command, EvalFlags& flags) {
  AddOption(command, "--tasks", flags.tasks, "Tasks as JSON lines (default: a small set of pith's own)", "FILE");
  AddOption(command, "--recipes", flags.recipes,
            "Recipes, between commas or semicolons; the full cache is always judged too", "R,...");
  AddOption(command, "--keep", flags.keep, "Kept fractions (default 0.5,0.2,0.1)", "F,...");
  AddChoice(command, "--mode", flags.mode, {"agnostic", "aware", "decode", "conversation"},
            "agnostic (default): compress before the question; aware: after it; decode: evict while text is "
            "generated; conversation: messages, turn by turn",
            "MODE");
  AddOption(command, "--lengths", flags.lengths, "Only tasks of these lengths", "N,...");
  AddOption(command, "--kinds", flags.kinds, "Only tasks of these kinds (their field \"task\")", "KIND,...");
  AddNumber(command, "--limit", flags.limit, 0, 1 << 30, "Only the first so many tasks", "N");
  AddChoice(command, "--compress", flags.compress, {"after", "block"},
            "after (default): read everything, then compress once; block: evict after every block", "WHEN");
  AddChoice(command, "--pins", flags.pins, {"off", "on", "both"},
            "off (default), on or both: whether a task's instruction (pinned_text) is kept whatever the recipe",
            "WHEN");
  CLI::Option* perturbation =
      AddFlag(command, "--perturbation", flags.perturbation,
              "Measure the output of attention in place of answers: its relative error in every head, and in how "
              "many heads a recipe has less of it than the first recipe");
  Needs(AddNumber(command, "--queries", flags.queries, 1, 4096,
                  "Last queries that --perturbation compares (default 32)", "N"),
        perturbation);
  AddFlag(command, "--reference", flags.reference, "A row for libllama's own attention, too");
}

}  // namespace

void AddEval(CLI::App& app, Command& chosen) {
  auto flags = std::make_shared<EvalFlags>();
  CLI::App* command = AddCommand(app, "eval", "Judge recipes on tasks with known answers", kEvalExamples);
  AddWhatFlags(*command, *flags);
  AddOption(*command, "--output", flags->output_file, "Write the JSON here too", "FILE");
  AddOption(*command, "--resume", flags->resume_file,
            "Add each row to this file when it is finished, and leave out those that it holds already", "FILE");
  AddOption(*command, "--html", flags->html_file, "Write a report with plots, one page that needs no network", "FILE");
  AddNumber(*command, "--html-texts", flags->html_texts, 0, 1000,
            "Items of which the report shows what was kept (default 4)", "N");
  AddNumber(*command, "-c,--ctx-size", flags->ctx, 0, 1 << 30,
            "Longest task in tokens (default, and 0: the model's trained context)", "N");
  AddNumber(*command, "-b,--batch-size,--ubatch-size", flags->block, 1, 65536, "Tokens read at once", "N");
  AddOption(*command, "--cache-type-k", flags->format,
            fmt::format("-ctk: format of keys and values, {} or comp[:F] (default f16)",
                        ListKvFormats(&KvFormatInfo::flag, ", ")),
            "TYPE");
  AddOption(*command, "--save-format", flags->save_format,
            "Save what was compressed in this form, comp[:ek=F,ev=F,unit=channel|head,recent=N], and judge what comes "
            "back; bytes are then those of the saved sequence",
            "FORMAT");
  AddOption(*command, "-s,--seed", flags->seed, "Seed of random choices (default 0)", "SEED");
  AddModelFlags(*command, flags->model);
  AddOutputFlags(*command, flags->output);
  OnCommand(*command, [flags, &chosen] {
    chosen.check = [flags] { return CheckEval(*flags); };
    chosen.run = [flags] { return RunEval(*flags); };
  });
}

}  // namespace pith::cli
