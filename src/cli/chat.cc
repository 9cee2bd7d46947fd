// pith chat: several turns over the model's chat template.
//
// The cache holds the conversation; each turn reads only what is new (session/conversation.h).
#include <cstdio>
#include <memory>
#include <span>
#include <utility>

#include <fmt/format.h>

#include "base/stopwatch.h"
#include "cli/command.h"
#include "cli/generate.h"
#include "cli/line_input.h"
#include "cli/sampler_flags.h"
#include "cli/store_flags.h"
#include "cli/terminal.h"
#include "session/conversation.h"
#include "session/generator.h"
#include "session/stored_reading.h"
#include "session/token_sequence.h"

namespace pith::cli {
namespace {

constexpr const char* kExamples = R"(
Enter sends a message. Pasted lines are one message, and a backslash at the end of a line (or Alt+Enter) goes on with the
next one. From a pipe each line is a message. Ctrl-C stops an answer, and ends the program between answers. Commands: /stats (what the cache holds), /reset (forget the conversation), /exit.
The system message is pinned: no recipe drops it. /reset empties the session file, too.

Examples:
  pith chat
  pith chat -m model.gguf --system "You answer in one sentence." --kv-budget 32MiB -c 100000
  pith chat --prompt-cache talk.session    # the next time the conversation goes on
  pith chat --system-prompt-file rules.txt --store ~/.cache/pith/store    # the rules are read once for all chats
  printf 'Hello!\nWhat did I just say?\n' | pith chat --temp 0
)";

struct ChatFlags {
  ModelFlags model;
  CacheFlags cache;
  SamplerFlags sampler;
  PromptFlags text;
  OutputFlags output;
  int max_tokens = 512;
  StoreFlags store;
  std::string prompt_cache;
  bool prompt_cache_ro = false;
};

class Chat {
 public:
  Chat(ChatFlags& flags, std::shared_ptr<HostModel> model, std::shared_ptr<Engine> engine,
       std::unique_ptr<EngineSequence> sequence,
       std::shared_ptr<StoredPrefixes> prefixes, const EngineOptions& options, std::unique_ptr<HostSampler> sampler)
      : flags_(flags),
        model_(std::move(model)),
        text_(model_),
        engine_(std::move(engine)),
        sequence_(std::move(sequence)),
        prefixes_(std::move(prefixes)),
        recipe_(options.recipe),
        num_ctx_(options.num_ctx),
        sampler_(std::move(sampler)),
        conversation_(text_, {.system = flags.text.system, .control_tokens = !flags.text.no_special}) {}

  Result<int> Loop(MessageReader& reader) {
    PITH_RETURN_IF_ERROR(Begin());
    if (reader.is_terminal()) fmt::print(stderr, "{}; /stats, /reset, /exit\n", model_->info().description);
    std::string message;
    while (reader.Read(message)) {
      if (message.find_first_not_of(" \t\n") == std::string::npos) continue;
      if (message == "/exit" || message == "/quit") break;
      if (message == "/stats") {
        fmt::print(stderr, "{}\n", KvLine(sequence_->engine().stats(), recipe_));
      } else if (message == "/reset") {
        PITH_RETURN_IF_ERROR(Reset());
      } else if (message.starts_with('/') && message.find_first_of(" \n") == std::string::npos) {
        fmt::print(stderr, "{} is no command; there are /stats, /reset and /exit\n", message);
      } else {
        PITH_RETURN_IF_ERROR(Turn(message));
        // In a pipe nobody is there to go on with: an interrupt ends everything.
        if (Interrupted() && !reader.is_terminal()) return kExitInterrupted;
        ClearInterrupt();
      }
    }
    Keep();
    const std::shared_ptr<Engine> engine = engine_;
    sequence_.reset();
    PlaceContexts(prefixes_.get(), *engine, flags_.output);
    return unsaved_ ? kExitError : kExitOk;
  }

 private:
  // The conversation of --prompt-cache, or a new one.
  Status Begin() {
    if (flags_.prompt_cache.empty()) return {};
    PITH_ASSIGN_OR_RETURN(auto restored, sequence_->Restore(flags_.prompt_cache));
    if (!restored) return {};
    const Status status =
        conversation_.Restore(restored->note.text, std::move(restored->note.tokens), sequence_->num_tokens());
    if (status) return {};
    return MakeError(status.error().code,
                     fmt::format("the session {} cannot be used: {}", flags_.prompt_cache, status.error().message));
  }

  // The tokens that the cache does not have yet go along. A conversation goes on where its file cannot be written.
  void Save() {
    if (flags_.prompt_cache.empty() || flags_.prompt_cache_ro) return;
    const std::span<const int32_t> pending = conversation_.pending();
    const Status saved = sequence_->Save(flags_.prompt_cache, {.tokens = {pending.begin(), pending.end()},
                                                               .text = conversation_.Save()});
    unsaved_ = !saved;
    if (!saved) Complain(saved.error());
  }

  // What was read goes to the store, for whoever begins alike.
  void Keep() {
    if (prefixes_ == nullptr || read_.size() != static_cast<size_t>(sequence_->num_tokens())) return;
    (void)prefixes_->Keep(sequence_->engine(), sequence_->id(), KeyOfEngine(sequence_->engine()), read_, num_pinned_,
                          read_seconds_);
  }
  void Forget() {
    read_.clear();
    read_seconds_ = 0;
    num_pinned_ = 0;
  }

  Status Reset() {
    Keep();
    PITH_RETURN_IF_ERROR(sequence_->Reset());
    Forget();
    conversation_.Reset();
    Save();
    return {};
  }

  bool Fits() const {
    const auto read = static_cast<size_t>(sequence_->num_tokens());
    return read + conversation_.pending().size() < static_cast<size_t>(num_ctx_);
  }

  // Queues a message; one that does not fit begins a new conversation. False: it cannot be answered, and it is said
  // why.
  Result<bool> Say(const std::string& message) {
    Conversation before = conversation_;
    Status said = RequireUtf8(message, "this message");
    if (said) said = conversation_.Say(message);
    if (!said) {
      Complain(said.error());
      return false;
    }
    if (!Fits()) {
      Conversation alone = conversation_;
      PITH_RETURN_IF_ERROR(alone.Restart());
      if (alone.pending().size() >= static_cast<size_t>(num_ctx_)) {
        fmt::print(stderr, "this message does not fit into the context of {} tokens (-c gives more room)\n", num_ctx_);
        conversation_ = std::move(before);
        return false;
      }
      fmt::print(stderr,
                 "the context of {} tokens is full: the conversation starts anew with this message (-c gives more "
                 "room)\n",
                 num_ctx_);
      Keep();
      PITH_RETURN_IF_ERROR(sequence_->Reset());
      Forget();
      conversation_ = std::move(alone);
    }
    if (const std::string note = conversation_.TakePinNote(); !note.empty()) fmt::print(stderr, "pith: {}.\n", note);
    return true;
  }

  Status Feed() {
    ProgressLine progress("reading", flags_.output.progress);
    const auto goes_on = [&progress](size_t done, size_t total) {
      progress.Update(static_cast<double>(done), static_cast<double>(total));
      return !Interrupted();
    };
    const std::vector<int32_t> pending(conversation_.pending().begin(), conversation_.pending().end());
    const bool is_first = prefixes_ != nullptr && sequence_->num_tokens() == 0;
    const Stopwatch watch;
    StoredReading reading;
    if (is_first) num_pinned_ = conversation_.num_pinned();
    PITH_RETURN_IF_ERROR(is_first ? ReadThroughStore(*prefixes_, KeyOfEngine(sequence_->engine()), conversation_,
                                                     *sequence_, goes_on, reading)
                                  : conversation_.Feed(*sequence_, goes_on));
    read_seconds_ += is_first ? reading.compute_seconds : watch.seconds();
    read_.insert(read_.end(), pending.begin(), pending.end());
    if (reading.taken) {
      fmt::print(stderr, "[{} tokens come from the store ({}, {:.0f} ms)]\n", reading.taken->tokens,
                 store::TierName(reading.taken->tier), 1000 * reading.taken->load_seconds);
    }
    return {};
  }

  Status Turn(const std::string& message) {
    const CancelOnInterrupt cancel(sequence_->engine());
    PITH_ASSIGN_OR_RETURN(const bool said, Say(message));
    if (!said) return {};
    const size_t fed = conversation_.pending().size();
    const Stopwatch watch;
    if (const Status status = Feed(); !status) {
      if (!Interrupted()) return WithAdvice(status.error());
      conversation_.Answered({}, std::nullopt);
      std::fputs("\n", stderr);
      return {};
    }
    const double prefill_seconds = watch.seconds();
    sampler_->StartOver();
    Generator generator(text_, SampleBy(*sampler_), {.max_tokens = flags_.max_tokens, .stops = flags_.text.stops});
    const Result<GenerationResult> written = Generate(
        *sequence_, std::move(generator), {.num_ctx = num_ctx_, .on_text = PrintText, .interrupted = Interrupted});
    if (!written) return WithAdvice(written.error());
    PrintText("\n");
    const GenerationResult& answer = *written;
    const auto num_fed =
        static_cast<std::ptrdiff_t>(sequence_->num_tokens()) - static_cast<std::ptrdiff_t>(read_.size());
    if (num_fed > 0 && num_fed <= static_cast<std::ptrdiff_t>(answer.tokens.size())) {
      read_.insert(read_.end(), answer.tokens.begin(), answer.tokens.begin() + num_fed);
    }
    read_seconds_ += answer.seconds;
    conversation_.Answered(answer.text, answer.unfed);
    const std::string cut = CutNote(answer, flags_.max_tokens);
    fmt::print(stderr, "[{} read ({:.1f}/s), {} written ({:.1f}/s){}{}; {}]\n", fed,
               prefill_seconds > 0 ? static_cast<double>(fed) / prefill_seconds : 0.0, answer.tokens.size(),
               answer.decode_tps(), cut.empty() ? "" : ", ", cut, KvLine(sequence_->engine().stats(), recipe_));
    if (answer.stop == StopReason::kCallback) return IoError("standard output takes no more text");
    if (answer.stop == StopReason::kBudget) return WithAdvice({ErrorCode::kOutOfBudget, answer.stop_message});
    Save();
    return {};
  }

  ChatFlags& flags_;
  std::shared_ptr<HostModel> model_;
  HostText text_;
  std::shared_ptr<Engine> engine_;
  std::unique_ptr<EngineSequence> sequence_;
  std::shared_ptr<StoredPrefixes> prefixes_;  // null: no --store
  std::vector<int32_t> read_;  // by the sequence, as far as it is known
  size_t num_pinned_ = 0;      // of read_
  double read_seconds_ = 0;    // that reading it took
  Recipe recipe_;
  int num_ctx_;
  std::unique_ptr<HostSampler> sampler_;
  Conversation conversation_;
  bool unsaved_ = false;  // the last writing of the session file failed
};

Status Check(const ChatFlags& flags) {
  PITH_RETURN_IF_ERROR(flags.model.Check());
  PITH_RETURN_IF_ERROR(flags.cache.Check());
  PITH_RETURN_IF_ERROR(flags.sampler.Check());
  PITH_RETURN_IF_ERROR(flags.store.Check(flags.cache.recipe));
  if (flags.store.given() && !flags.prompt_cache.empty()) {
    return InvalidArgument("--store and --prompt-cache both keep what was read: give one of them");
  }
  PITH_ASSIGN_OR_RETURN(const Recipe recipe, ParseRecipe(flags.cache.recipe));
  if (NeedsWholePrompt(recipe) || flags.cache.compress == "after") {
    return InvalidArgument(
        "a chat goes on, so there is no whole prompt to compress once: choose a --recipe that evicts, with "
        "--compress block");
  }
  if (flags.max_tokens < -1) return InvalidArgument("-n takes a number of tokens, or -1 for no limit");
  if (flags.prompt_cache_ro && flags.prompt_cache.empty()) {
    return InvalidArgument("--prompt-cache-ro needs --prompt-cache FILE");
  }
  return {};
}

Result<int> RunChat(ChatFlags& flags) {
  PITH_RETURN_IF_ERROR(flags.text.ReadFiles(flags.model));
  if (!flags.prompt_cache.empty() && !flags.prompt_cache_ro) PITH_RETURN_IF_ERROR(CheckSessionPath(flags.prompt_cache));
  MessageReader reader("> ");  // before the model is loaded: what is typed meanwhile is not lost
  PITH_ASSIGN_OR_RETURN(std::shared_ptr<HostModel> model, LoadModel(flags.model, flags.output));
  if (!model->has_chat_template()) {
    return Unsupported("this model has no chat template; \"pith run --raw\" continues texts with it");
  }
  PITH_ASSIGN_OR_RETURN(EngineOptions options, MakeEngineOptions(flags.cache, flags.model, model->info()));
  PITH_ASSIGN_OR_RETURN(const SamplerOptions sampling, flags.sampler.Make(*model, options.num_ctx));
  PITH_ASSIGN_OR_RETURN(std::unique_ptr<HostSampler> sampler, HostSampler::Create(*model, sampling));
  options.seed = sampling.seed;
  if (flags.store.places()) options.resting_sequences = kPlacerSequences;
  PITH_ASSIGN_OR_RETURN(std::shared_ptr<Engine> engine, Engine::Create(model, options));
  WarnBeyondTraining(model->info(), static_cast<size_t>(options.num_ctx));
  PITH_ASSIGN_OR_RETURN(std::unique_ptr<EngineSequence> sequence, EngineSequence::Create(engine));
  PITH_ASSIGN_OR_RETURN(std::shared_ptr<StoredPrefixes> prefixes, flags.store.Open(*model));
  if (prefixes != nullptr) prefixes->Warm();
  return Chat(flags, std::move(model), engine, std::move(sequence), std::move(prefixes), options, std::move(sampler))
      .Loop(reader);
}

}  // namespace

void AddChat(CLI::App& app, Command& chosen) {
  auto flags = std::make_shared<ChatFlags>();
  CLI::App* command = AddCommand(app, "chat", "Talk to a model over several turns", kExamples);
  AddOption(*command, "-n,--predict,--n-predict", flags->max_tokens,
            "Tokens an answer may have (default 512; -1: no limit)", "N");
  AddOption(*command, "--prompt-cache", flags->prompt_cache,
            "File that keeps the conversation with its cache: written after each answer, taken up at the start "
            "(same model, recipe and format)",
            "FILE");
  AddFlag(*command, "--prompt-cache-ro", flags->prompt_cache_ro, "Use that file without writing it");
  AddStoreFlag(*command, flags->store);
  AddPromptFlags(*command, flags->text);
  AddModelFlags(*command, flags->model);
  AddCacheFlags(*command, flags->cache);
  AddSamplerFlags(*command, flags->sampler);
  AddFlag(*command, "--progress", flags->output.progress, "Show progress even where standard error is no terminal");
  OnCommand(*command, [flags, &chosen] {
    chosen.check = [flags] { return Check(*flags); };
    chosen.run = [flags] { return RunChat(*flags); };
  });
}

}  // namespace pith::cli
