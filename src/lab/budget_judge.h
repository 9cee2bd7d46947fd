// What budgets of layers cost on tasks: contexts are read once, copies are compressed with each candidate.
#ifndef PITH_LAB_BUDGET_JUDGE_H_
#define PITH_LAB_BUDGET_JUDGE_H_

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "engine/engine.h"
#include "lab/judge.h"
#include "lab/measure.h"
#include "pith/types.h"

namespace pith {

// Means over tasks.
struct BudgetMeasure {
  double kl = 0;        // KL(full cache || compressed) over the target's positions, nats
  double nll = 0;       // of the target's tokens
  double accuracy = 0;  // share of tasks whose every target token is the likeliest
  double kept = 0;      // share of the entries that stay
};

class BudgetJudge {
 public:
  // Holds the full caches of all tasks. recipes: the text of each that will be measured (what a recipe remembers of
  // entries is noted while they are read). options: threads, seed, stopped. kCancelled where that says so.
  static Result<std::unique_ptr<BudgetJudge>> Create(std::shared_ptr<HostModel> model, JudgeOptions options,
                                                     std::vector<JudgedTask> tasks);

  // A recipe that keeps `entries` of each head on average. Its text is one of those of options.recipes, whose files it
  // may have read anew.
  Result<BudgetMeasure> Measure(const Recipe& recipe, double entries);

  int num_layers() const { return num_layers_; }  // that budgets are of
  size_t num_tasks() const { return tasks_.size(); }
  // Entries of the shortest task's context.
  int shortest() const;

 private:
  BudgetJudge(std::shared_ptr<HostModel> model, JudgeOptions options, std::vector<JudgedTask> tasks)
      : model_(std::move(model)), options_(std::move(options)), tasks_(std::move(tasks)) {}
  Status Read();
  // Rows of the target's positions, into rows_.
  Status Follow(SequenceId sequence, const JudgedTask& task);

  std::shared_ptr<HostModel> model_;
  JudgeOptions options_;
  std::vector<JudgedTask> tasks_;
  std::unique_ptr<Engine> engine_;
  std::vector<SequenceId> contexts_;         // [tasks]
  std::vector<TargetReference> references_;  // [tasks] what the full cache says
  std::vector<float> rows_;
  int num_layers_ = 0;
};

}  // namespace pith

#endif  // PITH_LAB_BUDGET_JUDGE_H_
