// pith tune budgets: entries of each layer, by evolution on tasks.
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <random>
#include <span>
#include <utility>

#include "base/json_text.h"
#include "cli/terminal.h"
#include "cli/tune.h"
#include "lab/budget_judge.h"
#include "policy/learn/budget_search.h"

namespace pith::cli {
namespace {

using nlohmann::ordered_json;

// The recipe with budgets from a file; "file" stands for its path.
Result<Recipe> RecipeWithFile(const TuneFlags& flags, const std::string& path) {
  return ParseRecipe(fmt::format("{} alloc=file:{}", flags.recipe, path));
}

// A file for the candidate at hand, gone when the object is.
class CandidateFile {
 public:
  CandidateFile() : path_(fmt::format("{}/pith_tune_{}.json", TempFolder(), ::getpid())) {}
  ~CandidateFile() { ::unlink(path_.c_str()); }
  CandidateFile(const CandidateFile&) = delete;
  CandidateFile& operator=(const CandidateFile&) = delete;

  const std::string& path() const { return path_; }
  Status Write(std::span<const int> budgets) const {
    return WriteFile(path_, JsonText(ordered_json{{"layers", budgets}}) + "\n");
  }

 private:
  static std::string TempFolder() {
    const char* folder = std::getenv("TMPDIR");
    return folder != nullptr && *folder != '\0' ? folder : "/tmp";
  }
  const std::string path_;
};

// Answers that were paid for, by candidate; lines of JSON in a file where there is one.
class AnswerLog {
 public:
  static Result<AnswerLog> Open(const std::string& path, const ordered_json& run) {
    AnswerLog log;
    log.path_ = path;
    if (path.empty()) return log;
    const ordered_json header = {{"pith_tune", 1}, {"run", run}};
    std::ifstream in(path);
    std::string line;
    for (size_t number = 1; in && std::getline(in, line) && !in.eof(); ++number) {
      const ordered_json json = OrderedJsonOf(line);
      if (number == 1) {
        if (json == header) continue;
        return InvalidArgument(
            fmt::format("{} holds the answers of another search: give another file to --resume", path));
      }
      if (!json.is_object() || !json.contains("budgets") || !json.contains("score") || !json["score"].is_number()) {
        return Corrupt(fmt::format("{}, line {}: this is no answer", path, number));
      }
      log.answers_[json["budgets"].get<std::vector<int>>()] = json["score"].get<double>();
    }
    log.known_ = log.answers_.size();
    // Without a last line that a kill has torn.
    std::string text = JsonText(header) + "\n";
    for (const auto& [budgets, score] : log.answers_) text += Line(budgets, score);
    PITH_RETURN_IF_ERROR(WriteFile(path, text));
    return log;
  }

  const double* Find(const std::vector<int>& budgets) const {
    const auto it = answers_.find(budgets);
    return it == answers_.end() ? nullptr : &it->second;
  }
  Status Add(const std::vector<int>& budgets, double score) {
    answers_[budgets] = score;
    if (path_.empty()) return {};
    std::ofstream out(path_, std::ios::app);
    out << Line(budgets, score) << std::flush;
    if (!out) return IoError(fmt::format("cannot write {}", path_));
    return {};
  }
  size_t known() const { return known_; }

 private:
  static std::string Line(const std::vector<int>& budgets, double score) {
    return JsonText(ordered_json{{"budgets", budgets}, {"score", score}}) + "\n";
  }

  std::string path_;
  std::map<std::vector<int>, double> answers_;
  size_t known_ = 0;
};

// Budgets with which the result is compared, all with its sum.
struct Rival {
  std::string name;
  std::vector<int> budgets;
};

std::vector<Rival> RivalsOf(const std::vector<int>& found, int mean, uint64_t seed) {
  const size_t count = found.size();
  const int64_t total = static_cast<int64_t>(mean) * static_cast<int64_t>(count);
  std::vector<Rival> rivals = {{"found", CompleteBudgets(found, total)},
                               {"equal", std::vector<int>(count, mean)}};
  std::vector<int> shape(count);
  // From three halves of the mean down to a half.
  for (size_t l = 0; l < count; ++l)
    shape[l] = static_cast<int>(
        std::lround(1000 * (1.5 - static_cast<double>(l) / std::max<double>(1, static_cast<double>(count) - 1))));
  rivals.push_back({"pyramid", CompleteBudgets(shape, total)});
  std::mt19937_64 random(seed);
  for (int i = 1; i <= 3; ++i) {
    for (int& share : shape) share = 500 + static_cast<int>(random() % 1001);
    rivals.push_back({fmt::format("random {}", i), CompleteBudgets(shape, total)});
  }
  return rivals;
}

class BudgetTuner {
 public:
  explicit BudgetTuner(const TuneFlags& flags) : flags_(flags) {}

  Status Load() {
    PITH_ASSIGN_OR_RETURN(std::vector<Task> tasks, ReadTuneTasks(flags_, tasks_print_));
    PITH_ASSIGN_OR_RETURN(model_, LoadModel(flags_.model, flags_.output));
    PITH_ASSIGN_OR_RETURN(tasks_, SplitTuneTasks(flags_, *model_, std::move(tasks)));
    num_layers_ = CountLayers(model_->info(), LayerKind::kGlobal);
    options_ = {.mean_budget = static_cast<double>(flags_.entries),
                .group = flags_.group,
                .iterations = flags_.iterations,
                .least = flags_.least > 0 ? flags_.least : std::max(1, flags_.entries / 8),
                .most = flags_.most > 0 ? flags_.most : 8 * flags_.entries,
                .seed = flags_.seed};
    return {};
  }

  Status Run() {
    PITH_ASSIGN_OR_RETURN(AnswerLog log, AnswerLog::Open(flags_.resume_file, RunJson()));
    known_ = log.known();
    PITH_ASSIGN_OR_RETURN(judge_, NewJudge(std::move(tasks_.samples)));
    ProgressLine progress("searching", flags_.output.progress);
    const auto total = static_cast<double>(CountEvaluations(num_layers_, options_));
    double done = 0, best = 0;
    const auto score = [&](std::span<const int> candidate) -> Result<double> {
      const std::vector<int> budgets(candidate.begin(), candidate.end());
      progress.Update(done++, total, fmt::format("best {:.4f}", best));
      if (Interrupted()) return Cancelled("stopped");
      if (const double* known = log.Find(budgets)) return best = std::max(best, *known), *known;
      PITH_ASSIGN_OR_RETURN(const BudgetMeasure measure, Measure(budgets));
      const double says = Objective(measure);
      PITH_RETURN_IF_ERROR(log.Add(budgets, says));
      best = std::max(best, says);
      return says;
    };
    PITH_ASSIGN_OR_RETURN(found_, SearchBudgets(num_layers_, options_, score));
    rivals_ = RivalsOf(found_.budgets, flags_.entries, flags_.seed);
    ordered_json file = RunJson();
    file["layers"] = rivals_.front().budgets;
    file["fitness"] = found_.fitness;
    PITH_RETURN_IF_ERROR(WriteFile(flags_.output_file, JsonText(file, 1) + "\n"));
    if (tasks_.held_out.empty()) return {};
    PITH_ASSIGN_OR_RETURN(judge_, NewJudge(std::move(tasks_.held_out)));
    for (const Rival& rival : rivals_) {
      PITH_ASSIGN_OR_RETURN(const BudgetMeasure measure, Measure(rival.budgets));
      measures_.push_back(measure);
    }
    return {};
  }

  void Report(double seconds) const {
    if (flags_.output.json) {
      ordered_json json = RunJson();
      json["layers"] = rivals_.front().budgets;
      json["fitness"] = found_.fitness;
      json["seconds"] = seconds;
      json["held_out"] = ordered_json::array();
      for (size_t i = 0; i < measures_.size(); ++i) {
        json["held_out"].push_back({{"budgets", rivals_[i].name},
                                    {"kl", measures_[i].kl},
                                    {"nll", measures_[i].nll},
                                    {"accuracy", measures_[i].accuracy},
                                    {"kept", measures_[i].kept}});
      }
      return PrintJson(JsonText(json, 1));
    }
    fmt::print("{}: {} entries a layer on average\n", flags_.output_file, flags_.entries);
    fmt::print("layers {}\n", fmt::join(rivals_.front().budgets, " "));
    if (known_ > 0) fmt::print("{} answers were known from {}\n", known_, flags_.resume_file);
    if (!measures_.empty()) fmt::print("on {} tasks that the search has not seen:\n", judge_->num_tasks());
    for (size_t i = 0; i < measures_.size(); ++i) {
      fmt::print("  {:<9} kl {:.4f}  nll {:.3f}  accuracy {:.2f}  kept {:.3f}\n", rivals_[i].name, measures_[i].kl,
                 measures_[i].nll, measures_[i].accuracy, measures_[i].kept);
    }
    fmt::print("{:.0f} s\n", seconds);
  }

 private:
  ordered_json RunJson() const {
    return {{"model", model_->info().description}, {"model_bytes", model_->info().file_bytes},
            {"tasks", tasks_print_},               {"samples", flags_.samples},
            {"recipe", flags_.recipe},             {"objective", flags_.objective},
            {"entries", flags_.entries},           {"group", flags_.group},
            {"iterations", flags_.iterations},     {"least", options_.least},
            {"most", options_.most},               {"seed", flags_.seed}};
  }

  Result<std::unique_ptr<BudgetJudge>> NewJudge(std::vector<JudgedTask> tasks) const {
    PITH_RETURN_IF_ERROR(file_.Write(std::vector<int>(static_cast<size_t>(num_layers_), 1)));
    PITH_ASSIGN_OR_RETURN(Recipe recipe, RecipeWithFile(flags_, file_.path()));
    JudgeOptions options;
    options.recipes = {std::move(recipe)};
    options.num_threads = flags_.model.num_threads();
    options.stopped = Interrupted;
    return BudgetJudge::Create(model_, std::move(options), std::move(tasks));
  }

  Result<BudgetMeasure> Measure(const std::vector<int>& budgets) const {
    PITH_RETURN_IF_ERROR(file_.Write(budgets));
    PITH_ASSIGN_OR_RETURN(const Recipe recipe, RecipeWithFile(flags_, file_.path()));
    double sum = 0;
    for (const int budget : budgets) sum += budget;
    return judge_->Measure(recipe, sum / static_cast<double>(budgets.size()));
  }

  // At least 0, as the fitness wants it.
  double Objective(const BudgetMeasure& measure) const {
    if (flags_.objective == "accuracy") return measure.accuracy;
    return std::exp(-(flags_.objective == "nll" ? measure.nll : measure.kl));
  }

  const TuneFlags& flags_;
  std::string tasks_print_;
  std::shared_ptr<HostModel> model_;
  TuneTasks tasks_;
  int num_layers_ = 0;
  BudgetSearchOptions options_;
  CandidateFile file_;
  std::unique_ptr<BudgetJudge> judge_;
  BudgetSearchResult found_;
  std::vector<Rival> rivals_;
  std::vector<BudgetMeasure> measures_;
  size_t known_ = 0;
};

}  // namespace

Status CheckTuneBudgets(const TuneFlags& flags) {
  PITH_ASSIGN_OR_RETURN(const Recipe recipe, ParseRecipe(flags.recipe));
  if (recipe.policy->keeps_everything() || recipe.while_partial != nullptr || recipe.format || recipe.auto_format) {
    return InvalidArgument(fmt::format("--recipe {}: budgets are found for a recipe that drops entries and stores what "
                                       "stays as it is, such as snapkv",
                                       flags.recipe));
  }
  if (flags.output_file.empty()) return InvalidArgument("--output is missing: the file that alloc=file shall read");
  if (flags.least > flags.most && flags.most > 0) return InvalidArgument("--least is above --most");
  for (const std::string& path : {flags.output_file, flags.resume_file}) PITH_RETURN_IF_ERROR(CheckOutput(path));
  return {};
}

Result<int> RunTuneBudgets(const TuneFlags& flags) { return RunTuner<BudgetTuner>(flags); }

}  // namespace pith::cli
