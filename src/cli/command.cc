#include "cli/command.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <iterator>
#include <limits>
#include <optional>
#include <random>
#include <utility>

#include "base/parse_number.h"
#include "base/paths.h"
#include "cli/auto_recipe.h"
#include "cli/terminal.h"
#include "kernels/page_layout.h"
#include "policy/learn/layer_budgets.h"
#include "policy/storage.h"

namespace pith::cli {

void AddOutputFlags(CLI::App& command, OutputFlags& flags) {
  AddFlag(command, "--json", flags.json, "Print one JSON object on standard output and nothing else");
  AddFlag(command, "--progress", flags.progress, "Show progress even where standard error is no terminal");
}

void AddModelFlags(CLI::App& command, ModelFlags& flags, bool with_threads) {
  AddOption(command, "-m,--model", flags.path, "GGUF file (default: SmolLM2-135M-Instruct, which ships with pith)",
            "FILE");
  if (with_threads) {
    AddNumber(command, "-t,--threads", flags.threads, -1, 1024, "Threads (default: this machine's physical cores)",
              "N");
    AddNumber(command, "--threads-batch", flags.threads_batch, -1, 1024,
              "-tb: accepted, but prompts are read on the threads of -t", "N");
    AddFlag(command, "--fixed-threads", flags.fixed_threads,
            "Compute on all threads even while other processes take their cores");
  }
  AddFlag(command, "--libllama-products", flags.libllama_products,
          "Leave products with quantised weights to libllama (slower; prompts in 8 bits instead of float32)");
  AddNumber(command, "--gpu-layers,--n-gpu-layers", flags.gpu_layers, 0, 100000,
            "-ngl: layers on the GPU, where libllama was built with one (default 0)", "N");
  AddFlag(command, "--mlock", flags.mlock, "Keep the weights in memory, so that the system does not move them to disk");
  AddFlag(command, "--no-mmap", flags.no_mmap, "Read the weights into memory instead of mapping the file");
  AddFlag(command, "--check-tensors", flags.check_tensors,
          "Look for weights that are no numbers while the model is loaded");
  AddOption(command, "--lora", flags.lora, "LoRA adapter as GGUF; may be given more than once", "FILE");
  AddTuple(command, "--lora-scaled", flags.lora_scaled, 2,
           "LoRA adapter with its strength; may be given more than once", "FILE SCALE");
  AddOption(command, "--chat-template", flags.chat_template,
            "Chat template in place of the file's: a name that libllama knows (chatml, llama3, gemma, ...) or Jinja",
            "NAME|TEXT");
  AddOption(command, "--share-layers", flags.share_layers,
            "Layers that read another layer's cache, from a file of \"pith tune share\"", "FILE");
  for (size_t i = 0; i < kRopeSettings.size(); ++i) {
    AddOption(command, fmt::format("--{}", kRopeSettings[i].name), flags.rope[i], kRopeSettings[i].help,
              kRopeSettings[i].type);
  }
  AddOption(command, "--override-kv", flags.override_kv,
            "Model metadata in place of the file's, of type int, float, bool or str; may be given more than once. "
            "Example: --override-kv tokenizer.ggml.add_bos_token=bool:false",
            "KEY=TYPE:VALUE,...");
  Hide(AddOption(command, "--hf-repo", flags.hf, "", "TEXT"));
}

namespace {

constexpr std::string_view kCoded = "comp";
bool IsCodedType(std::string_view type) { return type == kCoded || type.starts_with("comp:"); }

Result<KvFormat> ParseFormat(std::string_view text) {
  if (text.empty()) return KvFormat::kF16;
  if (const std::optional<KvFormat> format = FindKvFormat(text)) return *format;
  return InvalidArgument(fmt::format("\"{}\" is no format of the KV cache; choose {} or comp", text,
                                     ListKvFormats(&KvFormatInfo::flag, ", ")));
}

}  // namespace

Status ModelFlags::Check() const {
  if (!hf.empty()) {
    return InvalidArgument(
        fmt::format("pith downloads no models: fetch a GGUF file of {} yourself and give its path with -m", hf));
  }
  for (size_t i = 0; i < lora_scaled.size(); i += 2) {
    if (i + 1 == lora_scaled.size() || !ParseNumber<float>(lora_scaled[i + 1])) {
      return InvalidArgument("--lora-scaled takes a file and a number, its strength");
    }
  }
  PITH_RETURN_IF_ERROR(Overrides());
  return {};
}

Result<ModelOverrides> ModelFlags::Overrides() const {
  ModelOverrides all;
  for (size_t i = 0; i < kRopeSettings.size(); ++i) {
    if (rope[i].empty()) continue;
    const Status set = SetRope(kRopeSettings[i].name, rope[i], all.rope);
    if (!set) return InvalidArgument("--" + set.error().message);
  }
  for (const std::string& text : override_kv) {
    auto parsed = ParseMetadataOverrides(text);
    if (!parsed) return InvalidArgument("--" + parsed.error().message);
    std::ranges::move(*parsed, std::back_inserter(all.metadata));
  }
  return all;
}

Result<std::vector<int>> ReadLayerMap(const std::string& path) {
  PITH_ASSIGN_OR_RETURN(const std::vector<double> numbers, ReadLayerNumbers(path, "share", 0));
  std::vector<int> map;
  for (const double number : numbers) {
    map.push_back(static_cast<int>(std::min(number, 1e6)));
    if (map.back() != number) return InvalidArgument(fmt::format("{}: {} is no layer", path, number));
  }
  return map;
}

int ModelFlags::num_threads() const { return threads > 0 ? threads : PhysicalCores(); }

Result<std::shared_ptr<HostModel>> LoadModel(const ModelFlags& flags, const OutputFlags& output) {
  const std::string path = flags.path.empty() ? DefaultModelPath() : flags.path;
  ProgressLine progress("loading", output.progress);
  HostModelOptions options;
  options.num_gpu_layers = flags.gpu_layers;
  options.num_threads = flags.num_threads();
  options.own_products = !flags.libllama_products;
  options.map_file = !flags.no_mmap;
  options.lock_memory = flags.mlock;
  options.check_weights = flags.check_tensors;
  for (const std::string& lora : flags.lora) {
    options.lora_paths.push_back(lora);
    options.lora_scales.push_back(1);
  }
  for (size_t i = 0; i + 1 < flags.lora_scaled.size(); i += 2) {
    options.lora_paths.push_back(flags.lora_scaled[i]);
    options.lora_scales.push_back(ParseNumber<float>(flags.lora_scaled[i + 1]).value_or(1));
  }
  options.chat_template = flags.chat_template;
  PITH_ASSIGN_OR_RETURN(options.overrides, flags.Overrides());
  if (!flags.share_layers.empty()) {
    PITH_ASSIGN_OR_RETURN(options.layer_map, ReadLayerMap(flags.share_layers));
  }
  if (flags.threads_batch > 0 && flags.threads_batch != flags.num_threads()) {
    Note("pith: prompts are read on the threads of -t, so that -tb changes nothing.\n");
  }
  if (flags.gpu_layers > 0) {
    Note("pith: {}.\n", HostModel::SupportsGpu()
                            ? "weights go to the GPU as far as -ngl says, attention and the KV cache stay on the CPU"
                            : "libllama was built without a GPU, so that -ngl changes nothing");
  }
  options.progress = [&progress](float share) {
    progress.Update(static_cast<double>(share), 1);
    return !Interrupted();
  };
  auto model = HostModel::Load(path, options);
  if (!model && Interrupted()) return Cancelled("stopped while the model was loading");
  if (std::error_code error; !model && flags.path.empty() && !std::filesystem::exists(path, error)) {
    return NotFound(
        fmt::format("the default model is not at {}: run scripts/fetch_model.sh, or name a GGUF file with -m", path));
  }
  return model;
}

void AddCacheFlags(CLI::App& command, CacheFlags& flags) {
  AddNumber(command, "-c,--ctx-size", flags.ctx, 0, std::numeric_limits<int>::max(),
            "Context in tokens: positions a sequence may reach (default, and 0: what "
            "the model was trained for)",
            "N");
  AddOption(command, "--kv-budget", flags.budget,
            "Memory for the KV cache with everything around it, never exceeded, not even during prefill: a "
            "size such as 64MiB, or a percentage of the full f16 cache of the context -c. Default: the full "
            "cache of the context or 256MiB, whichever is smaller, so that short contexts lose nothing and "
            "long ones do not fill the machine",
            "SIZE|PERCENT");
  AddOption(
      command, "--recipe", flags.recipe,
      fmt::format(
          "What stays when the budget is full; \"pith recipes\" lists them (default {}); auto[:FILE] chooses what lost "
          "least in so many bytes when \"pith tune recipe\" measured",
          kDefaultRecipe),
      "RECIPE");
  AddNumber(command, "-b,--batch-size,--ubatch-size", flags.block, 1, 65536,
            "-ub: tokens read at once; the budget pays for this block buffer too (default: chosen from the "
            "budget, up to 512)",
            "N");
  AddOption(command, "--cache-type-k", flags.type_k,
            fmt::format("-ctk: format of keys, {} (default f16), or with the same for values comp or comp:F, Huffman "
                        "codes of steps of at most a share F of a range",
                        ListKvFormats(&KvFormatInfo::flag, ", ")),
            "TYPE");
  AddOption(command, "--cache-type-v", flags.type_v, "-ctv: format of values, likewise", "TYPE");
  AddChoice(command, "--compress", flags.compress, {"block", "after"},
            "block: evict after every block, so that the peak is the budget (default but for recipes that "
            "read the prompt again, such as kvzip); after: read the whole prompt, for which the budget must have "
            "room, then compress once",
            "WHEN");
  MayBeBare(
      AddChoice(command, "--flash-attn", flags.flash_attention, {"on", "off", "auto", "1", "0", "enabled", "disabled"},
                "-fa: on, off or auto; accepted, but attention is always pith's own, which reads the cache once",
                "WHEN"),
      "on");
  AddNumber(command, "--parallel", flags.parallel, -1, 1024, "-np: accepted, but a command serves one conversation",
            "N");
}

void AddSaveFormat(CLI::App& command, std::string& format) {
  AddOption(
      command, "--save-format", format,
      "How saved entries are written: exact (default), or comp[:ek=F,ev=F,unit=channel|head,recent=N], in a third "
      "of the bytes or less, with an error of at most half of F of the range of what is coded together",
      "FORMAT");
}

Result<PageFormat> ParseFormats(std::string_view type_k, std::string_view type_v) {
  if (!IsCodedType(type_k) && !IsCodedType(type_v)) {
    PITH_ASSIGN_OR_RETURN(const KvFormat key, ParseFormat(type_k));
    PITH_ASSIGN_OR_RETURN(const KvFormat value, ParseFormat(type_v));
    return PageFormat(key, value);
  }
  if (!IsCodedType(type_k) || !IsCodedType(type_v)) {
    return InvalidArgument("keys and values are coded together: give both -ctk comp and -ctv comp, or neither");
  }
  std::string shares;
  for (const auto& [name, type] : {std::pair("ek", type_k), std::pair("ev", type_v)}) {
    if (type.size() <= kCoded.size()) continue;
    const std::string_view share = type.substr(kCoded.size() + 1);
    // One share, so that not even a second name hides in it.
    if (share.empty() || share.find_first_not_of("0123456789.e-/") != std::string_view::npos) {
      return InvalidArgument(
          fmt::format("\"{}\" is no format of the KV cache: comp:F takes a share of a range, as in "
                      "comp:0.05",
                      type));
    }
    shares += fmt::format("{}{}={}", shares.empty() ? ":" : ",", name, share);
  }
  PITH_ASSIGN_OR_RETURN(const Storage storage, ParseStorage(std::string(kCoded) + shares));
  return storage.fixed;
}

Status CacheFlags::Check() const {
  PITH_RETURN_IF_ERROR(ParseFormats(type_k, type_v));
  PITH_RETURN_IF_ERROR(ParseCodedForm(save_format));
  if (!budget.empty()) PITH_RETURN_IF_ERROR(ParseSizeOrShare(budget));
  if (IsAutoRecipe(recipe)) {
    PITH_RETURN_IF_ERROR(ReadRecipeCurve(recipe));
  } else {
    PITH_RETURN_IF_ERROR(ParseRecipe(recipe));
  }
  return {};
}

Result<size_t> BudgetBytes(const CacheFlags& flags, const ModelInfo& info) {
  const size_t full = FullCacheBytes(info, ContextOf(info, flags.ctx));
  if (flags.budget.empty()) return full <= kDefaultBudgetBytes ? 0 : kDefaultBudgetBytes;
  PITH_ASSIGN_OR_RETURN(const SizeOrShare budget, ParseSizeOrShare(flags.budget));
  const size_t bytes = budget.share > 0 ? static_cast<size_t>(budget.share * static_cast<double>(full)) : budget.bytes;
  return std::max<size_t>(bytes, 1);
}

Status SettleRecipe(CacheFlags& flags, const ModelInfo& info, int num_tokens, size_t budget_bytes) {
  if (!IsAutoRecipe(flags.recipe)) return {};
  PITH_ASSIGN_OR_RETURN(const RecipeCurve curve, ReadRecipeCurve(flags.recipe));
  const size_t full = FullCacheBytes(info, num_tokens);
  const double share = budget_bytes == 0 ? 1 : static_cast<double>(budget_bytes) / static_cast<double>(full);
  if (share >= 1) {
    flags.recipe = kDefaultRecipe;
    Note("pith: auto: {} tokens take {} in full, which the budget holds: {}.\n", num_tokens, FormatBytes(full),
         flags.recipe);
    return {};
  }
  const MeasuredRecipe& row = ChooseRecipe(curve, share);
  flags.recipe = row.recipe;
  flags.compress = curve.compress;
  Note(
      "pith: auto: {} are {:.1f}% of what {} tokens take in full: {}. At {:.0f}% it had a KL of {:.3g} and "
      "{:.0f}% of the answers right, where the full cache has {:.0f}% ({}{}).\n",
      FormatBytes(budget_bytes), 100 * share, num_tokens, row.recipe, 100 * row.share, row.kl, 100 * row.accuracy,
      100 * row.full_accuracy, curve.model, share < row.share ? "; nothing less was measured" : "");
  return {};
}

Result<EngineOptions> MakeEngineOptions(const CacheFlags& flags, const ModelFlags& model, const ModelInfo& info) {
  if (flags.flash_attention == "off" || flags.flash_attention == "0" || flags.flash_attention == "disabled") {
    Note("pith: attention is pith's own and reads the cache once, so that -fa off changes nothing.\n");
  }
  if (flags.parallel > 1) Note("pith: a command serves one conversation, so that -np changes nothing.\n");
  EngineOptions options;
  options.num_ctx = ContextOf(info, flags.ctx);
  options.block_tokens = flags.block;
  options.num_threads = model.num_threads();
  options.adapt_threads = !model.fixed_threads;
  PITH_ASSIGN_OR_RETURN(options.format, ParseFormats(flags.type_k, flags.type_v));
  PITH_ASSIGN_OR_RETURN(options.saved, ParseCodedForm(flags.save_format));
  PITH_ASSIGN_OR_RETURN(options.recipe, ParseRecipe(flags.recipe));
  const bool after = flags.compress.empty() ? NeedsWholePrompt(options.recipe) : flags.compress == "after";
  options.compress = after ? CompressMode::kAfter : CompressMode::kBlock;
  PITH_ASSIGN_OR_RETURN(options.budget_bytes, BudgetBytes(flags, info));
  return options;
}

Result<std::vector<int32_t>> FillerTokens(const HostModel& model, size_t count) {
  // Sentences drawn from a few words: text to a tokenizer, never the same twice.
  static constexpr std::string_view kWords[] = {
      "the",  "river", "engine", "of",     "a",      "small", "town",   "carried", "letters", "and",    "machines",
      "over", "every", "bridge", "while",  "people", "spoke", "about",  "weather", "numbers", "gardens", "in",
      "long", "quiet", "winter", "before", "trains", "came",  "through", "with",   "music",   "stones"};
  std::mt19937 random(1);  // NOLINT: a fixed seed is meant
  std::string text;
  size_t num_words = 0;
  std::vector<int32_t> tokens;
  for (size_t words = count + 16; tokens.size() < count; words *= 2) {
    while (num_words < words) {
      for (size_t i = 6 + random() % 12; i > 0; --i, ++num_words) {
        text += kWords[random() % std::size(kWords)];
        text += i == 1 ? ". " : " ";
      }
    }
    PITH_ASSIGN_OR_RETURN(tokens, model.Tokenize(text, true, false));
    if (tokens.empty()) return Unsupported("this model's tokenizer gives no tokens");
  }
  tokens.resize(count);
  return tokens;
}

tl::unexpected<Error> WithAdvice(Error error) {
  if (error.code == ErrorCode::kOutOfBudget) {
    while (error.message.ends_with('.')) error.message.pop_back();
    error.message += ": raise --kv-budget, or choose a --recipe that drops entries, with --compress block";
  }
  return tl::unexpected<Error>(std::move(error));
}

void Complain(const Error& error) {
  std::string message = error.message.empty() ? "something failed and gave no reason" : error.message;
  std::replace(message.begin(), message.end(), '\n', ' ');
  while (message.ends_with(' ') || message.ends_with('.')) message.pop_back();
  Note("pith: {}.\n", message);
}

void WarnBeyondTraining(const ModelInfo& info, size_t num_tokens) {
  if (info.trained_ctx <= 0 || num_tokens <= static_cast<size_t>(info.trained_ctx)) return;
  Note(
      "pith: warning: {} tokens reach beyond the {} positions that this model was trained for; what it "
      "writes there may be nonsense.\n",
      num_tokens, info.trained_ctx);
}

void PrintJson(const std::string& dumped) {
  fmt::print("{}\n", dumped);
  std::fflush(stdout);
}

}  // namespace pith::cli
