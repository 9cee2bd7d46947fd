// pith tune share: which layers may read another layer's cache.
#include <algorithm>
#include <memory>
#include <utility>
#include <vector>

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <nlohmann/json.hpp>

#include "base/json_text.h"
#include "base/paths.h"
#include "base/stopwatch.h"
#include "cli/read_tasks.h"
#include "cli/terminal.h"
#include "cli/tune.h"
#include "lab/sharing_search.h"

namespace pith::cli {
namespace {

int TokensOf(const TuneFlags& flags) { return flags.tokens > 0 ? flags.tokens : 64; }

using nlohmann::ordered_json;

// Pieces of the tasks' contexts, of equal length.
Result<std::vector<std::vector<int32_t>>> TextsOf(const HostModel& model, const TuneFlags& flags) {
  std::string fingerprint;
  PITH_ASSIGN_OR_RETURN(const std::vector<Task> tasks, ReadTasks(flags.tasks, flags.lengths, fingerprint));
  std::vector<std::vector<int32_t>> texts;
  const auto length = static_cast<size_t>(TokensOf(flags));
  // One piece of each task first, so that texts differ.
  for (size_t piece = 0, before = 1; texts.size() != before; ++piece) {
    before = texts.size();
    for (const Task& task : tasks) {
      if (texts.size() == static_cast<size_t>(flags.texts)) return texts;
      PITH_ASSIGN_OR_RETURN(const std::vector<int32_t> tokens, model.Tokenize(task.context_text, false, true));
      if (tokens.size() < (piece + 1) * length) continue;
      const auto from = tokens.begin() + static_cast<ptrdiff_t>(piece * length);
      texts.emplace_back(from, from + TokensOf(flags));
    }
  }
  return InvalidArgument(fmt::format("the tasks hold {} texts of {} tokens, not {}", texts.size(), TokensOf(flags),
                                     flags.texts));
}

}  // namespace

Result<int> RunTuneShare(const TuneFlags& flags) {
  const Stopwatch watch;
  PITH_ASSIGN_OR_RETURN(const std::shared_ptr<HostModel> model, LoadModel(flags.model, flags.output));
  PITH_ASSIGN_OR_RETURN(const std::vector<std::vector<int32_t>> texts, TextsOf(*model, flags));
  const std::string path = flags.model.path.empty() ? DefaultModelPath() : flags.model.path;
  const auto load = [&](const SharingMap& map) -> Result<std::shared_ptr<HostModel>> {
    if (map.empty()) return model;
    HostModelOptions options;
    options.num_threads = flags.model.num_threads();
    options.own_products = !flags.model.libllama_products;
    PITH_ASSIGN_OR_RETURN(options.overrides, flags.model.Overrides());
    options.layer_map = map;
    options.try_in_child = false;  // it is loaded already
    return HostModel::Load(path, options);
  };
  const SharingOptions options{.count = flags.layers,
                               .threshold = flags.threshold,
                               .order = flags.order == "similar"  ? PairOrder::kSimilar
                                        : flags.order == "random" ? PairOrder::kRandom
                                                                  : PairOrder::kDissimilar,
                               .seed = flags.seed,
                               .num_threads = flags.model.num_threads()};
  ProgressLine progress("trying maps", flags.output.progress);
  double shared = 0;
  const auto tried = [&](const SharingSearch::Try& attempt) {
    shared += attempt.accepted ? 1 : 0;
    progress.Update(shared, flags.layers, fmt::format("similarity {:.3f}", attempt.similarity));
    return !Interrupted();
  };
  const Result<SharingSearch> found = SearchSharing(load, texts, options, tried);
  if (Interrupted()) return kExitInterrupted;
  if (!found) return tl::unexpected<Error>(found.error());
  ordered_json json = {{"model", model->info().description}, {"texts", flags.texts},   {"tokens", TokensOf(flags)},
                       {"order", flags.order},               {"threshold", flags.threshold}, {"share", found->map}};
  PITH_RETURN_IF_ERROR(WriteFile(flags.output_file, JsonText(json) + "\n"));
  const int64_t sharing = std::ranges::count_if(found->tries, &SharingSearch::Try::accepted);
  if (flags.output.json) {
    json["sharing"] = sharing;
    json["tries"] = found->tries.size();
    json["seconds"] = watch.seconds();
    PrintJson(JsonText(json, 1));
    return kExitOk;
  }
  fmt::print("{}: {} of {} layers read another one's cache, after {} tries\nshare {}\n", flags.output_file, sharing,
             found->map.size(), found->tries.size(), fmt::join(found->map, " "));
  if (sharing < flags.layers) fmt::print("no other pair keeps the similarity above {}\n", flags.threshold);
  fmt::print("{:.0f} s\n", watch.seconds());
  return kExitOk;
}

}  // namespace pith::cli
