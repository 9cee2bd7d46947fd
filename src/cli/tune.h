// pith tune: its flags, and what it finds.
#ifndef PITH_CLI_TUNE_H_
#define PITH_CLI_TUNE_H_

#include <cstdint>
#include <string>
#include <vector>

#include "cli/command.h"
#include "lab/jsonl.h"
#include "lab/sensitivity.h"
#include "pith/types.h"

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
  // budgets
  std::string recipe = "snapkv";
  std::string objective = "kl";
  std::string resume_file;
  int samples = 8;
  int held_out = 8;
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
  // share, sensitivity
  int tokens = 0;  // 0: the default
};

Status CheckTuneBudgets(const TuneFlags& flags);
Result<int> RunTuneBudgets(const TuneFlags& flags);
Result<int> RunTuneShare(const TuneFlags& flags);
Result<int> RunTuneSensitivity(const TuneFlags& flags);

}  // namespace pith::cli

#endif  // PITH_CLI_TUNE_H_
