// What every command of the program shares: its place in the parser, the flags
// for model, cache, sampler and output, and what they turn into.
#ifndef PITH_CLI_COMMAND_H_
#define PITH_CLI_COMMAND_H_

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/text.h"
#include "cli/options.h"
#include "engine/engine.h"
#include "engine/full_cache.h"
#include "host/model.h"
#include "pith/types.h"

namespace pith::cli {

// Used where no --recipe is given: loses least for its bytes (docs/quality.md), and by blocks it needs nothing but the
// keys, so that it works on every model and costs little.
inline constexpr std::string_view kDefaultRecipe = "pith";

// Without --kv-budget: the context's full cache, but not more than this. Every
// machine that can hold a model has it to spare, and it is 3,000 to 12,000
// tokens of the usual small models.
inline constexpr size_t kDefaultBudgetBytes = size_t{256} << 20;

inline constexpr int kExitOk = 0;
inline constexpr int kExitError = 1;
inline constexpr int kExitUsage = 2;

// A command as the parser leaves it. An error of check() is bad usage (exit code
// 2), an error of run() is a failure (1); run() returns an exit code.
struct Command {
  std::function<Status()> check;
  std::function<Result<int>()> run;
};

// Each adds one subcommand to `app`, which sets `chosen` when it is given.
void AddRun(CLI::App& app, Command& chosen);
void AddChat(CLI::App& app, Command& chosen);
void AddRecipes(CLI::App& app, Command& chosen);
void AddInfo(CLI::App& app, Command& chosen);
void AddParity(CLI::App& app, Command& chosen);
void AddEval(CLI::App& app, Command& chosen);
void AddTune(CLI::App& app, Command& chosen);
void AddBench(CLI::App& app, Command& chosen);
void AddSim(CLI::App& app, Command& chosen);
// Of sim's own commands.
void AddSimTrain(CLI::App& sim, Command& chosen);
void AddSimSidecar(CLI::App& sim, Command& chosen);
void AddServe(CLI::App& app, Command& chosen);
void AddStore(CLI::App& app, Command& chosen);

// --json, --progress
struct OutputFlags {
  bool json = false;
  bool progress = false;
};
void AddOutputFlags(CLI::App& command, OutputFlags& flags);

// -m -t -tb -ngl --lora --lora-scaled --chat-template --rope-... --yarn-... --override-kv -hf
struct ModelFlags {
  std::string path;  // empty: the default model
  std::string hf;
  int threads = 0;  // 0, -1: physical cores
  int threads_batch = 0;
  bool fixed_threads = false;
  bool libllama_products = false;
  int gpu_layers = 0;
  bool mlock = false, no_mmap = false, check_tensors = false;
  std::vector<std::string> lora;
  std::vector<std::string> lora_scaled;  // file, strength, file, strength, ...
  std::string chat_template;
  std::string share_layers;  // a file: ReadLayerMap()
  std::array<std::string, kRopeSettings.size()> rope;  // of each setting, empty where it is not given
  std::vector<std::string> override_kv;

  Status Check() const;
  int num_threads() const;
  Result<ModelOverrides> Overrides() const;
};
// with_threads: false where a command has its own -t.
void AddModelFlags(CLI::App& command, ModelFlags& flags, bool with_threads = true);
// Shows progress and stops at Ctrl-C (kCancelled).
Result<std::shared_ptr<HostModel>> LoadModel(const ModelFlags& flags, const OutputFlags& output);

// -c -b --kv-budget --recipe -ctk -ctv --compress -fa -np
struct CacheFlags {
  int ctx = 0;
  int block = 0;
  std::string budget;
  std::string recipe = std::string(kDefaultRecipe);
  std::string type_k;
  std::string type_v;
  std::string flash_attention;
  int parallel = 0;
  std::string compress;  // empty: block, but after for recipes that can do nothing else
  std::string save_format = "exact";

  Status Check() const;
};
void AddCacheFlags(CLI::App& command, CacheFlags& flags);
// --save-format: of sessions, slots and what --store keeps.
void AddSaveFormat(CLI::App& command, std::string& format);
// Bytes of --kv-budget, or the default; 0: all of the context and what surrounds it.
Result<size_t> BudgetBytes(const CacheFlags& flags, const ModelInfo& info);
// --recipe auto: becomes the recipe for the share that budget_bytes (0: all) are of num_tokens' full cache, with a line
// on standard error that says what it loses. Others stay as they are.
Status SettleRecipe(CacheFlags& flags, const ModelInfo& info, int num_tokens, size_t budget_bytes);
// Fails only where Check() does, or when the context is longer than 2^31 bytes can say. The recipe is settled.
Result<EngineOptions> MakeEngineOptions(const CacheFlags& flags, const ModelFlags& model, const ModelInfo& info);
// Formats of keys and values by the names of -ctk and -ctv; none is f16. "comp" and "comp:F", in steps of at most a
// share F of a range, are for both.
Result<PageFormat> ParseFormats(std::string_view type_k, std::string_view type_v);
inline Result<PageFormat> ParseFormats(std::string_view both) { return ParseFormats(both, both); }

// {"share": [one number per layer]}: the layer whose cache each layer reads (`pith tune share` writes it).
Result<std::vector<int>> ReadLayerMap(const std::string& path);

// `count` pseudo-text tokens for measurements without a file.
Result<std::vector<int32_t>> FillerTokens(const HostModel& model, size_t count);

// A budget that ran full: what the user can do about it.
tl::unexpected<Error> WithAdvice(Error error);
// Prints one line on standard error ("pith: ...").
void Complain(const Error& error);
// One line on standard error where num_tokens reach positions that the model was not trained for.
void WarnBeyondTraining(const ModelInfo& info, size_t num_tokens);
// One JSON object and a newline on standard output.
void PrintJson(const std::string& dumped);

}  // namespace pith::cli

#endif  // PITH_CLI_COMMAND_H_
