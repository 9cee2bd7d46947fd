// pith eval: what recipes cost in quality, on tasks with known answers.
#include <algorithm>
#include <map>
#include <memory>
#include <set>
#include <utility>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "cli/command.h"
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
  options.seed = flags.seed;
  return options;
}

Status Check(const EvalFlags& flags) {
  PITH_RETURN_IF_ERROR(flags.model.Check());
  PITH_RETURN_IF_ERROR(MakeJudgeOptions(flags));
  if (!flags.lengths.empty()) PITH_RETURN_IF_ERROR(ParseIntegers(flags.lengths, "--lengths", 1, 100'000'000));
  return {};
}

Result<std::vector<Task>> ChooseTasks(const EvalFlags& flags) {
  PITH_ASSIGN_OR_RETURN(const std::string text, ReadFile(flags.tasks));
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

struct Mean {
  int64_t count = 0;
  int64_t ok = 0;
  double nll = 0;
  double kl = 0;
  double kept = 0;
  double kept_bytes = 0;

  void Add(const EvalRow& row) {
    ++count;
    ok += row.ok ? 1 : 0;
    nll += row.nll;
    kl += row.kl;
    kept += row.kept;
    kept_bytes += row.kept_bytes;
  }
  double Of(double sum) const { return count == 0 ? 0 : sum / static_cast<double>(count); }
  double accuracy() const { return Of(static_cast<double>(ok)); }
};

struct TableRow {
  std::string task;  // "all" for every task together
  std::string policy;
  double keep = 1;
  Mean mean;
};

// Per task, and over all of them; policies and fractions in the order they came.
std::vector<TableRow> MakeTable(const std::vector<EvalRow>& rows) {
  std::vector<TableRow> table;
  std::map<std::pair<std::string, std::pair<std::string, double>>, size_t> index;
  const auto add = [&](const std::string& task, const EvalRow& row) {
    const auto [found, fresh] = index.try_emplace({task, {row.policy, row.keep}}, table.size());
    if (fresh) table.push_back({task, row.policy, row.keep, {}});
    table[found->second].mean.Add(row);
  };
  for (const EvalRow& row : rows) add(row.task, row);
  for (const EvalRow& row : rows) add("all", row);
  std::stable_sort(table.begin(), table.end(), [](const TableRow& a, const TableRow& b) {
    const bool a_all = a.task == "all";
    const bool b_all = b.task == "all";
    if (a_all != b_all) return b_all;
    return a.task < b.task;
  });
  return table;
}

nlohmann::ordered_json ToJson(const EvalFlags& flags, const JudgeOptions& options, const ModelInfo& info,
                              const std::vector<EvalRow>& rows, bool complete) {
  auto items = nlohmann::ordered_json::array();
  for (const EvalRow& row : rows) {
    items.push_back({{"id", row.id},
                     {"task", row.task},
                     {"length", row.length},
                     {"tokens", row.tokens},
                     {"policy", row.policy},
                     {"keep", row.keep},
                     {"kept", row.kept},
                     {"nll", row.nll},
                     {"kl", row.kl},
                     {"ok", row.ok},
                     {"kept_bytes", row.kept_bytes}});
  }
  auto table = nlohmann::ordered_json::array();
  for (const TableRow& row : MakeTable(rows)) {
    table.push_back({{"task", row.task},
                     {"policy", row.policy},
                     {"keep", row.keep},
                     {"items", row.mean.count},
                     {"kept", row.mean.Of(row.mean.kept)},
                     {"kept_bytes", row.mean.Of(row.mean.kept_bytes)},
                     {"accuracy", row.mean.accuracy()},
                     {"nll", row.mean.Of(row.mean.nll)},
                     {"kl", row.mean.Of(row.mean.kl)}});
  }
  return {{"mode", flags.mode},
          {"compress", flags.compress},
          {"format", KvFormatName(options.format)},
          {"model", info.description},
          {"architecture", info.architecture},
          {"recipes", options.names},
          {"keep", options.keeps},
          {"complete", complete},
          {"items", items},
          {"table", table}};
}

void PrintTable(const std::vector<EvalRow>& rows) {
  size_t width = 6;
  for (const EvalRow& row : rows) width = std::max(width, row.policy.size());
  fmt::print("{:<14} {:<{}} {:>6} {:>6} {:>9} {:>8} {:>8}\n", "task", "recipe", width, "keep", "kept", "accuracy",
             "nll", "kl");
  for (const TableRow& row : MakeTable(rows)) {
    fmt::print("{:<14} {:<{}} {:>6.3g} {:>6.3f} {:>9} {:>8.3f} {:>8.4f}\n", row.task, row.policy, width, row.keep,
               row.mean.Of(row.mean.kept), fmt::format("{}/{}", row.mean.ok, row.mean.count),
               row.mean.Of(row.mean.nll), row.mean.Of(row.mean.kl));
  }
}

std::string Dump(const nlohmann::ordered_json& json) {
  return json.dump(1, ' ', false, nlohmann::json::error_handler_t::replace);
}

// Judges every task; a broken one ends the run, an interrupt leaves what is there.
Status JudgeAll(const EvalFlags& flags, const JudgeOptions& options, const ModelInfo& info, Judge& judge,
                const std::vector<JudgedTask>& tasks, std::vector<EvalRow>& rows) {
  size_t total = 0;
  for (const JudgedTask& task : tasks) total += task.num_tokens();
  size_t done = 0;
  ProgressLine progress("evaluating", flags.output.progress);
  Stopwatch since_saved;
  for (const JudgedTask& task : tasks) {
    progress.Update(static_cast<double>(done), static_cast<double>(total), task.task.id);
    const Status status = judge.Run(task, rows);
    if (Interrupted()) return {};
    PITH_RETURN_IF_ERROR(status);
    done += task.num_tokens();
    if (!flags.output_file.empty() && since_saved.seconds() > 10) {
      PITH_RETURN_IF_ERROR(WriteFile(flags.output_file, Dump(ToJson(flags, options, info, rows, false))));
      since_saved = Stopwatch();
    }
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
  PITH_ASSIGN_OR_RETURN(std::vector<Task> tasks, ChooseTasks(flags));
  PITH_ASSIGN_OR_RETURN(JudgeOptions options, MakeJudgeOptions(flags));
  PITH_ASSIGN_OR_RETURN(const std::shared_ptr<HostModel> model, LoadModel(flags.model, flags.output));
  PITH_ASSIGN_OR_RETURN(const std::vector<JudgedTask> judged, TokenizeAll(flags, *model, std::move(tasks), options));
  PITH_ASSIGN_OR_RETURN(const std::unique_ptr<Judge> judge, Judge::Create(model, options));
  std::vector<EvalRow> rows;
  const Status status = JudgeAll(flags, options, model->info(), *judge, judged, rows);
  const bool complete = status && !Interrupted();
  const std::string json = Dump(ToJson(flags, options, model->info(), rows, complete));
  // What there is, is worth keeping even where the run failed later.
  if (!flags.output_file.empty()) PITH_RETURN_IF_ERROR(WriteFile(flags.output_file, json + "\n"));
  PITH_RETURN_IF_ERROR(status);
  if (flags.output.json) {
    PrintJson(json);
  } else {
    PrintTable(rows);
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
  command->add_option("--output", flags->output_file, "Write the JSON here too, also while running")
      ->type_name("FILE");
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
