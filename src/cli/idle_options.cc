#include "cli/idle_options.h"

#include <algorithm>
#include <iterator>

namespace pith::cli {
namespace {

constexpr std::string_view kPlacement = "the system places threads, and -t says how many there are",
                           kDevices =
                               "attention and the KV cache are on the CPU, and -ngl alone says which weights are not",
                           kNoLog = "pith writes no log", kRecipe = "--recipe says what stays when the budget is full",
                           kBudget = "one --kv-budget holds all that is kept",
                           kPages = "pages of the cache leave no holes";

constexpr IdleOption kIdleOptions[] = {
    {"--jinja", false, ""},
    {"--warmup", false, ""},
    {"--no-warmup", false, ""},
    {"--mmap", false, ""},
    {"--single-turn", false, ""},
    {"--color", false, ""},
    {"-co", false, ""},
    {"--simple-io", false, ""},
    {"--no-display-prompt", false, ""},
    {"--perf", false, ""},
    {"--no-perf", false, ""},
    {"--offline", false, ""},
    {"--log-disable", false, ""},
    {"--cont-batching", false, ""},
    {"-cb", false, ""},
    {"--metrics", false, ""},
    {"--slots", false, ""},
    {"--props", false, ""},
    {"--no-webui", false, ""},
    {"--embeddings", false, ""},
    {"--embedding", false, ""},
    {"--cache-prompt", false, ""},
    {"--kv-unified", false, ""},
    {"-kvu", false, ""},
    {"--no-kv-offload", false, ""},
    {"-nkvo", false, ""},
    {"--repack", false, ""},
    {"--slot-prompt-similarity", true, "the longest common prefix is always found"},
    {"-sps", true, "the longest common prefix is always found"},
    {"--context-shift", false, kRecipe},
    {"--no-context-shift", false, kRecipe},
    {"--swa-full", false, kRecipe},
    {"--cache-ram", true, kBudget},
    {"-cram", true, kBudget},
    {"--defrag-thold", true, kPages},
    {"-dt", true, kPages},
    {"--numa", true, kPlacement},
    {"--prio", true, kPlacement},
    {"--prio-batch", true, kPlacement},
    {"--poll", true, kPlacement},
    {"--poll-batch", true, kPlacement},
    {"--cpu-mask", true, kPlacement},
    {"-C", true, kPlacement},
    {"--cpu-range", true, kPlacement},
    {"-Cr", true, kPlacement},
    {"--cpu-strict", true, kPlacement},
    {"--cpu-mask-batch", true, kPlacement},
    {"-Cb", true, kPlacement},
    {"--cpu-range-batch", true, kPlacement},
    {"-Crb", true, kPlacement},
    {"--cpu-strict-batch", true, kPlacement},
    {"--device", true, kDevices},
    {"-dev", true, kDevices},
    {"--split-mode", true, kDevices},
    {"-sm", true, kDevices},
    {"--tensor-split", true, kDevices},
    {"-ts", true, kDevices},
    {"--main-gpu", true, kDevices},
    {"-mg", true, kDevices},
    {"--override-tensor", true, kDevices},
    {"-ot", true, kDevices},
    {"--cpu-moe", false, kDevices},
    {"-cmoe", false, kDevices},
    {"--n-cpu-moe", true, kDevices},
    {"-ncmoe", true, kDevices},
    {"--no-host", false, kDevices},
    {"--op-offload", false, kDevices},
    {"--no-op-offload", false, kDevices},
    {"--fit", true, kDevices},
    {"-fit", true, kDevices},
    {"--verbose", false, kNoLog},
    {"--log-verbose", false, kNoLog},
    {"-v", false, kNoLog},
    {"--verbosity", true, kNoLog},
    {"--log-verbosity", true, kNoLog},
    {"-lv", true, kNoLog},
    {"--log-file", true, kNoLog},
    {"--log-prefix", false, kNoLog},
    {"--log-timestamps", false, kNoLog},
};

}  // namespace

const IdleOption* FindIdleOption(std::string_view name) {
  const auto* found = std::ranges::find(kIdleOptions, name, &IdleOption::name);
  return found == std::ranges::end(kIdleOptions) ? nullptr : found;
}

}  // namespace pith::cli
