// pith info: what a model is and what its KV cache costs.
#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <utility>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "base/json_text.h"
#include "cli/command.h"
#include "engine/cache_formats.h"
#include "engine/plan.h"
#include "policy/act/think.h"
#include "policy/storage.h"

namespace pith::cli {
namespace {

constexpr const char* kInfoExamples = R"(
Bytes per token are keys and values alone, as libllama would hold them; in comp, whose pages differ, what is usual.
The longest context is what fits the budget with nothing dropped; recipes go on from there. Without --kv-budget it is
256MiB. How it splits is what an engine of the same flags plans.

Examples:
  pith info model.gguf
  pith info model.gguf --kv-budget 64MiB --json
  pith info model.gguf --kv-budget 10% -c 32768 -ctk q4_0 -ctv q4_0    # how this budget splits
)";

// pith's own overheads, for the longest context: positions beside the keys, and
// the least block buffer.
constexpr int kSmallBlock = 64;

struct InfoFlags {
  ModelFlags model;
  CacheFlags cache;
  OutputFlags output;
  std::string file;  // positional
};

const char* KindName(LayerKind kind) {
  switch (kind) {
    case LayerKind::kNone: return "none";
    case LayerKind::kGlobal: return "global";
    case LayerKind::kWindow: return "window";
    case LayerKind::kChunk: return "chunk";
  }
  return "";
}

// By the names of -ctk.
std::vector<std::pair<std::string, PageFormat>> Formats() {
  std::vector<std::pair<std::string, PageFormat>> formats;
  for (const KvFormat format : kKvFormats) formats.emplace_back(InfoOf(format).flag, format);
  formats.emplace_back("comp", kUsualCoded);
  return formats;
}

template <class Value>
nlohmann::json PerFormat(const Value& value) {
  nlohmann::json json;
  for (const auto& [name, format] : Formats()) json[name] = value(format);
  return json;
}

// Bytes that pith's pages take for one entry of every head of the chosen layers.
double PagedBytesPerToken(const ModelInfo& info, PageFormat format, bool global) {
  double bytes = 0;
  for (const LayerShape& layer : info.layers) {
    if (!HoldsCache(layer) || (layer.kind == LayerKind::kGlobal) != global) continue;
    const auto layout = PageLayout::Make(format, layer.key_dim, layer.value_dim, 0);
    bytes += static_cast<double>(layout.planned_bytes()) / kPageEntries * layer.num_kv_heads;
  }
  return bytes;
}

// Tokens that fit with nothing dropped. Layers with a window need no more than the window.
int64_t LongestContext(const ModelInfo& info, PageFormat format, size_t budget_bytes) {
  const double global = PagedBytesPerToken(info, format, true);
  const double local = PagedBytesPerToken(info, format, false);
  const double around = static_cast<double>(info.recurrent_bytes) +
                        static_cast<double>(BytesPerToken(info, KvFormat::kF16)) * kSmallBlock;
  // Keys in groups and codes wait in f16 pages until these are full.
  const double waiting = format.whole_pages() ? kPageEntries * (PagedBytesPerToken(info, KvFormat::kF16, true) +
                                                                PagedBytesPerToken(info, KvFormat::kF16, false))
                                              : 0.0;
  const double left = static_cast<double>(budget_bytes) - around - waiting;
  if (left <= 0) return 0;
  const double window = info.window;
  // While the windows are not full yet, every layer grows.
  double tokens = global + local > 0 ? left / (global + local) : std::numeric_limits<double>::infinity();
  if (local > 0 && tokens > window) {
    tokens = global > 0 ? (left - local * window) / global : std::numeric_limits<double>::infinity();
  }
  if (!std::isfinite(tokens)) return -1;
  return static_cast<int64_t>(tokens) / kPageEntries * kPageEntries;
}

nlohmann::ordered_json LayersJson(const ModelInfo& info) {
  auto layers = nlohmann::ordered_json::array();
  for (size_t i = 0; i < info.layers.size(); ++i) {
    const LayerShape& layer = info.layers[i];
    layers.push_back({{"layer", i},
                      {"kind", KindName(layer.kind)},
                      {"heads", layer.num_heads},
                      {"kv_heads", layer.num_kv_heads},
                      {"key_dim", layer.key_dim},
                      {"value_dim", layer.value_dim},
                      {"shared", layer.shared},
                      {"value_in_key", layer.value_in_key}});
  }
  return layers;
}

// Of the bytes of entries that are older than the newest: what their keys lose once the prompt is whole (act=prune).
double PrunedShare(const ModelInfo& info, const Policy& policy, PageFormat format) {
  const PruneOptions* const prune = policy.prune();
  return prune == nullptr ? 0 : 1 - PrunedCost(info, format, prune->share);
}

nlohmann::ordered_json SplitJson(const ModelInfo& info, const EngineOptions& options) {
  const auto split = SplitBudget(info, options);
  if (!split) return {{"refused", split.error().message}};
  return {{"format", split->format.Name()},
          {"recipe", options.recipe.text},
          {"block_tokens", split->block_tokens},
          {"keep_entries", split->keep_entries},
          {"block_bytes", split->block_bytes},
          {"in_flight_bytes", split->in_flight_bytes},
          {"recurrent_bytes", split->recurrent_bytes},
          {"table_bytes", split->table_bytes},
          {"window_bytes", split->window_bytes},
          {"global_bytes", split->global_bytes},
          {"pruned_share", PrunedShare(info, *options.recipe.policy, split->format)},
          {"unused_bytes", split->unused_bytes}};
}

nlohmann::ordered_json ToJson(const ModelInfo& info, const HostModel& model, const EngineOptions& options) {
  const size_t budget_bytes = options.budget_bytes;
  return {{"path", info.path},
          {"architecture", info.architecture},
          {"description", info.description},
          {"layers", info.num_layers},
          {"kv_layers", std::count_if(info.layers.begin(), info.layers.end(), HoldsCache)},
          {"global_layers", CountLayers(info, LayerKind::kGlobal)},
          {"window_layers", CountLayers(info, LayerKind::kWindow) + CountLayers(info, LayerKind::kChunk)},
          {"window", info.window},
          {"vocab", info.num_vocab},
          {"trained_ctx", info.trained_ctx},
          {"params", info.num_params},
          {"file_bytes", info.file_bytes},
          {"hybrid", info.hybrid},
          {"quantised", info.quantised},
          {"recurrent_bytes", info.recurrent_bytes},
          {"chat_template", model.has_chat_template()},
          {"kv_bytes_per_token",
           PerFormat([&](PageFormat format) { return static_cast<int64_t>(BytesPerToken(info, format)); })},
          {"full_cache_bytes", FullCacheBytes(info, ContextOf(info, 0))},
          {"budget_bytes", budget_bytes},
          {"budget_split", SplitJson(info, options)},
          {"longest_context", PerFormat([&](PageFormat format) { return LongestContext(info, format, budget_bytes); })},
          {"kv_shapes", LayersJson(info)}};
}

void PrintSplit(const ModelInfo& info, const EngineOptions& options) {
  const auto split = SplitBudget(info, options);
  if (!split) {
    fmt::print("{}\n", split.error().message);
    return;
  }
  fmt::print("where {} go ({}, one sequence, {})\n", FormatBytes(options.budget_bytes), split->format.Name(),
             options.recipe.text);
  const auto part = [](const char* name, size_t bytes, const std::string& note) {
    if (bytes > 0) fmt::print("  {:<22}{:<12}{}\n", name, FormatBytes(bytes), note);
  };
  part("global layers", split->global_bytes, fmt::format("{} entries per KV head", FormatCount(split->keep_entries)));
  if (const PruneOptions* const prune = options.recipe.policy->prune(); prune != nullptr) {
    const double bytes =
        static_cast<double>(split->global_bytes) * PrunedShare(info, *options.recipe.policy, split->format);
    part("  freed by act=prune", static_cast<size_t>(bytes),
         fmt::format("at most, once the prompt is whole: {:g}% of the key channels go", 100 * prune->share));
  }
  part("window layers", split->window_bytes, fmt::format("the last {} tokens", FormatCount(info.window)));
  part("recurrent state", split->recurrent_bytes, "with a spare copy");
  part("block", split->block_bytes, fmt::format("{} tokens on their way in", split->block_tokens));
  part("block's entries", split->in_flight_bytes, "until the recipe has evicted");
  part("tables", split->table_bytes, "");
  part("unused", split->unused_bytes, "");
}

std::string ContextText(int64_t tokens) {
  return tokens < 0 ? "any" : fmt::format("{} tokens", FormatCount(tokens));
}

// Consecutive layers of one shape on one line.
void PrintLayers(const ModelInfo& info) {
  const auto describe = [](const LayerShape& layer) {
    if (!HoldsCache(layer)) return std::string("no KV cache");
    return fmt::format("{}, {} heads over {} KV heads, keys of {}, values of {}{}", KindName(layer.kind),
                       layer.num_heads, layer.num_kv_heads, layer.key_dim, layer.value_dim,
                       layer.value_in_key ? " (within the keys)" : "");
  };
  for (size_t first = 0; first < info.layers.size();) {
    const std::string text = describe(info.layers[first]);
    size_t last = first;
    while (last + 1 < info.layers.size() && describe(info.layers[last + 1]) == text) ++last;
    const std::string name = first == last ? fmt::format("layer {}", first) : fmt::format("layers {}-{}", first, last);
    fmt::print("  {:<14}{}\n", name, text);
    first = last + 1;
  }
}

void PrintText(const ModelInfo& info, const HostModel& model, const EngineOptions& options) {
  const size_t budget_bytes = options.budget_bytes;
  fmt::print("{}\n", info.path);
  const auto field = [](const char* name, const std::string& value) { fmt::print("{:<24}{}\n", name, value); };
  field("architecture", info.architecture);
  field("description", info.description);
  field("parameters", fmt::format("{:.1f} million in {}", static_cast<double>(info.num_params) / 1e6,
                                  FormatBytes(info.file_bytes)));
  field("vocabulary", FormatCount(info.num_vocab));
  field("trained context", FormatCount(info.trained_ctx));
  field("chat template", model.knows_chat_template() ? "yes"
                         : model.has_chat_template() ? "one that cannot be read"
                                                     : "none");
  if (info.window > 0) field("sliding window", FormatCount(info.window));
  if (info.hybrid) field("recurrent state", FormatBytes(info.recurrent_bytes) + " per sequence");
  fmt::print("layers\n");
  PrintLayers(info);
  for (const auto& [name, format] : Formats())
    field(fmt::format("KV per token, {}", name).c_str(), FormatBytes(BytesPerToken(info, format)));
  field("full cache, f16", fmt::format("{} for {} tokens", FormatBytes(FullCacheBytes(info, ContextOf(info, 0))),
                                       FormatCount(ContextOf(info, 0))));
  fmt::print("longest context within {}, nothing dropped\n", FormatBytes(budget_bytes));
  for (const auto& [name, format] : Formats()) {
    field(fmt::format("  {}", name).c_str(), ContextText(LongestContext(info, format, budget_bytes)));
  }
  PrintSplit(info, options);
}

Result<int> RunInfo(InfoFlags& flags) {
  if (!flags.file.empty()) flags.model.path = flags.file;
  PITH_ASSIGN_OR_RETURN(const std::shared_ptr<HostModel> model, LoadModel(flags.model, flags.output));
  const ModelInfo& info = model->info();
  PITH_ASSIGN_OR_RETURN(const size_t budget, BudgetBytes(flags.cache, info));
  PITH_RETURN_IF_ERROR(SettleRecipe(flags.cache, info, ContextOf(info, flags.cache.ctx), budget));
  PITH_ASSIGN_OR_RETURN(const EngineOptions options, MakeEngineOptions(flags.cache, flags.model, info));
  if (flags.output.json) {
    PrintJson(JsonText(ToJson(info, *model, options), 2));
  } else {
    PrintText(info, *model, options);
  }
  return kExitOk;
}

}  // namespace

void AddInfo(CLI::App& app, Command& chosen) {
  auto flags = std::make_shared<InfoFlags>();
  CLI::App* command = AddCommand(app, "info", "Show a model's shapes and what its KV cache costs", kInfoExamples);
  AddOption(*command, "MODEL", flags->file, "GGUF file, as with -m", "TEXT");
  AddModelFlags(*command, flags->model);
  flags->cache.budget = "256MiB";
  AddCacheFlags(*command, flags->cache);
  AddOutputFlags(*command, flags->output);
  OnCommand(*command, [flags, &chosen] {
    chosen.check = [flags]() -> Status {
      PITH_RETURN_IF_ERROR(flags->model.Check());
      if (!flags->file.empty() && !flags->model.path.empty()) {
        return InvalidArgument("name the model once, with or without -m");
      }
      return flags->cache.Check();
    };
    chosen.run = [flags] { return RunInfo(*flags); };
  });
}

}  // namespace pith::cli
