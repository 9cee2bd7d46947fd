#include "lab/budget_judge.h"

#include <algorithm>
#include <utility>

#include "base/logits.h"
#include "lab/whole_attention.h"

namespace pith {

Result<std::unique_ptr<BudgetJudge>> BudgetJudge::Create(std::shared_ptr<HostModel> model, JudgeOptions options,
                                                         std::vector<JudgedTask> tasks) {
  PITH_RETURN_IF_ERROR(CheckHasWholeAttention(model->info(), "budgets are searched for"));
  for (const JudgedTask& task : tasks)
    options.max_tokens = std::max(options.max_tokens, static_cast<int>(task.num_tokens()));
  std::unique_ptr<BudgetJudge> judge(new BudgetJudge(std::move(model), std::move(options), std::move(tasks)));
  PITH_ASSIGN_OR_RETURN(EngineOptions engine, FullCacheEngine(judge->options_));
  engine.max_sequences = static_cast<int>(judge->tasks_.size()) + 1;
  engine.later_recipes = judge->options_.recipes;
  PITH_ASSIGN_OR_RETURN(judge->engine_, Engine::Create(judge->model_, engine));
  judge->num_layers_ = CountLayers(judge->model_->info(), LayerKind::kGlobal);
  PITH_RETURN_IF_ERROR(judge->Read());
  return judge;
}

Status BudgetJudge::Read() {
  references_.resize(tasks_.size());
  for (size_t i = 0; i < tasks_.size(); ++i) {
    PITH_ASSIGN_OR_RETURN(const SequenceId context, engine_->NewSequence());
    contexts_.push_back(context);
    PITH_RETURN_IF_ERROR(engine_->Prefill(context, tasks_[i].compressed, false, nullptr, KeepGoing(options_)));
    PITH_ASSIGN_OR_RETURN(const SequenceId fork, engine_->Fork(context));
    const SequenceHold hold(*engine_, fork);
    PITH_RETURN_IF_ERROR(Follow(fork, tasks_[i]));
    references_[i].Set(rows_, tasks_[i].target);
  }
  return {};
}

Status BudgetJudge::Follow(SequenceId sequence, const JudgedTask& task) {
  PITH_RETURN_IF_ERROR(
      engine_->PrefillTogether({&sequence, 1}, task.tail, task.first_row, rows_, KeepGoing(options_)));
  return CheckLogits(rows_);
}

Result<BudgetMeasure> BudgetJudge::Measure(const Recipe& recipe, double entries) {
  BudgetMeasure mean;
  for (size_t i = 0; i < tasks_.size(); ++i) {
    if (options_.stopped()) return Cancelled("stopped");
    PITH_ASSIGN_OR_RETURN(const SequenceId fork, engine_->Fork(contexts_[i]));
    const SequenceHold hold(*engine_, fork);
    const double keep = std::min(1.0, entries / static_cast<double>(tasks_[i].compressed.size()));
    const CompressTarget target{.sequence = fork, .keep_fraction = keep};
    PITH_ASSIGN_OR_RETURN(const std::vector<double> kept, engine_->CompressForks(contexts_[i], recipe, {&target, 1}));
    PITH_RETURN_IF_ERROR(Follow(fork, tasks_[i]));
    double kl = 0;
    const TargetMeasure says = references_[i].Compare(rows_, kl);
    mean.kl += kl;
    mean.nll += says.nll;
    mean.accuracy += says.all_top ? 1 : 0;
    mean.kept += kept.front();
  }
  const auto count = static_cast<double>(tasks_.size());
  return BudgetMeasure{mean.kl / count, mean.nll / count, mean.accuracy / count, mean.kept / count};
}

int BudgetJudge::shortest() const {
  size_t least = SIZE_MAX;
  for (const JudgedTask& task : tasks_) least = std::min(least, task.compressed.size());
  return static_cast<int>(least);
}

}  // namespace pith
