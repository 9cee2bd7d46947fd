#include "cli/tune_sensitivity.h"

#include <algorithm>
#include <cstdio>
#include <utility>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "base/text.h"
#include "cli/terminal.h"
#include "lab/embedded.h"
#include "lab/jsonl.h"

namespace pith::cli {
namespace {

constexpr int kMostTokens = 16384;

// The contexts of pith's own tasks, one behind the other.
Result<std::string> OwnText() {
  PITH_ASSIGN_OR_RETURN(const std::vector<Task> tasks, ParseTasks(OwnTasks(), "the set of tasks"));
  std::string text;
  for (const Task& task : tasks) text += task.context_text + "\n\n";
  return text;
}

}  // namespace

void AddSensitivityFlags(CLI::App& command, SensitivityFlags& flags) {
  AddOption(command, "-f,--file", flags.text_file, "sensitivity: the text (default: that of pith's own tasks)", "FILE");
  AddNumber(command, "--tokens", flags.tokens, 0, 1 << 24,
            "sensitivity: tokens of it (default, and 0: as many as the model was trained for, up to 16384)", "N");
  AddNumber(command, "--block", flags.options.block, 2, 1 << 24,
            "sensitivity: tokens that see one another (default 4096)", "N");
  AddNumber(command, "--first", flags.options.first, 0, 4096, "sensitivity: tokens that all see (default 128)", "N");
  AddNumber(command, "--previous", flags.options.previous, 0, 1 << 24,
            "sensitivity: tokens of the block before that are seen, too (default 2048)", "N");
  AddNumber(command, "--window", flags.options.window, 1, 1 << 20,
            "sensitivity: tokens whose keys are compared as one vector (default 100)", "N");
}

Status CheckSensitivity(const SensitivityFlags& flags) {
  PITH_RETURN_IF_ERROR(flags.model.Check());
  if (flags.output_file.empty()) return InvalidArgument("--output is missing: the file that alloc=epicache shall read");
  return CheckOutput(flags.output_file);
}

Result<int> RunSensitivity(SensitivityFlags& flags) {
  std::string text;
  if (flags.text_file.empty()) {
    PITH_ASSIGN_OR_RETURN(text, OwnText());
  } else {
    PITH_ASSIGN_OR_RETURN(text, ReadFile(flags.text_file));
  }
  PITH_RETURN_IF_ERROR(RequireUtf8(text, flags.text_file.empty() ? "the text" : flags.text_file));
  PITH_ASSIGN_OR_RETURN(const std::shared_ptr<HostModel> model, LoadModel(flags.model, flags.output));
  PITH_ASSIGN_OR_RETURN(std::vector<int32_t> tokens, model->Tokenize(text, true, true));
  const int trained = model->info().trained_ctx > 0 ? std::min(model->info().trained_ctx, kMostTokens) : kMostTokens;
  const auto most = static_cast<size_t>(flags.tokens > 0 ? flags.tokens : trained);
  tokens.resize(std::min(tokens.size(), most));
  flags.options.num_threads = flags.model.num_threads();
  std::vector<double> similarities;
  {
    ProgressLine progress("reading the text twice", flags.output.progress);
    const auto step = [&progress](size_t done, size_t total) {
      progress.Update(static_cast<double>(done), static_cast<double>(total));
      return !Interrupted();
    };
    auto measured = MeasureSensitivity(model, tokens, flags.options, step);
    if (!measured) {
      if (Interrupted()) return kExitInterrupted;
      return WithAdvice(measured.error());
    }
    similarities = std::move(*measured);
  }
  const nlohmann::ordered_json json = {{"similarity", similarities},
                                       {"model", model->info().description},
                                       {"tokens", tokens.size()},
                                       {"block", flags.options.block},
                                       {"first", flags.options.first},
                                       {"previous", flags.options.previous},
                                       {"window", flags.options.window}};
  const std::string dumped = json.dump(1);
  PITH_RETURN_IF_ERROR(WriteFile(flags.output_file, dumped + "\n"));
  if (flags.output.json) {
    PrintJson(dumped);
    return kExitOk;
  }
  for (size_t layer = 0; layer < similarities.size(); ++layer) {
    fmt::print("layer {:>3}  {:.4f}\n", layer, similarities[layer]);
  }
  fmt::print("{} tokens; written to {}, for alloc=epicache:{}\n", tokens.size(), flags.output_file, flags.output_file);
  return kExitOk;
}

}  // namespace pith::cli
