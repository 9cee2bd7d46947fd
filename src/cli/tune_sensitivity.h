// pith tune sensitivity: what alloc=epicache reads.
#ifndef PITH_CLI_TUNE_SENSITIVITY_H_
#define PITH_CLI_TUNE_SENSITIVITY_H_

#include <string>

#include "cli/command.h"
#include "lab/sensitivity.h"

namespace pith::cli {

struct SensitivityFlags {
  ModelFlags model;
  OutputFlags output;
  std::string text_file;
  std::string output_file;
  int tokens = 0;  // 0: as many as the model was trained for, up to 16,384
  SensitivityOptions options;
};

// -f --tokens --block --first --previous --window
void AddSensitivityFlags(CLI::App& command, SensitivityFlags& flags);
Status CheckSensitivity(const SensitivityFlags& flags);
Result<int> RunSensitivity(SensitivityFlags& flags);

}  // namespace pith::cli

#endif  // PITH_CLI_TUNE_SENSITIVITY_H_
