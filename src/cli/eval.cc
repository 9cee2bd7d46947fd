// pith eval: what recipes cost in quality, on tasks with known answers.
#include <algorithm>
#include <map>
#include <memory>
#include <set>
#include <span>
#include <tuple>
#include <utility>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "cli/command.h"
#include "cli/eval_log.h"
#include "cli/eval_row.h"
#include "cli/jsonl.h"
#include "cli/judge.h"
#include "cli/terminal.h"

namespace pith::cli {
namespace {

constexpr const char* kExamples = R"(
Tasks are JSON lines with id, task, length, context_text, question_text and target. The three texts are tokenised
apart, with special tokens parsed and no BOS. Agnostic: the context is read and compressed, then question and target
follow. Aware: the question but its last token is read before compressing.
  nll       mean negative log-likelihood of the target's tokens (nats)
  kl        mean KL(full cache || compressed) over the same positions
  accuracy  share of items whose every target token is the likeliest

Examples:
  pith eval --tasks tasks.jsonl --recipes snapkv,keydiff --keep 0.5,0.2 --lengths 512
  pith eval --tasks tasks.jsonl --recipes "snapkv:window=16,pool=7;score=tova alloc=ada" --mode aware --json
  pith eval --tasks tasks.jsonl --recipes keydiff --compress block --output results.json
  pith eval --tasks tasks.jsonl --recipes snapkv,h2o --resume rows.jsonl --progress
)";

struct EvalFlags {
  ModelFlags model;
  OutputFlags output;
  std::string tasks;
  std::string recipes;
  std::string keep = "0.5,0.2,0.1";
  std::string mode = "agnostic";
  std::string lengths;
  std::string compress = "after";
  std::string format;
  std::string output_file;
  std::string resume_file;
  std::string pins = "off";
  int ctx = 0;
  int block = 0;
  int limit = 0;
  uint64_t seed = 0;
};

// Recipes and fractions as the judge wants them; "full" has its row anyway.
Result<JudgeOptions> MakeJudgeOptions(const EvalFlags& flags) {
  JudgeOptions options;
  std::set<std::string> seen;
  for (const std::string& name : SplitRecipes(flags.recipes)) {
    PITH_ASSIGN_OR_RETURN(Recipe recipe, ParseRecipe(name));
    if (!seen.insert(name).second || recipe.policy->keeps_everything()) continue;
    options.names.push_back(name);
    options.recipes.push_back(std::move(recipe));
  }
  PITH_ASSIGN_OR_RETURN(options.keeps, ParseNumbers(flags.keep, "--keep", 0.001, 1));
  PITH_ASSIGN_OR_RETURN(options.format, ParseFormat(flags.format));
  options.compress = flags.compress == "block" ? CompressMode::kBlock : CompressMode::kAfter;
  options.block_tokens = flags.block;
  options.num_threads = flags.model.num_threads();
  options.pins = flags.pins == "on" ? Pins::kOn : flags.pins == "both" ? Pins::kBoth : Pins::kOff;
  options.seed = flags.seed;
  return options;
}

Status Check(const EvalFlags& flags) {
  PITH_RETURN_IF_ERROR(flags.model.Check());
  PITH_RETURN_IF_ERROR(MakeJudgeOptions(flags));
  if (!flags.lengths.empty()) PITH_RETURN_IF_ERROR(ParseIntegers(flags.lengths, "--lengths", 1, 100'000'000));
  return {};
}

Result<std::vector<Task>> ChooseTasks(const EvalFlags& flags, std::string& fingerprint) {
  PITH_ASSIGN_OR_RETURN(const std::string text, ReadFile(flags.tasks));
  fingerprint = Fingerprint(text);
  PITH_ASSIGN_OR_RETURN(std::vector<Task> tasks, ParseTasks(text, flags.tasks));
  if (!flags.lengths.empty()) {
    PITH_ASSIGN_OR_RETURN(const std::vector<int> lengths, ParseIntegers(flags.lengths, "--lengths", 1, 100'000'000));
    std::erase_if(tasks, [&lengths](const Task& task) {
      return std::find(lengths.begin(), lengths.end(), task.length) == lengths.end();
    });
    if (tasks.empty()) {
      return InvalidArgument(fmt::format("{} holds no task of length {}", flags.tasks, flags.lengths));
    }
  }
  if (flags.limit > 0 && tasks.size() > static_cast<size_t>(flags.limit)) {
    tasks.resize(static_cast<size_t>(flags.limit));
  }
  return tasks;
}

nlohmann::ordered_json ToJson(const EvalFlags& flags, const JudgeOptions& options, const ModelInfo& info,
                              std::span<const EvalRow> rows, bool complete) {
  auto items = nlohmann::ordered_json::array();
  for (const EvalRow& row : rows) items.push_back(RowToJson(row));
  return {{"mode", flags.mode},
          {"compress", flags.compress},
          {"format", KvFormatName(options.format)},
          {"model", info.description},
          {"architecture", info.architecture},
          {"recipes", options.names},
          {"keep", options.keeps},
          {"complete", complete},
          {"items", items},
          {"table", TableToJson(rows)}};
}

std::string Dump(const nlohmann::ordered_json& json) {
  return json.dump(1, ' ', false, nlohmann::json::error_handler_t::replace);
}

// What rows must share to belong to one file of --resume.
nlohmann::ordered_json RunName(const EvalFlags& flags, const JudgeOptions& options, const ModelInfo& info,
                               const std::string& fingerprint) {
  return {{"model", info.description},
          {"model_bytes", info.file_bytes},
          {"tasks", fingerprint},
          {"mode", flags.mode},
          {"compress", flags.compress},
          {"format", KvFormatName(options.format)},
          {"seed", options.seed}};
}

using RowKey = std::tuple<std::string, std::string, double>;  // id, policy, keep
RowKey KeyOf(const EvalRow& row) { return {row.id, row.policy, row.keep}; }

// Rows in the order of the tasks, as if nothing had been resumed.
class Results {
 public:
  Results(std::unique_ptr<EvalLog> log, std::span<const JudgedTask> tasks) : log_(std::move(log)) {
    std::set<std::string> wanted;
    for (const JudgedTask& task : tasks) wanted.insert(task.task.id);
    if (log_ == nullptr) return;
    for (const EvalRow& row : log_->rows()) {
      if (wanted.contains(row.id) && keys_.insert(KeyOf(row)).second) rows_.push_back(row);
    }
  }

  bool Has(const RowKey& key) const { return keys_.contains(key); }
  Status Add(EvalRow row) {
    if (log_ != nullptr) PITH_RETURN_IF_ERROR(log_->Append(row));
    keys_.insert(KeyOf(row));
    rows_.push_back(std::move(row));
    return {};
  }
  const std::vector<EvalRow>& rows() const { return rows_; }

  void Sort(std::span<const JudgedTask> tasks, const JudgeOptions& options) {
    std::map<std::string, size_t> place;
    for (const JudgedTask& task : tasks) place.emplace(task.task.id, place.size());
    std::map<std::string, size_t> order = {{"full", 0}};
    for (const std::string& name : options.names) order.emplace(name, order.size());
    const auto rank = [&](const EvalRow& row) {
      const auto found = order.find(row.policy);
      return std::tuple(place.at(row.id), -row.keep, found == order.end() ? order.size() : found->second, row.policy);
    };
    std::stable_sort(rows_.begin(), rows_.end(), [&](const EvalRow& a, const EvalRow& b) { return rank(a) < rank(b); });
  }

 private:
  std::unique_ptr<EvalLog> log_;
  std::set<RowKey> keys_;
  std::vector<EvalRow> rows_;
};

// Time that a task takes, in tokens read: the context once, the tail for every row.
double Work(const JudgedTask& task, size_t rows_per_task) {
  return static_cast<double>(task.compressed.size() + rows_per_task * (task.tail.size() + 8));
}

// Judges every task; a broken one ends the run, an interrupt leaves what is there.
Status JudgeAll(const EvalFlags& flags, Judge& judge, std::span<const JudgedTask> tasks, size_t rows_per_task,
                Results& results) {
  double total = 0;
  for (const JudgedTask& task : tasks) total += Work(task, rows_per_task);
  ProgressLine progress("evaluating", flags.output.progress);
  double done = 0;
  for (const JudgedTask& task : tasks) {
    const double work = Work(task, rows_per_task);
    size_t finished = 0;
    RowSink sink;
    sink.done = [&](const std::string& policy, double keep) { return results.Has({task.task.id, policy, keep}); };
    sink.add = [&](EvalRow row) {
      ++finished;
      const double share = static_cast<double>(finished) / static_cast<double>(rows_per_task);
      progress.Update(done + work * std::min(1.0, share), total, task.task.id + " " + row.policy);
      return results.Add(std::move(row));
    };
    progress.Update(done, total, task.task.id);
    const Status status = judge.Run(task, sink);
    if (Interrupted()) return {};
    PITH_RETURN_IF_ERROR(status);
    if (finished == 0) total -= work; else done += work;  // rows that were there took no time
  }
  return {};
}

Result<std::vector<JudgedTask>> TokenizeAll(const EvalFlags& flags, const HostModel& model, std::vector<Task> tasks,
                                            JudgeOptions& options) {
  std::vector<JudgedTask> judged;
  const int ctx = ContextOf(model.info(), flags.ctx);
  for (Task& task : tasks) {
    PITH_ASSIGN_OR_RETURN(JudgedTask one, TokenizeTask(model, std::move(task), flags.mode == "aware"));
    if (one.num_tokens() > static_cast<size_t>(ctx)) {
      return InvalidArgument(fmt::format("task {} has {} tokens, and the context holds {}: choose shorter ones with "
                                         "--lengths, or give a larger context with -c",
                                         one.task.id, one.num_tokens(), ctx));
    }
    options.max_tokens = std::max(options.max_tokens, static_cast<int>(one.num_tokens()));
    judged.push_back(std::move(one));
  }
  return judged;
}

Result<int> RunEval(EvalFlags& flags) {
  std::string fingerprint;
  PITH_ASSIGN_OR_RETURN(std::vector<Task> tasks, ChooseTasks(flags, fingerprint));
  PITH_ASSIGN_OR_RETURN(JudgeOptions options, MakeJudgeOptions(flags));
  PITH_ASSIGN_OR_RETURN(const std::shared_ptr<HostModel> model, LoadModel(flags.model, flags.output));
  const ModelInfo& info = model->info();
  PITH_ASSIGN_OR_RETURN(const std::vector<JudgedTask> judged, TokenizeAll(flags, *model, std::move(tasks), options));
  std::unique_ptr<EvalLog> log;
  if (!flags.resume_file.empty()) {
    PITH_ASSIGN_OR_RETURN(log, EvalLog::Open(flags.resume_file, RunName(flags, options, info, fingerprint)));
  }
  PITH_ASSIGN_OR_RETURN(const std::unique_ptr<Judge> judge, Judge::Create(model, options));
  Results results(std::move(log), judged);
  const Stopwatch watch;
  const Status status =
      JudgeAll(flags, *judge, judged, 1 + options.recipes.size() * options.keeps.size(), results);
  const double seconds = watch.seconds();
  results.Sort(judged, options);
  const bool complete = status && !Interrupted();
  nlohmann::ordered_json json = ToJson(flags, options, info, results.rows(), complete);
  json["seconds"] = seconds;
  const std::string dumped = Dump(json);
  // What there is, is worth keeping even where the run failed later.
  if (!flags.output_file.empty()) PITH_RETURN_IF_ERROR(WriteFile(flags.output_file, dumped + "\n"));
  PITH_RETURN_IF_ERROR(status);
  if (flags.output.json) {
    PrintJson(dumped);
  } else {
    PrintTable(results.rows());
    fmt::print("{} rows in {:.0f} s\n", results.rows().size(), seconds);
  }
  return Interrupted() ? kExitInterrupted : kExitOk;
}

}  // namespace

void AddEval(CLI::App& app, Command& chosen) {
  auto flags = std::make_shared<EvalFlags>();
  CLI::App* command = app.add_subcommand("eval", "Judge recipes on tasks with known answers");
  command->footer(kExamples);
  command->add_option("--tasks", flags->tasks, "Tasks as JSON lines")->required()->type_name("FILE");
  command->add_option("--recipes", flags->recipes, "Recipes, between commas or semicolons; the full cache is always "
                                                   "judged too")
      ->type_name("R,...");
  command->add_option("--keep", flags->keep, "Kept fractions (default 0.5,0.2,0.1)")->type_name("F,...");
  command->add_option("--mode", flags->mode, "agnostic (default): compress before the question; aware: after it")
      ->check(CLI::IsMember({"agnostic", "aware"}))
      ->type_name("MODE");
  command->add_option("--lengths", flags->lengths, "Only tasks of these lengths")->type_name("N,...");
  command->add_option("--limit", flags->limit, "Only the first so many tasks")->check(CLI::Range(0, 1 << 30))
      ->type_name("N");
  command->add_option("--compress", flags->compress,
                      "after (default): read everything, then compress once; block: evict after every block")
      ->check(CLI::IsMember({"after", "block"}))
      ->type_name("WHEN");
  command->add_option("--output", flags->output_file, "Write the JSON here too")->type_name("FILE");
  command->add_option("--resume", flags->resume_file,
                      "Add each row to this file when it is finished, and leave out those that it holds already")
      ->type_name("FILE");
  command->add_option("--pins", flags->pins,
                      "off (default), on or both: whether recipes may drop a task's instruction (pinned_text)")
      ->check(CLI::IsMember({"off", "on", "both"}))
      ->type_name("WHEN");
  command->add_option("-c,--ctx-size", flags->ctx, "Longest task in tokens (default: the model's trained context)")
      ->check(CLI::Range(1, 1 << 30))
      ->type_name("N");
  command->add_option("-b,--batch-size,--ubatch-size", flags->block, "Tokens read at once")
      ->check(CLI::Range(1, 65536))
      ->type_name("N");
  command->add_option("--cache-type-k", flags->format, "-ctk: format of keys and values, f16 (default) or q8_0")
      ->type_name("TYPE");
  command->add_option("-s,--seed", flags->seed, "Seed of random choices (default 0)")->type_name("SEED");
  AddModelFlags(*command, flags->model);
  AddOutputFlags(*command, flags->output);
  command->callback([flags, &chosen] {
    chosen.check = [flags] { return Check(*flags); };
    chosen.run = [flags] { return RunEval(*flags); };
  });
}

}  // namespace pith::cli
