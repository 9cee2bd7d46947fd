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
#include "cli/terminal.h"
#include "session/conversation.h"
#include "session/generator.h"
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
  printf 'Hello!\nWhat did I just say?\n' | pith chat --temp 0
)";

struct ChatFlags {
  ModelFlags model;
  CacheFlags cache;
  SamplerFlags sampler;
  PromptFlags text;
  OutputFlags output;
  int max_tokens = 512;
  std::string prompt_cache;
  bool prompt_cache_ro = false;
};

class Chat {
 public:
  Chat(ChatFlags& flags, std::shared_ptr<HostModel> model, std::unique_ptr<EngineSequence> sequence,
       const EngineOptions& options, std::unique_ptr<HostSampler> sampler)
      : flags_(flags),
        model_(std::move(model)),
        text_(model_),
        sequence_(std::move(sequence)),
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

  Status Reset() {
    PITH_RETURN_IF_ERROR(sequence_->Reset());
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
      PITH_RETURN_IF_ERROR(sequence_->Reset());
      conversation_ = std::move(alone);
    }
    if (const std::string note = conversation_.TakePinNote(); !note.empty()) fmt::print(stderr, "pith: {}.\n", note);
    return true;
  }

  Status Feed() {
    ProgressLine progress("reading", flags_.output.progress);
    return conversation_.Feed(*sequence_, [&progress](size_t done, size_t total) {
      progress.Update(static_cast<double>(done), static_cast<double>(total));
      return !Interrupted();
    });
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
  std::unique_ptr<EngineSequence> sequence_;
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
  PITH_ASSIGN_OR_RETURN(std::shared_ptr<Engine> engine, Engine::Create(model, options));
  WarnBeyondTraining(model->info(), static_cast<size_t>(options.num_ctx));
  PITH_ASSIGN_OR_RETURN(std::unique_ptr<EngineSequence> sequence, EngineSequence::Create(engine));
  return Chat(flags, std::move(model), std::move(sequence), options, std::move(sampler)).Loop(reader);
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
