// pith run: one generation, streamed.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <utility>

#include "cli/command.h"
#include "cli/generate.h"
#include "cli/terminal.h"

namespace pith::cli {
namespace {

constexpr const char* kExamples = R"(
A model with a chat template gets the prompt as its user's message, as in llama.cpp; --raw gives it the text as it is.

Examples:
  pith run -p "Why is the sky blue?"
  pith run -m model.gguf -f book.txt -c 32768 --kv-budget 64MiB -n 200
  pith run -m model.gguf --raw -p "Once upon a time" --temp 0 --json
  cat notes.txt | pith run -f - --kv-budget 20% --recipe snapkv:window=64
  pith run -f book.txt --raw --prompt-cache book.session --kv-budget 64MiB    # the second time it starts at once
)";

// What stays of a prompt that is compressed once, unless --keep says.
constexpr double kDefaultKeep = 0.3;

struct RunFlags {
  ModelFlags model;
  CacheFlags cache;
  SamplerFlags sampler;
  OutputFlags output;
  std::string prompt;
  std::string file;
  std::string system;
  int max_tokens = 256;
  double keep = 0;  // 0: not given
  bool raw = false;
  std::string prompt_cache;
  bool prompt_cache_all = false;
  bool prompt_cache_ro = false;
  bool has_prompt = false;
  bool has_file = false;
};

Status Check(const RunFlags& flags) {
  PITH_RETURN_IF_ERROR(flags.model.Check());
  PITH_RETURN_IF_ERROR(flags.cache.Check());
  PITH_RETURN_IF_ERROR(flags.sampler.Check());
  if (flags.has_prompt == flags.has_file) {
    return InvalidArgument(flags.has_prompt ? "give the prompt with -p or with -f, not with both"
                                            : "a prompt is missing: give a text with -p or a file with -f");
  }
  if (flags.max_tokens < -1) return InvalidArgument("-n takes a number of tokens, or -1 for no limit");
  if (flags.raw && !flags.system.empty()) {
    return InvalidArgument("--system needs the chat template that --raw turns off");
  }
  if (flags.keep != 0 && !(flags.keep > 0 && flags.keep <= 1)) return InvalidArgument("--keep takes a share between 0 and 1");
  PITH_ASSIGN_OR_RETURN(const Recipe recipe, ParseRecipe(flags.cache.recipe));
  const bool whole = NeedsWholePrompt(recipe) || flags.cache.compress == "after";
  const bool rereads = whole && recipe.policy->repeat() != nullptr;
  if (flags.keep != 0 && !rereads && flags.cache.compress != "after") {
    return InvalidArgument("--keep says what stays when the whole prompt is compressed: give it with --compress after");
  }
  if (rereads && !flags.prompt_cache.empty()) {
    return InvalidArgument(fmt::format("{} reads the prompt again, which a sequence from --prompt-cache does not allow", flags.cache.recipe));
  }
  if (flags.prompt_cache.empty() && (flags.prompt_cache_all || flags.prompt_cache_ro)) {
    return InvalidArgument("--prompt-cache-all and --prompt-cache-ro need --prompt-cache FILE");
  }
  if (flags.prompt_cache_all && flags.prompt_cache_ro) {
    return InvalidArgument("--prompt-cache-all writes the file that --prompt-cache-ro leaves alone: give one of them");
  }
  return {};
}

// The text as the model gets it.
Result<std::string> PromptText(const RunFlags& flags, const std::string& prompt, const HostModel& model,
                               bool& templated) {
  templated = !flags.raw && model.has_chat_template();
  if (!templated) {
    if (!flags.system.empty()) return Unsupported("this model has no chat template, so that --system has no place");
    return prompt;
  }
  std::vector<ChatMessage> messages;
  if (!flags.system.empty()) messages.push_back({"system", flags.system});
  messages.push_back({"user", prompt});
  return model.ApplyChatTemplate(messages, true);
}

struct Outcome {
  Generation generation;
  size_t prompt_tokens = 0;
  size_t cached_tokens = 0;  // of the prompt, restored from --prompt-cache
  double prefill_seconds = 0;
  bool templated = false;
  bool prefilled = false;
};

nlohmann::ordered_json ResultJson(const RunFlags& flags, const Outcome& outcome, const Engine& engine,
                                  const Recipe& recipe) {
  const Generation& generation = outcome.generation;
  const EngineTimes times = engine.times();
  const double total = std::max(times.total, 1e-9);
  return {{"text", generation.text},
          {"tokens", generation.tokens.size()},
          {"prompt_tokens", outcome.prompt_tokens},
          {"cached_tokens", outcome.cached_tokens},
          {"kv", KvJson(engine.stats(), recipe)},
          {"timings",
           {{"prefill_tps", outcome.prefilled && outcome.prefill_seconds > 0
                                ? static_cast<double>(outcome.prompt_tokens - outcome.cached_tokens) / outcome.prefill_seconds
                                : 0.0},
            {"decode_tps", generation.decode_tps()},
            {"ttft_ms", 1000 * (outcome.prefill_seconds + generation.first_token_seconds)},
            {"attention_share", times.attention / total},
            {"policy_share", times.policy / total}}},
          {"token_ids", generation.tokens},
          {"stop", StopReasonName(generation.stop)},
          {"chat_template", outcome.templated},
          {"seed", flags.sampler.options.seed},
          {"model", engine.model().info().description},
          {"rss_peak_bytes", PeakRssBytes()}};
}

Status Report(const RunFlags& flags, const Outcome& outcome, const Engine& engine, const Recipe& recipe) {
  if (flags.output.json) {
    PrintJson(ResultJson(flags, outcome, engine, recipe)
                  .dump(2, ' ', false, nlohmann::json::error_handler_t::replace));
    return {};
  }
  std::fputs("\n", stdout);
  std::fflush(stdout);
  const double prefill_tps =
      outcome.prefill_seconds > 0
          ? static_cast<double>(outcome.prompt_tokens - outcome.cached_tokens) / outcome.prefill_seconds
          : 0;
  if (outcome.cached_tokens > 0) {
    fmt::print(stderr, "{} of the prompt's tokens come from {}; ", outcome.cached_tokens, flags.prompt_cache);
  }
  fmt::print(stderr, "{} prompt tokens ({:.1f}/s), {} generated ({:.1f}/s, {}); {}\n", outcome.prompt_tokens,
             prefill_tps, outcome.generation.tokens.size(), outcome.generation.decode_tps(),
             StopReasonName(outcome.generation.stop), KvLine(engine.stats(), recipe));
  return {};
}

// A sequence to go on from: that of --prompt-cache as far as it is the prompt's beginning, else a new one.
Result<SequenceId> Begin(const RunFlags& flags, Engine& engine, const std::vector<int32_t>& tokens, Outcome& outcome) {
  if (flags.prompt_cache.empty()) return engine.NewSequence();
  const Result<RestoredSequence> restored = engine.Restore(flags.prompt_cache);
  if (!restored) {
    if (restored.error().code == ErrorCode::kNotFound) return engine.NewSequence();
    return tl::unexpected<Error>(restored.error());
  }
  if (!restored->note.text.empty()) {
    return InvalidArgument(fmt::format("the session {} holds a conversation of \"pith chat\"", flags.prompt_cache));
  }
  const std::vector<int32_t>& read = restored->note.tokens;
  const bool whole = read.size() == static_cast<size_t>(engine.num_tokens(restored->sequence));
  const bool prefix = whole && read.size() <= tokens.size() && std::equal(read.begin(), read.end(), tokens.begin());
  if (prefix && (read.size() < tokens.size() || restored->has_logits)) {
    outcome.cached_tokens = read.size();
    return restored->sequence;
  }
  fmt::print(stderr, "pith: the prompt does not begin with what {} holds: it is read anew.\n", flags.prompt_cache);
  engine.Free(restored->sequence);
  return engine.NewSequence();
}

Status SaveSequence(const RunFlags& flags, Engine& engine, SequenceId sequence, const std::vector<int32_t>& tokens,
                    const std::vector<int32_t>& generated) {
  SessionNote note{.tokens = tokens, .text = {}};
  const auto num_fed = static_cast<size_t>(engine.num_tokens(sequence)) - tokens.size();
  note.tokens.insert(note.tokens.end(), generated.begin(), generated.begin() + static_cast<std::ptrdiff_t>(num_fed));
  return engine.Save(sequence, flags.prompt_cache, note);
}

// Once the prompt is whole: what --compress after asks for.
Status CompressPrompt(const RunFlags& flags, Engine& engine, SequenceId sequence, const EngineOptions& options) {
  if (options.compress != CompressMode::kAfter) return {};
  const Result<double> kept = engine.Compress(sequence, options.recipe, flags.keep > 0 ? flags.keep : kDefaultKeep);
  if (!kept) return tl::unexpected<Error>(kept.error());
  return {};
}

// Prefill and generation; an interrupt is a result, not an error.
Status Produce(const RunFlags& flags, Engine& engine, const std::vector<int32_t>& tokens, const EngineOptions& options,
               HostSampler& sampler, Outcome& outcome) {
  const CancelOnInterrupt cancel(engine);
  PITH_ASSIGN_OR_RETURN(const SequenceId sequence, Begin(flags, engine, tokens, outcome));
  const std::span<const int32_t> unread = std::span(tokens).subspan(outcome.cached_tokens);
  const Stopwatch watch;
  Status status;
  if (!unread.empty()) {
    ProgressLine progress("reading the prompt", flags.output.progress);
    status = engine.Prefill(sequence, unread, false, nullptr, [&progress](size_t done, size_t total) {
      progress.Update(static_cast<double>(done), static_cast<double>(total));
      return !Interrupted();
    });
  }
  if (status) status = CompressPrompt(flags, engine, sequence, options);
  outcome.prefill_seconds = watch.seconds();
  if (!status) {
    if (!Interrupted()) return WithAdvice(status.error());
    outcome.generation.stop = StopReason::kInterrupted;
    return {};
  }
  outcome.prefilled = true;
  const bool saves = !flags.prompt_cache.empty() && !flags.prompt_cache_ro;
  if (saves && !flags.prompt_cache_all && !unread.empty()) PITH_RETURN_IF_ERROR(SaveSequence(flags, engine, sequence, tokens, {}));
  TextSink sink;
  if (!flags.output.json) {
    sink = [](std::string_view text) {
      std::fwrite(text.data(), 1, text.size(), stdout);
      std::fflush(stdout);
    };
  }
  Result<Generation> generation = Generate(engine, sequence, sampler, flags.max_tokens, options.num_ctx, sink);
  if (!generation) return WithAdvice(generation.error());
  outcome.generation = std::move(*generation);
  if (saves && flags.prompt_cache_all) return SaveSequence(flags, engine, sequence, tokens, outcome.generation.tokens);
  return {};
}

Result<int> Run(RunFlags& flags) {
  std::string prompt = flags.prompt;
  if (flags.has_file) {
    PITH_ASSIGN_OR_RETURN(prompt, ReadFile(flags.file));
  }
  PITH_RETURN_IF_ERROR(RequireUtf8(prompt, flags.has_file ? flags.file : "the prompt"));
  PITH_RETURN_IF_ERROR(RequireUtf8(flags.system, "the system prompt"));
  if (prompt.empty()) return InvalidArgument("the prompt is empty: there is nothing to go on from");

  PITH_ASSIGN_OR_RETURN(const std::shared_ptr<HostModel> model, LoadModel(flags.model, flags.output));
  Outcome outcome;
  PITH_ASSIGN_OR_RETURN(const std::string text, PromptText(flags, prompt, *model, outcome.templated));
  PITH_ASSIGN_OR_RETURN(const std::vector<int32_t> tokens, TokenizePrompt(*model, text));
  if (tokens.empty()) return InvalidArgument("the prompt gives no tokens: there is nothing to go on from");
  outcome.prompt_tokens = tokens.size();
  const SamplerOptions sampling = flags.sampler.Make();
  PITH_ASSIGN_OR_RETURN(EngineOptions options, MakeEngineOptions(flags.cache, flags.model, model->info()));
  options.seed = sampling.seed;
  if (tokens.size() >= static_cast<size_t>(options.num_ctx)) {
    return InvalidArgument(
        fmt::format("the prompt has {} tokens, and the context holds {}: give a larger one with -c", tokens.size(),
                    options.num_ctx));
  }
  PITH_ASSIGN_OR_RETURN(const std::unique_ptr<Engine> engine, Engine::Create(model, options));
  const size_t wanted = flags.max_tokens < 0 ? SIZE_MAX : tokens.size() + static_cast<size_t>(flags.max_tokens);
  WarnBeyondTraining(model->info(), std::min(wanted, static_cast<size_t>(options.num_ctx)));
  HostSampler sampler(*model, sampling);
  PITH_RETURN_IF_ERROR(Produce(flags, *engine, tokens, options, sampler, outcome));
  PITH_RETURN_IF_ERROR(Report(flags, outcome, *engine, options.recipe));
  return outcome.generation.stop == StopReason::kInterrupted ? kExitInterrupted : kExitOk;
}

}  // namespace

void AddRun(CLI::App& app, Command& chosen) {
  auto flags = std::make_shared<RunFlags>();
  CLI::App* command = app.add_subcommand("run", "Generate once from a prompt, streaming the text");
  command->footer(kExamples);
  CLI::Option* prompt = command->add_option("-p,--prompt", flags->prompt, "Prompt")->type_name("TEXT");
  CLI::Option* file =
      command->add_option("-f,--file", flags->file, "Prompt from a file, or from standard input for -")
          ->type_name("FILE");
  command->add_option("-n,--predict,--n-predict", flags->max_tokens,
                      "Tokens to generate (default 256; -1: until the model ends or the context is full)")
      ->type_name("N");
  command->add_option("--keep", flags->keep,
                      "Share of the prompt's entries that stays with --compress after (default 0.3)")
      ->type_name("SHARE");
  command->add_option("--system,--system-prompt", flags->system, "System message")->type_name("TEXT");
  command->add_option("--prompt-cache", flags->prompt_cache,
                      "File that keeps the read prompt with its cache: written after reading, and taken up where a later "
                      "prompt begins with it (same model, recipe and format)")
      ->type_name("FILE");
  command->add_flag("--prompt-cache-all", flags->prompt_cache_all, "Keep the generated text in that file too");
  command->add_flag("--prompt-cache-ro", flags->prompt_cache_ro, "Use that file without writing it");
  command->add_flag("--raw,--no-chat", flags->raw, "No chat template: the model gets the text as it is");
  AddModelFlags(*command, flags->model);
  AddCacheFlags(*command, flags->cache);
  AddSamplerFlags(*command, flags->sampler);
  AddOutputFlags(*command, flags->output);
  command->callback([flags, prompt, file, &chosen] {
    flags->has_prompt = prompt->count() > 0;
    flags->has_file = file->count() > 0;
    chosen.check = [flags] { return Check(*flags); };
    chosen.run = [flags] { return Run(*flags); };
  });
}

}  // namespace pith::cli
