// pith tune: its flags, and what it finds.
#ifndef PITH_CLI_TUNE_H_
#define PITH_CLI_TUNE_H_

#include <cstdint>
#include <string>
#include <vector>

#include "base/stopwatch.h"
#include "cli/command.h"
#include "cli/terminal.h"
#include "host/model.h"
#include "lab/delta_fit.h"
#include "lab/jsonl.h"
#include "lab/judge.h"
#include "lab/sensitivity.h"
#include "pith/types.h"
#include "policy/learn/less_fit.h"

namespace pith::cli {

struct TuneFlags {
  ModelFlags model;
  OutputFlags output;
  std::string what;
  std::string tasks;
  std::string output_file;
  std::string lengths;
  uint64_t seed = 42;
  int ctx = 0;
  // budgets, recipe
  std::string resume_file;
  int samples = 8;
  int held_out = 8;
  // recipe
  std::string keep = "0.5,0.2,0.1,0.05,0.02";
  std::string candidates;  // empty: pith's choice
  std::string compress = "block";
  // budgets
  std::string recipe = "snapkv";
  std::string objective = "kl";
  int entries = 64;
  int group = 8;
  int iterations = 8;
  int least = 0;
  int most = 0;
  // share
  int layers = 4;
  int texts = 8;
  double threshold = 0.5;
  std::string order = "dissimilar";
  // sensitivity
  std::string text_file;
  SensitivityOptions sensitivity;
  // share, sensitivity, less, delta
  int tokens = 0;  // 0: the default
  // less
  LessFitOptions less;
  // delta
  DeltaFitOptions delta;
};

// The tasks that are searched on, and those that only the result is judged on.
struct TuneTasks {
  std::vector<JudgedTask> samples;
  std::vector<JudgedTask> held_out;
};
// The first --samples + --held-out tasks of --tasks. fingerprint: of all.
Result<std::vector<Task>> ReadTuneTasks(const TuneFlags& flags, std::string& fingerprint);
Result<TuneTasks> SplitTuneTasks(const TuneFlags& flags, const HostModel& model, std::vector<Task> tasks);

// A search in three steps, of which an interrupt ends the second.
template <typename Tuner>
Result<int> RunTuner(const TuneFlags& flags) {
  const Stopwatch watch;
  Tuner tuner(flags);
  PITH_RETURN_IF_ERROR(tuner.Load());
  const Status status = tuner.Run();
  if (Interrupted()) return kExitInterrupted;
  PITH_RETURN_IF_ERROR(status);
  tuner.Report(watch.seconds());
  return kExitOk;
}

Status CheckTuneBudgets(const TuneFlags& flags);
Result<int> RunTuneBudgets(const TuneFlags& flags);
Status CheckTuneRecipe(const TuneFlags& flags);
Result<int> RunTuneRecipe(const TuneFlags& flags);
Result<int> RunTuneShare(const TuneFlags& flags);
Result<int> RunTuneSensitivity(const TuneFlags& flags);
Result<int> RunTuneLess(const TuneFlags& flags);
Result<int> RunTuneDelta(const TuneFlags& flags);
// --file, or the contexts of pith's own tasks, one behind the other.
Result<std::string> ReadTuneText(const TuneFlags& flags);

}  // namespace pith::cli

#endif  // PITH_CLI_TUNE_H_
