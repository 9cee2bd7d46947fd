// pith tune delta: what act=delta reads.
#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <numeric>
#include <utility>

#include "base/json_text.h"
#include "base/stopwatch.h"
#include "base/text.h"
#include "cli/terminal.h"
#include "cli/tune.h"
#include "lab/delta_fit.h"

namespace pith::cli {
namespace {

constexpr size_t kDefaultTokens = 2048;

}  // namespace

Result<int> RunTuneDelta(const TuneFlags& flags) {
  const Stopwatch watch;
  PITH_ASSIGN_OR_RETURN(const std::string text, ReadTuneText(flags));
  PITH_ASSIGN_OR_RETURN(const std::shared_ptr<HostModel> model, LoadModel(flags.model, flags.output));
  PITH_ASSIGN_OR_RETURN(std::vector<int32_t> tokens, model->Tokenize(text, true, true));
  tokens.resize(std::min(tokens.size(), flags.tokens > 0 ? static_cast<size_t>(flags.tokens) : kDefaultTokens));
  ProgressLine progress("fitting maps", flags.output.progress);
  const auto step = [&progress](size_t done, size_t total) {
    progress.Update(static_cast<double>(done), static_cast<double>(total));
    return !Interrupted();
  };
  const auto fitted = FitDelta(model, tokens, flags.delta, flags.model.num_threads(), step);
  if (!fitted) {
    if (Interrupted()) return kExitInterrupted;
    return WithAdvice(fitted.error());
  }
  PITH_RETURN_IF_ERROR(WriteFile(flags.output_file, fitted->maps->Bytes()));
  if (flags.output.json) {
    const nlohmann::ordered_json json = {
        {"model", model->info().description},        {"tokens", tokens.size()},
        {"latent", fitted->maps->latents() / 256.0}, {"error_without", fitted->error_without},
        {"error_with", fitted->error_with},          {"seconds", watch.seconds()}};
    PrintJson(JsonText(json, 1));
    return kExitOk;
  }
  for (size_t layer = 0; layer < fitted->error_with.size(); ++layer) {
    fmt::print("layer {:>3}  references leave {:.1f}% of keys and values, latents {:.1f}%\n", layer,
               100 * fitted->error_without[layer], 100 * fitted->error_with[layer]);
  }
  const auto mean = [](const std::vector<double>& errors) {
    return 100 * std::accumulate(errors.begin(), errors.end(), 0.0) / static_cast<double>(errors.size());
  };
  fmt::print("{} tokens, {:.0f} s; of all layers {:.1f}% and {:.1f}%; written to {}, for act=delta:{}\n", tokens.size(),
             watch.seconds(), mean(fitted->error_without), mean(fitted->error_with), flags.output_file,
             flags.output_file);
  return kExitOk;
}

}  // namespace pith::cli
