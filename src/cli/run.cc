// pith run: one generation, streamed.
#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <utility>

#include "base/json_text.h"
#include "base/stopwatch.h"
#include "cli/auto_recipe.h"
#include "cli/command.h"
#include "cli/generate.h"
#include "cli/sampler_flags.h"
#include "cli/store_flags.h"
#include "cli/terminal.h"
#include "lab/machine.h"
#include "session/conversation.h"
#include "session/generator.h"
#include "session/stored_reading.h"
#include "session/token_sequence.h"

namespace pith::cli {
namespace {

constexpr const char* kRunExamples = R"(
A model with a chat template gets the prompt as its user's message, as in llama.cpp; --raw gives it the text as it is.

Examples:
  pith run -p "Why is the sky blue?"
  pith run -m model.gguf -f book.txt -c 32768 --kv-budget 64MiB -n 200
  pith run -m model.gguf --raw -p "Once upon a time" --temp 0 --json
  pith run --messages talk.json --recipe flowkv --json    # [{"role": "user", "content": "..."}, ...], turn by turn
  cat notes.txt | pith run -f - --kv-budget 20% --recipe snapkv:window=64
  pith run -f book.txt --raw --prompt-cache book.session --kv-budget 64MiB    # the second time it starts at once
  pith run -f book.txt --raw --store ~/.cache/pith/store    # and every text that begins like one that was read
)";

// What stays of a prompt that is compressed once, unless --keep says.
constexpr double kDefaultKeep = 0.3;

struct RunFlags {
  ModelFlags model;
  CacheFlags cache;
  SamplerFlags sampler;
  PromptFlags text;
  OutputFlags output;
  std::string prompt;
  std::string file;
  std::string messages_file;
  std::vector<ChatMessage> messages;  // of that file
  int max_tokens = 256;
  int logprobs = -1;  // of how many tokens beside the chosen one; -1: none
  double keep = 0;  // 0: not given
  bool raw = false;
  StoreFlags store;
  std::string prompt_cache;
  bool prompt_cache_all = false;
  bool prompt_cache_ro = false;
  bool has_prompt = false;
  bool has_file = false;
};

// What depends on the recipe; with --recipe auto it is known once the prompt is.
Status CheckRecipe(const RunFlags& flags) {
  PITH_RETURN_IF_ERROR(flags.store.Check(flags.cache.recipe));
  PITH_ASSIGN_OR_RETURN(const Recipe recipe, ParseRecipe(flags.cache.recipe));
  const bool whole = NeedsWholePrompt(recipe) || flags.cache.compress == "after";
  const bool rereads = whole && recipe.policy->repeat() != nullptr;
  if (flags.keep != 0 && !whole) {
    return InvalidArgument("--keep says what stays when the whole prompt is compressed: give it with --compress after");
  }
  if (rereads && !flags.prompt_cache.empty()) {
    return InvalidArgument(fmt::format("{} reads the prompt again, which a sequence from --prompt-cache does not allow",
                                       flags.cache.recipe));
  }
  return {};
}

Status CheckRun(const RunFlags& flags) {
  PITH_RETURN_IF_ERROR(flags.model.Check());
  PITH_RETURN_IF_ERROR(flags.cache.Check());
  PITH_RETURN_IF_ERROR(flags.sampler.Check());
  const int num_prompts = (flags.has_prompt ? 1 : 0) + (flags.has_file ? 1 : 0) + (flags.messages_file.empty() ? 0 : 1);
  if (num_prompts != 1) {
    return InvalidArgument(num_prompts > 1 ? "give the prompt with -p, with -f or with --messages, not with several"
                                           : "a prompt is missing: give a text with -p or a file with -f");
  }
  if (!flags.messages_file.empty() && (flags.raw || !flags.prompt_cache.empty() || flags.store.given() ||
                                       flags.cache.compress == "after")) {
    return InvalidArgument(
        "--messages are read turn by turn: leave --raw, --prompt-cache, --store and --compress after out");
  }
  if (flags.logprobs >= 0 && !flags.output.json) return InvalidArgument("--logprobs goes into the result of --json");
  if (flags.max_tokens < -1) return InvalidArgument("-n takes a number of tokens, or -1 for no limit");
  if (flags.raw && !(flags.text.system.empty() && flags.text.system_file.empty())) {
    return InvalidArgument("--system needs the chat template that --raw turns off");
  }
  if (flags.keep != 0 && !(flags.keep > 0 && flags.keep <= 1))
    return InvalidArgument("--keep takes a share between 0 and 1");
  if (flags.store.given() && !flags.prompt_cache.empty()) {
    return InvalidArgument("--store and --prompt-cache both keep what was read: give one of them");
  }
  if (flags.prompt_cache.empty() && (flags.prompt_cache_all || flags.prompt_cache_ro)) {
    return InvalidArgument("--prompt-cache-all and --prompt-cache-ro need --prompt-cache FILE");
  }
  if (flags.prompt_cache_all && flags.prompt_cache_ro) {
    return InvalidArgument("--prompt-cache-all writes the file that --prompt-cache-ro leaves alone: give one of them");
  }
  return IsAutoRecipe(flags.cache.recipe) ? Status() : CheckRecipe(flags);
}

// A conversation of which the last message is to be answered. The system message goes to `flags.text`.
Status ReadMessages(RunFlags& flags) {
  PITH_ASSIGN_OR_RETURN(const std::string text, ReadFile(flags.messages_file));
  PITH_RETURN_IF_ERROR(RequireUtf8(text, flags.messages_file));
  PITH_ASSIGN_OR_RETURN(flags.messages, ParseMessages(text, flags.messages_file));
  if (flags.messages.back().role != "user") {
    return InvalidArgument(fmt::format("the last message of {} is not the user's", flags.messages_file));
  }
  if (flags.messages.front().role != "system") return {};
  if (!flags.text.system.empty())
    return InvalidArgument("--system and a system message in --messages exclude one another");
  flags.text.system = flags.messages.front().content;
  return {};
}

// Queues the prompt as the model gets it.
Status Say(const RunFlags& flags, const std::string& prompt, const HostModel& model, Conversation& conversation,
           bool& templated) {
  templated = !flags.raw && model.has_chat_template();
  if (templated) return conversation.Say(prompt);
  if (!flags.text.system.empty()) return Unsupported("this model has no chat template, so that --system has no place");
  return conversation.Append(prompt);
}

struct Outcome {
  GenerationResult generation;
  size_t prompt_tokens = 0;
  size_t pinned_tokens = 0;  // of the prompt: the system message and what stands before it
  size_t cached_tokens = 0;  // of the prompt, restored from --prompt-cache
  double before_seconds = 0;  // of messages before the last one
  double prefill_seconds = 0;
  std::optional<StoredPrefixes::Taken> stored;  // what --store gave
  uint32_t seed = 0;
  Status saved;  // of --prompt-cache: the answer is given even so
  bool templated = false;
  bool prefilled = false;
  bool was_compressed = false;  // what came from --prompt-cache, as the flags say

  double load_seconds() const { return stored ? stored->load_seconds : 0; }
};

// [{"token", "logprob", "top": [{"token", "logprob"}]}], of each token of the text
nlohmann::ordered_json LogprobsJson(const std::vector<TokenLogprobs>& logprobs) {
  const auto entry = [](const TokenLogprob& one) {
    return nlohmann::ordered_json{{"token", one.token}, {"logprob", one.logprob}};
  };
  auto list = nlohmann::ordered_json::array();
  for (const TokenLogprobs& token : logprobs) {
    nlohmann::ordered_json json = entry(token.chosen);
    json["top"] = nlohmann::ordered_json::array();
    for (const TokenLogprob& other : token.top) json["top"].push_back(entry(other));
    list.push_back(std::move(json));
  }
  return list;
}

// Of the engine, whose one sequence may have been converted.
KvStats KvOf(const EngineSequence& sequence) {
  KvStats stats = sequence.engine().stats();
  stats.format = sequence.engine().stats(sequence.id()).format;
  return stats;
}

nlohmann::ordered_json ResultJson(const Outcome& outcome, const EngineSequence& sequence, const Recipe& recipe) {
  const Engine& engine = sequence.engine();
  const GenerationResult& generation = outcome.generation;
  const EngineTimes times = engine.times();
  const double total = std::max(times.total, 1e-9);
  return {{"text", generation.text},
          {"tokens", generation.tokens.size()},
          {"prompt_tokens", outcome.prompt_tokens},
          {"cached_tokens", outcome.cached_tokens},
          {"cached_in", outcome.stored ? store::TierName(outcome.stored->tier) : ""},
          {"pinned_tokens", outcome.pinned_tokens},
          {"kv", KvJson(KvOf(sequence), recipe)},
          {"timings",
           {{"prefill_tps",
             outcome.prefilled && outcome.prefill_seconds > 0
                 ? static_cast<double>(outcome.prompt_tokens - outcome.cached_tokens) / outcome.prefill_seconds
                 : 0.0},
            {"decode_tps", generation.decode_tps()},
            {"ttft_ms", 1000 * (outcome.load_seconds() + outcome.prefill_seconds + generation.first_token_seconds)},
            {"attention_share", times.attention / total},
            {"policy_share", times.policy / total}}},
          {"token_ids", generation.tokens},
          {"stop", StopReasonName(generation.stop)},
          {"chat_template", outcome.templated},
          {"seed", outcome.seed},
          {"model", engine.model().info().description},
          {"rss_peak_bytes", PeakRssBytes()}};
}

Status Report(const RunFlags& flags, const Outcome& outcome, const EngineSequence& sequence, const Recipe& recipe) {
  if (flags.output.json) {
    nlohmann::ordered_json json = ResultJson(outcome, sequence, recipe);
    if (flags.logprobs >= 0) json["logprobs"] = LogprobsJson(outcome.generation.logprobs);
    PrintJson(JsonText(json, 2));
    return {};
  }
  std::fputs("\n", stdout);
  std::fflush(stdout);
  const double prefill_tps =
      outcome.prefill_seconds > 0
          ? static_cast<double>(outcome.prompt_tokens - outcome.cached_tokens) / outcome.prefill_seconds
          : 0;
  if (outcome.stored) {
    Note("{} of the prompt's tokens come from the store ({}, {:.0f} ms); ", outcome.cached_tokens,
         store::TierName(outcome.stored->tier), 1000 * outcome.load_seconds());
  } else if (outcome.cached_tokens > 0) {
    Note("{} of the prompt's tokens come from {}; ", outcome.cached_tokens, flags.prompt_cache);
  }
  Note("{} prompt tokens ({:.1f}/s), {} generated ({:.1f}/s, {}); {}\n", outcome.prompt_tokens, prefill_tps,
       outcome.generation.tokens.size(), outcome.generation.decode_tps(), StopReasonName(outcome.generation.stop),
       KvLine(KvOf(sequence), recipe));
  return {};
}

double ShareThatStays(const RunFlags& flags) { return flags.keep > 0 ? flags.keep : kDefaultKeep; }

// How --compress after has compressed what it wrote; empty: nothing has.
std::string CompressedAs(const RunFlags& flags, const EngineOptions& options) {
  return options.compress == CompressMode::kAfter ? fmt::format("keep={}", ShareThatStays(flags)) : "";
}

// What --prompt-cache holds, as far as it is the prompt's beginning: that need not be read again.
Status TakeUp(const RunFlags& flags, const std::vector<int32_t>& tokens, const EngineOptions& options,
              EngineSequence& sequence, Outcome& outcome) {
  if (flags.prompt_cache.empty()) return {};
  PITH_ASSIGN_OR_RETURN(const auto restored, sequence.Restore(flags.prompt_cache));
  if (!restored) return {};
  const std::string& compressed = restored->note.text;
  if (!compressed.empty() && !compressed.starts_with("keep=")) {
    return InvalidArgument(fmt::format("the session {} holds a conversation of \"pith chat\"", flags.prompt_cache));
  }
  const std::vector<int32_t>& read = restored->note.tokens;
  const bool whole = read.size() == static_cast<size_t>(sequence.num_tokens());
  const auto common = static_cast<size_t>(std::ranges::mismatch(read, tokens).in1 - read.begin());
  const bool is_fit = compressed.empty() || compressed == CompressedAs(flags, options);
  if (whole && is_fit && common == tokens.size() && common == read.size() && restored->has_logits) {
    outcome.cached_tokens = common;
    outcome.was_compressed = !compressed.empty();
    return {};
  }
  // At least one token is read, for its logits. What stayed of one prompt is not what stays of another, or at another
  // share.
  const size_t shared = whole && compressed.empty() ? std::min(common, tokens.size() - 1) : 0;
  PITH_ASSIGN_OR_RETURN(const int kept, sequence.GoBack(static_cast<int>(shared)));
  outcome.cached_tokens = static_cast<size_t>(kept);
  if (kept > 0) return {};
  Note("pith: nothing of what {} holds serves as this prompt's beginning: it is read anew.\n", flags.prompt_cache);
  return {};
}

Status SaveSequence(const RunFlags& flags, const EngineOptions& options, const EngineSequence& sequence,
                    const std::vector<int32_t>& tokens, const std::vector<int32_t>& generated) {
  SessionNote note{.tokens = tokens, .text = CompressedAs(flags, options)};
  const auto num_fed = static_cast<size_t>(sequence.num_tokens()) - tokens.size();
  note.tokens.insert(note.tokens.end(), generated.begin(), generated.begin() + static_cast<std::ptrdiff_t>(num_fed));
  return sequence.Save(flags.prompt_cache, note);
}

// Once the prompt is whole: what --compress after asks for.
Status CompressPrompt(const RunFlags& flags, const EngineSequence& sequence, const EngineOptions& options) {
  if (options.compress != CompressMode::kAfter) return {};
  const Result<double> kept = sequence.engine().Compress(sequence.id(), options.recipe, ShareThatStays(flags));
  if (!kept) return tl::unexpected<Error>(kept.error());
  return {};
}

// All messages but the last, turn by turn; that is queued.
Status ReadBefore(const RunFlags& flags, EngineSequence& sequence, Conversation& conversation, Outcome& outcome) {
  PITH_RETURN_IF_ERROR(conversation.Take({flags.messages.begin(), flags.messages.end() - 1}));
  const Stopwatch watch;
  ProgressLine progress("reading the conversation", flags.output.progress);
  PITH_RETURN_IF_ERROR(conversation.Replay(sequence, [&progress](size_t done, size_t total) {
    progress.Update(static_cast<double>(done), static_cast<double>(total));
    return !Interrupted();
  }));
  PITH_RETURN_IF_ERROR(conversation.Say(flags.messages.back().content));
  outcome.prompt_tokens = static_cast<size_t>(sequence.num_tokens()) + conversation.pending().size();
  outcome.before_seconds = watch.seconds();
  return {};
}

// Reads what --prompt-cache does not hold.
Status ReadPromptText(const RunFlags& flags, EngineSequence& sequence, Conversation& conversation,
                      const EngineOptions& options, Outcome& outcome) {
  const Stopwatch watch;
  Status status;
  if (!conversation.pending().empty()) {
    ProgressLine progress("reading the prompt", flags.output.progress);
    status = conversation.Feed(sequence, [&progress](size_t done, size_t total) {
      progress.Update(static_cast<double>(done), static_cast<double>(total));
      return !Interrupted();
    });
  }
  if (status && !outcome.was_compressed) status = CompressPrompt(flags, sequence, options);
  outcome.prefill_seconds = watch.seconds() + outcome.before_seconds;
  return status;
}

// The same with --store, which keeps the whole in the end.
Status ReadStored(const RunFlags& flags, StoredPrefixes& prefixes, EngineSequence& sequence,
                  Conversation& conversation, const EngineOptions& options, Outcome& outcome) {
  const std::vector<int32_t> tokens(conversation.pending().begin(), conversation.pending().end());
  const size_t num_pinned = conversation.num_pinned();
  const bool after = options.compress == CompressMode::kAfter;
  ReadingKey key = KeyOfEngine(sequence.engine());
  key.compress = CompressedAs(flags, options);
  const Stopwatch watch;
  StoredReading reading;
  Status status;
  {
    ProgressLine progress("reading the prompt", flags.output.progress);
    status = ReadThroughStore(prefixes, key, conversation, sequence, [&progress](size_t done, size_t total) {
      progress.Update(static_cast<double>(done), static_cast<double>(total));
      return !Interrupted();
    }, reading);
  }
  outcome.stored = reading.taken;
  if (reading.taken) outcome.cached_tokens = reading.taken->tokens;
  const bool is_whole = outcome.cached_tokens == tokens.size();
  if (status && !(after && is_whole)) status = CompressPrompt(flags, sequence, options);
  outcome.prefill_seconds = watch.seconds() - outcome.load_seconds();
  if (status && !is_whole) {
    (void)prefixes.Keep(sequence.engine(), sequence.id(), key, tokens, num_pinned, reading.compute_seconds);
  }
  return status;
}

// Prefill and generation; an interrupt is a result, not an error.
Status Produce(const RunFlags& flags, StoredPrefixes* prefixes, EngineSequence& sequence, Conversation& conversation,
               const EngineOptions& options, Generator generator, Outcome& outcome) {
  const CancelOnInterrupt cancel(sequence.engine());
  const std::vector<int32_t> tokens(conversation.pending().begin(), conversation.pending().end());
  PITH_RETURN_IF_ERROR(TakeUp(flags, tokens, options, sequence, outcome));
  if (!flags.messages.empty()) PITH_RETURN_IF_ERROR(ReadBefore(flags, sequence, conversation, outcome));
  conversation.AlreadyRead(outcome.cached_tokens);
  const bool has_unread = !conversation.pending().empty();
  const Status status = prefixes != nullptr
                            ? ReadStored(flags, *prefixes, sequence, conversation, options, outcome)
                            : ReadPromptText(flags, sequence, conversation, options, outcome);
  if (!status) {
    if (!Interrupted()) return WithAdvice(status.error());
    outcome.generation.stop = StopReason::kInterrupted;
    return {};
  }
  outcome.prefilled = true;
  const bool saves = !flags.prompt_cache.empty() && !flags.prompt_cache_ro;
  if (saves && !flags.prompt_cache_all && has_unread)
    outcome.saved = SaveSequence(flags, options, sequence, tokens, {});
  GenerateHooks hooks{.num_ctx = options.num_ctx, .on_text = {}, .interrupted = Interrupted};
  if (!flags.output.json) hooks.on_text = PrintText;
  Result<GenerationResult> generation = Generate(sequence, std::move(generator), hooks);
  if (!generation) return WithAdvice(generation.error());
  outcome.generation = std::move(*generation);
  if (saves && flags.prompt_cache_all)
    outcome.saved = SaveSequence(flags, options, sequence, tokens, outcome.generation.tokens);
  return {};
}

int ExitCode(const Outcome& outcome) {
  const GenerationResult& generation = outcome.generation;
  if (!outcome.saved) {
    Complain(outcome.saved.error());
    return kExitError;
  }
  switch (generation.stop) {
    case StopReason::kInterrupted: return kExitInterrupted;
    case StopReason::kBudget:
      Complain(WithAdvice({ErrorCode::kOutOfBudget, generation.stop_message}).value());
      return kExitError;
    case StopReason::kCallback:
      Complain({ErrorCode::kIo, "standard output takes no more text"});
      return kExitError;
    default: return kExitOk;
  }
}

Result<std::string> ReadPrompt(const RunFlags& flags) {
  std::string prompt = flags.messages.empty() ? flags.prompt : flags.messages.back().content;
  if (flags.has_file) {
    PITH_ASSIGN_OR_RETURN(prompt, ReadFile(flags.file));
  }
  PITH_RETURN_IF_ERROR(RequireUtf8(prompt, flags.has_file ? flags.file : "the prompt"));
  if (prompt.empty()) return InvalidArgument("the prompt is empty: there is nothing to go on from");
  return prompt;
}

// --recipe auto: by what the prompt and its answer take.
Status Settle(RunFlags& flags, const ModelInfo& info, size_t prompt_tokens) {
  if (!IsAutoRecipe(flags.cache.recipe)) return {};
  const auto ctx = static_cast<size_t>(ContextOf(info, flags.cache.ctx));
  const bool open = flags.max_tokens < 0 || !flags.messages.empty();
  const size_t wanted = open ? ctx : std::min(ctx, prompt_tokens + static_cast<size_t>(flags.max_tokens));
  PITH_ASSIGN_OR_RETURN(const size_t budget, BudgetBytes(flags.cache, info));
  PITH_RETURN_IF_ERROR(SettleRecipe(flags.cache, info, static_cast<int>(wanted), budget));
  return CheckRecipe(flags);
}

Result<int> Run(RunFlags& flags) {
  if (!flags.messages_file.empty()) PITH_RETURN_IF_ERROR(ReadMessages(flags));
  PITH_ASSIGN_OR_RETURN(const std::string prompt, ReadPrompt(flags));
  PITH_RETURN_IF_ERROR(flags.text.ReadFiles(flags.model));
  if (!flags.prompt_cache.empty() && !flags.prompt_cache_ro) PITH_RETURN_IF_ERROR(CheckSessionPath(flags.prompt_cache));

  PITH_ASSIGN_OR_RETURN(const std::shared_ptr<HostModel> model, LoadModel(flags.model, flags.output));
  Outcome outcome;
  const HostText text(model);
  Conversation conversation(text, {.system = flags.text.system, .control_tokens = !flags.text.no_special});
  if (!flags.messages.empty() && !model->has_chat_template()) {
    return Unsupported("this model has no chat template, so that --messages have no place");
  }
  PITH_RETURN_IF_ERROR(Say(flags, prompt, *model, conversation, outcome.templated));
  outcome.prompt_tokens = conversation.pending().size();
  outcome.pinned_tokens = conversation.num_pinned();
  if (outcome.prompt_tokens == 0) return InvalidArgument("the prompt gives no tokens: there is nothing to go on from");
  if (const std::string note = conversation.TakePinNote(); !note.empty()) Note("pith: {}.\n", note);
  if (!flags.messages.empty()) conversation.Reset();  // that was the last message by itself
  PITH_RETURN_IF_ERROR(Settle(flags, model->info(), outcome.prompt_tokens));
  PITH_ASSIGN_OR_RETURN(EngineOptions options, MakeEngineOptions(flags.cache, flags.model, model->info()));
  if (outcome.prompt_tokens >= static_cast<size_t>(options.num_ctx)) {
    return InvalidArgument(fmt::format("the prompt has {} tokens, and the context holds {}: give a larger one with -c",
                                       outcome.prompt_tokens, options.num_ctx));
  }
  PITH_ASSIGN_OR_RETURN(const SamplerOptions sampling, flags.sampler.Make(*model, options.num_ctx));
  PITH_ASSIGN_OR_RETURN(const std::unique_ptr<HostSampler> sampler, HostSampler::Create(*model, sampling));
  options.seed = outcome.seed = sampling.seed;
  if (flags.store.places()) options.resting_sequences = kPlacerSequences;
  PITH_ASSIGN_OR_RETURN(std::shared_ptr<Engine> engine, Engine::Create(model, options));
  const size_t wanted = flags.max_tokens < 0 ? SIZE_MAX : outcome.prompt_tokens + static_cast<size_t>(flags.max_tokens);
  PITH_ASSIGN_OR_RETURN(const std::shared_ptr<StoredPrefixes> prefixes, flags.store.Open(*model));
  WarnBeyondTraining(model->info(), std::min(wanted, static_cast<size_t>(options.num_ctx)));
  PITH_ASSIGN_OR_RETURN(std::unique_ptr<EngineSequence> sequence, EngineSequence::Create(engine));
  Generator generator(text, SampleBy(*sampler),
                      {.max_tokens = flags.max_tokens, .stops = flags.text.stops, .num_logprobs = flags.logprobs});
  PITH_RETURN_IF_ERROR(Produce(flags, prefixes.get(), *sequence, conversation, options, std::move(generator), outcome));
  PITH_RETURN_IF_ERROR(Report(flags, outcome, *sequence, options.recipe));
  sequence.reset();
  PlaceContexts(prefixes.get(), *engine, flags.output);
  return ExitCode(outcome);
}

}  // namespace

void AddRun(CLI::App& app, Command& chosen) {
  auto flags = std::make_shared<RunFlags>();
  CLI::App* command = AddCommand(app, "run", "Generate once from a prompt, streaming the text", kRunExamples);
  CLI::Option* prompt = AddOption(*command, "-p,--prompt", flags->prompt, "Prompt", "TEXT");
  CLI::Option* file =
      AddOption(*command, "-f,--file", flags->file, "Prompt from a file, or from standard input for -", "FILE");
  AddOption(*command, "-n,--predict,--n-predict", flags->max_tokens,
            "Tokens to generate (default 256; -1: until the model ends or the context is full)", "N");
  AddOption(*command, "--messages", flags->messages_file,
            "A conversation in place of a prompt, [{\"role\": \"user\", \"content\": \"...\"}, ...]; the answer to its "
            "last message is generated",
            "FILE");
  AddNumber(*command, "--logprobs", flags->logprobs, 0, 1000,
            "With --json: log probabilities of each token and of the N likeliest, before sampling", "N");
  AddOption(*command, "--keep", flags->keep,
            "Share of the prompt's entries that stays with --compress after (default 0.3)", "SHARE");
  AddOption(*command, "--prompt-cache", flags->prompt_cache,
            "File that keeps the read prompt with its cache: written after reading, and taken up as far as a later "
            "prompt begins alike (same model, recipe and format)",
            "FILE");
  AddFlag(*command, "--prompt-cache-all", flags->prompt_cache_all, "Keep the generated text in that file too");
  AddFlag(*command, "--prompt-cache-ro", flags->prompt_cache_ro, "Use that file without writing it");
  AddStoreFlag(*command, flags->store);
  AddFlag(*command, "--raw,--no-chat", flags->raw, "No chat template: the model gets the text as it is");
  AddPromptFlags(*command, flags->text);
  AddModelFlags(*command, flags->model);
  AddCacheFlags(*command, flags->cache);
  AddSaveFormat(*command, flags->cache.save_format);
  AddSamplerFlags(*command, flags->sampler);
  AddOutputFlags(*command, flags->output);
  OnCommand(*command, [flags, prompt, file, &chosen] {
    flags->has_prompt = Count(prompt) > 0;
    flags->has_file = Count(file) > 0;
    chosen.check = [flags] { return CheckRun(*flags); };
    chosen.run = [flags] { return Run(*flags); };
  });
}

}  // namespace pith::cli
