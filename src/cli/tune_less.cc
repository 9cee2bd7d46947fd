// pith tune less: what act=less reads.
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
#include "lab/less_maps.h"

namespace pith::cli {
namespace {

constexpr size_t kDefaultTokens = 1024;

}  // namespace

Result<int> RunTuneLess(const TuneFlags& flags) {
  const Stopwatch watch;
  PITH_ASSIGN_OR_RETURN(const std::string text, ReadTuneText(flags));
  PITH_ASSIGN_OR_RETURN(const std::shared_ptr<HostModel> model, LoadModel(flags.model, flags.output));
  PITH_ASSIGN_OR_RETURN(std::vector<int32_t> tokens, model->Tokenize(text, true, true));
  tokens.resize(std::min(tokens.size(), flags.tokens > 0 ? static_cast<size_t>(flags.tokens) : kDefaultTokens));
  LessFitOptions options = flags.less;
  options.seed = flags.seed;
  ProgressLine progress("fitting maps", flags.output.progress);
  const auto step = [&progress](size_t done, size_t total) {
    progress.Update(static_cast<double>(done), static_cast<double>(total));
    return !Interrupted();
  };
  const auto fitted = FitMaps(model, tokens, options, flags.model.num_threads(), step);
  if (!fitted) {
    if (Interrupted()) return kExitInterrupted;
    return WithAdvice(fitted.error());
  }
  PITH_RETURN_IF_ERROR(WriteFile(flags.output_file, fitted->maps->Bytes()));
  const auto sum = [](const std::vector<double>& errors) { return std::accumulate(errors.begin(), errors.end(), 0.0); };
  const double all = sum(fitted->error_with) / std::max(sum(fitted->error_without), 1e-300);
  if (flags.output.json) {
    const nlohmann::ordered_json json = {{"model", model->info().description},
                                         {"tokens", tokens.size()},
                                         {"features", options.rank},
                                         {"hidden", options.hidden},
                                         {"error_without", fitted->error_without},
                                         {"error_with", fitted->error_with},
                                         {"seconds", watch.seconds()}};
    PrintJson(JsonText(json, 1));
    return kExitOk;
  }
  for (size_t layer = 0; layer < fitted->error_with.size(); ++layer) {
    fmt::print("layer {:>3}  squared error of outputs {:.3g}, with states {:.3g}\n", layer,
               fitted->error_without[layer], fitted->error_with[layer]);
  }
  fmt::print("{} tokens, {:.0f} s; errors fall to {:.0f}%; written to {}, for act=less:{}\n", tokens.size(),
             watch.seconds(), 100 * all, flags.output_file, flags.output_file);
  return kExitOk;
}

}  // namespace pith::cli
