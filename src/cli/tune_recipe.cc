// pith tune recipe: which recipe loses least at each share of the bytes.
#include <fmt/format.h>

#include <algorithm>
#include <iterator>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>
#include <vector>

#include "base/json_text.h"
#include "cli/terminal.h"
#include "cli/tune.h"
#include "lab/eval_log.h"
#include "lab/eval_results.h"
#include "lab/judge.h"

namespace pith::cli {
namespace {

using nlohmann::ordered_json;

// One of each kind that has been best somewhere: what is precise and drops much, and what keeps much in few bits.
constexpr std::string_view kBlockCandidates =
    "pith;keydiff:recent=16 alloc=ada:alpha=0.5 format=q8;keydiff:recent=16 alloc=ada:alpha=0.5 format=q4;"
    "keydiff:recent=16 format=auto;snapkv format=auto;expectedattention format=auto;observed format=auto;"
    "streamingllm format=auto";
constexpr std::string_view kAfterCandidates =
    "pith;pith format=q8;pith format=q4;kvzip format=auto;kvzip_plus format=auto;keydiff:recent=16 format=auto;"
    "snapkv format=auto;expectedattention format=auto";

Result<std::vector<Recipe>> Candidates(const TuneFlags& flags, std::vector<std::string>& names) {
  const bool after = flags.compress == "after";
  names = SplitRecipes(!flags.candidates.empty() ? flags.candidates
                                                 : std::string(after ? kAfterCandidates : kBlockCandidates));
  if (names.empty()) return InvalidArgument("--candidates names no recipe");
  std::vector<Recipe> recipes;
  for (const std::string& name : names) {
    PITH_ASSIGN_OR_RETURN(Recipe recipe, ParseRecipe(name));
    if (std::ranges::count(names, name) > 1) return InvalidArgument(fmt::format("--candidates names {} twice", name));
    if (recipe.policy->keeps_everything() && !recipe.format && !recipe.auto_format)
      return InvalidArgument(fmt::format("{} keeps everything: it is what candidates are compared with", name));
    if (recipe.turns || (recipe.prefill && after))
      return InvalidArgument(fmt::format("{} acts before a prompt is compressed, and cannot be compared here", name));
    if (!after && NeedsWholePrompt(recipe))
      return InvalidArgument(fmt::format("{} reads the whole prompt first: give --compress after", name));
    recipes.push_back(std::move(recipe));
  }
  return recipes;
}

// What a candidate lost at a share, over the tasks that it was judged on.
EvalMean MeanOf(std::span<const EvalRow> rows, const std::string& policy, double keep) {
  EvalMean mean;
  for (const EvalRow& row : rows) {
    if (row.policy == policy && (policy == "full" || row.keep == keep)) mean.Add(row);
  }
  return mean;
}

class RecipeTuner {
 public:
  explicit RecipeTuner(const TuneFlags& flags) : flags_(flags) {}

  Status Load() {
    PITH_ASSIGN_OR_RETURN(std::vector<Task> tasks, ReadTuneTasks(flags_, fingerprint_));
    PITH_ASSIGN_OR_RETURN(options_.recipes, Candidates(flags_, options_.names));
    PITH_ASSIGN_OR_RETURN(options_.keeps, ParseNumbers(flags_.keep, "--keep", 0.001, 1));
    PITH_ASSIGN_OR_RETURN(model_, LoadModel(flags_.model, flags_.output));
    PITH_ASSIGN_OR_RETURN(tasks_, SplitTuneTasks(flags_, *model_, std::move(tasks)));
    options_.compress = flags_.compress == "after" ? CompressMode::kAfter : CompressMode::kBlock;
    options_.num_threads = flags_.model.num_threads();
    options_.seed = flags_.seed;
    options_.stopped = Interrupted;
    for (const auto* part : {&tasks_.samples, &tasks_.held_out}) {
      for (const JudgedTask& one : *part)
        options_.max_tokens = std::max(options_.max_tokens, static_cast<int>(one.num_tokens()));
    }
    for (const double keep : options_.keeps) alive_[keep] = options_.names;
    PITH_ASSIGN_OR_RETURN(samples_, Open(flags_.resume_file, tasks_.samples));
    PITH_ASSIGN_OR_RETURN(held_out_, Open({}, tasks_.held_out));
    return {};
  }

  Status Run() {
    PITH_ASSIGN_OR_RETURN(const std::unique_ptr<Judge> judge, Judge::Create(model_, options_));
    ProgressLine progress("comparing", flags_.output.progress);
    PITH_RETURN_IF_ERROR(JudgeTasks(*judge, tasks_.samples, *samples_, progress, 0));
    KeepBest(samples_->rows(), [](size_t) { return kFinalists; });
    PITH_RETURN_IF_ERROR(JudgeTasks(*judge, tasks_.held_out, *held_out_, progress, tasks_.samples.size()));
    return WriteFile(flags_.output_file, JsonText(ResultJson(), 1) + "\n");
  }

  void Report(double seconds) const {
    ordered_json json = ResultJson();
    json["seconds"] = seconds;
    if (flags_.output.json) return PrintJson(JsonText(json, 1));
    const double full = 100 * MeanOf(Rows(), "full", 1).accuracy();
    fmt::print("{:>6} {:>8} {:>8} {:>9} {:>6}  recipe (full cache: {:.0f}% right; {})\n", "keep", "bytes", "kl",
               "right", "nll", full, WhichTasks());
    for (const ordered_json& row : json["shares"]) {
      for (const ordered_json& one : row["judged"]) {
        fmt::print("{:>6.3g} {:>7.1f}% {:>8.4f} {:>8.0f}% {:>6.3f}  {}\n", row["keep"].get<double>(),
                   100 * one["kept_bytes"].get<double>(), one["kl"].get<double>(), 100 * one["accuracy"].get<double>(),
                   one["nll"].get<double>(), one["recipe"].get<std::string>());
      }
    }
    fmt::print("{}: for --recipe auto:{}\n{:.0f} s\n", flags_.output_file, flags_.output_file, seconds);
  }

 private:
  static constexpr size_t kFinalists = 2;

  // Where every candidate's answers go.
  Result<std::unique_ptr<EvalResults>> Open(const std::string& path, std::span<const JudgedTask> tasks) const {
    std::vector<std::string> ids;
    for (const JudgedTask& one : tasks) ids.push_back(one.task.id);
    std::unique_ptr<EvalLog> log;
    if (!path.empty()) {
      PITH_ASSIGN_OR_RETURN(log, EvalLog::Open(path, RunJson()));
    }
    return std::make_unique<EvalResults>(std::move(log), std::move(ids));
  }

  bool IsAlive(const std::string& policy, double keep) const {
    const auto found = alive_.find(keep);
    return policy == "full" || (found != alive_.end() && std::ranges::count(found->second, policy) > 0);
  }

  // Successive halving (Jamieson and Talwalkar, arXiv:1502.07943): after 2, 4, 8, ... tasks the worse half of the
  // candidates of each share goes, as long as more than two are left.
  // Of the first `done` tasks alone: a file of --resume may know more.
  void Halve(std::span<const JudgedTask> done, std::span<const EvalRow> known) {
    std::vector<EvalRow> rows;
    std::ranges::copy_if(known, std::back_inserter(rows), [done](const EvalRow& row) {
      return std::ranges::any_of(done, [&row](const JudgedTask& one) { return one.task.id == row.id; });
    });
    KeepBest(rows, [](size_t count) { return std::max(kFinalists, (count + 1) / 2); });
  }

  // Of each share so many of its candidates, best first.
  template <typename HowMany>
  void KeepBest(std::span<const EvalRow> rows, const HowMany& how_many) {
    for (auto& [keep, names] : alive_) {
      std::ranges::stable_sort(names, {}, [&](const std::string& name) { return MeanOf(rows, name, keep).kl; });
      names.resize(std::min(names.size(), how_many(names.size())));
    }
  }

  Status JudgeTasks(Judge& judge, std::span<const JudgedTask> tasks, EvalResults& results, ProgressLine& progress,
                    size_t before) {
    const auto total = static_cast<double>(tasks_.samples.size() + tasks_.held_out.size());
    for (size_t i = 0; i < tasks.size(); ++i) {
      size_t left = 0;
      for (const auto& [keep, names] : alive_) left += names.size();
      progress.Update(static_cast<double>(before + i), total, fmt::format("{} of {} left", left, Everything()));
      RowSink sink;
      sink.done = [&](const std::string& policy, double keep) {
        return !IsAlive(policy, keep) || results.Has(tasks[i].task.id, policy, keep);
      };
      sink.add = [&](EvalRow row) { return results.Add(std::move(row)); };
      PITH_RETURN_IF_ERROR(judge.Run(tasks[i], sink));
      if (Interrupted()) return Cancelled("stopped");
      const size_t done = i + 1;
      if (&results == samples_.get() && done >= 2 && (done & (done - 1)) == 0) Halve(tasks.first(done), results.rows());
    }
    return {};
  }

  size_t Everything() const { return options_.names.size() * options_.keeps.size(); }
  std::span<const EvalRow> Rows() const {
    return tasks_.held_out.empty() ? std::span(samples_->rows()) : std::span(held_out_->rows());
  }
  std::string WhichTasks() const {
    return tasks_.held_out.empty() ? fmt::format("the {} tasks of the search itself", tasks_.samples.size())
                                   : fmt::format("{} tasks that the search has not seen", tasks_.held_out.size());
  }

  ordered_json RunJson() const {
    return {{"pith_recipes", 1},
            {"model", model_->info().description},
            {"model_bytes", model_->info().file_bytes},
            {"tasks", fingerprint_},
            {"lengths", flags_.lengths},
            {"samples", flags_.samples},
            {"held_out", tasks_.held_out.size()},
            {"compress", flags_.compress},
            {"seed", flags_.seed}};
  }

  static ordered_json MeanJson(const std::string& recipe, const EvalMean& mean) {
    return {{"recipe", recipe},
            {"kl", mean.Of(mean.kl)},
            {"nll", mean.Of(mean.nll)},
            {"accuracy", mean.accuracy()},
            {"kept_bytes", mean.Of(mean.kept_bytes)}};
  }

  // A share's best by the tasks of the search: those that were not seen only judge it.
  ordered_json ResultJson() const {
    ordered_json json = RunJson(), shares = ordered_json::array();
    for (const double keep : options_.keeps) {
      const std::vector<std::string>& names = alive_.at(keep);
      ordered_json row = {{"keep", keep}};
      row.update(MeanJson(names.front(), MeanOf(Rows(), names.front(), keep)));
      const EvalMean full = MeanOf(Rows(), "full", 1);
      row["full_nll"] = full.Of(full.nll);
      row["full_accuracy"] = full.accuracy();
      row["judged"] = ordered_json::array();
      for (const std::string& name : names) row["judged"].push_back(MeanJson(name, MeanOf(Rows(), name, keep)));
      row["searched"] = ordered_json::array();
      for (const std::string& name : options_.names) {
        const EvalMean mean = MeanOf(samples_->rows(), name, keep);
        row["searched"].push_back({{"recipe", name}, {"kl", mean.Of(mean.kl)}, {"tasks", mean.count}});
      }
      shares.push_back(std::move(row));
    }
    json["shares"] = std::move(shares);
    return json;
  }

  const TuneFlags& flags_;
  std::string fingerprint_;
  std::shared_ptr<HostModel> model_;
  TuneTasks tasks_;
  JudgeOptions options_;
  std::map<double, std::vector<std::string>> alive_;  // candidates of each share, best first once they are ordered
  std::unique_ptr<EvalResults> samples_, held_out_;
};

}  // namespace

Status CheckTuneRecipe(const TuneFlags& flags) {
  std::vector<std::string> names;
  PITH_RETURN_IF_ERROR(Candidates(flags, names));
  PITH_RETURN_IF_ERROR(ParseNumbers(flags.keep, "--keep", 0.001, 1));
  if (!flags.resume_file.empty()) PITH_RETURN_IF_ERROR(CheckOutput(flags.resume_file));
  return {};
}

Result<int> RunTuneRecipe(const TuneFlags& flags) { return RunTuner<RecipeTuner>(flags); }

}  // namespace pith::cli
