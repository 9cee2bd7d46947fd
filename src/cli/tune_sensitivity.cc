// pith tune sensitivity: what alloc=epicache reads.
#include <algorithm>
#include <cstdio>
#include <utility>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "base/json_text.h"
#include "base/text.h"
#include "cli/terminal.h"
#include "cli/tune.h"
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

Result<std::string> ReadTuneText(const TuneFlags& flags) {
  if (flags.text_file.empty()) return OwnText();
  PITH_ASSIGN_OR_RETURN(std::string text, ReadFile(flags.text_file));
  PITH_RETURN_IF_ERROR(RequireUtf8(text, flags.text_file));
  return text;
}

Result<int> RunTuneSensitivity(const TuneFlags& flags) {
  SensitivityOptions options = flags.sensitivity;
  PITH_ASSIGN_OR_RETURN(const std::string text, ReadTuneText(flags));
  PITH_ASSIGN_OR_RETURN(const std::shared_ptr<HostModel> model, LoadModel(flags.model, flags.output));
  PITH_ASSIGN_OR_RETURN(std::vector<int32_t> tokens, model->Tokenize(text, true, true));
  const int trained = model->info().trained_ctx > 0 ? std::min(model->info().trained_ctx, kMostTokens) : kMostTokens;
  const auto most = static_cast<size_t>(flags.tokens > 0 ? flags.tokens : trained);
  tokens.resize(std::min(tokens.size(), most));
  options.num_threads = flags.model.num_threads();
  std::vector<double> similarities;
  {
    ProgressLine progress("reading the text twice", flags.output.progress);
    const auto step = [&progress](size_t done, size_t total) {
      progress.Update(static_cast<double>(done), static_cast<double>(total));
      return !Interrupted();
    };
    auto measured = MeasureSensitivity(model, tokens, options, step);
    if (!measured) {
      if (Interrupted()) return kExitInterrupted;
      return WithAdvice(measured.error());
    }
    similarities = std::move(*measured);
  }
  const nlohmann::ordered_json json = {{"similarity", similarities},
                                       {"model", model->info().description},
                                       {"tokens", tokens.size()},
                                       {"block", options.block},
                                       {"first", options.first},
                                       {"previous", options.previous},
                                       {"window", options.window}};
  const std::string dumped = JsonText(json, 1);
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
