// pith chat: several turns over the model's chat template.
//
// The cache holds the conversation; each turn reads only what is new (session/conversation.h).
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>

#include "base/paths.h"
#include "base/stopwatch.h"
#include "cli/auto_recipe.h"
#include "cli/cache_map.h"
#include "cli/chat_state.h"
#include "cli/command.h"
#include "cli/generate.h"
#include "cli/line_input.h"
#include "cli/markdown.h"
#include "cli/sampler_flags.h"
#include "cli/store_flags.h"
#include "cli/terminal.h"
#include "session/generator.h"
#include "session/stored_reading.h"

namespace pith::cli {
namespace {

constexpr const char* kChatExamples = R"(
Enter sends a message. Pasted lines are one message, and a backslash at the end of a line (or Alt+Enter) goes on with the
next one; arrow keys edit and go through what was entered before. From a pipe each line is a message. Ctrl-C stops an
answer, and ends the program between answers. Commands, of which /help says more: /stats, /cache, /budget, /recipe, /pin,
/undo, /edit, /save, /load, /reset, /exit.
The system message is pinned: no recipe drops it. /reset empties the session file, too.

Examples:
  pith chat
  pith chat -p "Which is the longest river of Europe?"
  pith chat -m model.gguf --system "You answer in one sentence." --kv-budget 32MiB -c 100000
  pith chat --kv-budget 16MiB --recipe "pith turns=flowkv:drop=0.8"    # each turn is compressed once
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
  bool no_history = false;
  std::string prompt;
  bool single_turn = false;
};

// Colours are for eyes: not for a pipe, a terminal without them, or who wants none (no-color.org).
bool WantsColours() {
  const char* no_colour = std::getenv("NO_COLOR");
  const char* terminal = std::getenv("TERM");
  const bool none = no_colour != nullptr && *no_colour != '\0';
  return ::isatty(STDOUT_FILENO) != 0 && !none && terminal != nullptr && std::string_view(terminal) != "dumb";
}

Status CheckRecipe(const CacheFlags& cache) {
  PITH_ASSIGN_OR_RETURN(const Recipe recipe, ParseRecipe(cache.recipe));
  if (!NeedsWholePrompt(recipe) && cache.compress != "after") return {};
  return InvalidArgument(
      fmt::format("a chat goes on, so there is no whole prompt to compress once: choose a --recipe that evicts, with "
                  "--compress block{}",
                  recipe.policy->prune() != nullptr ? "" : ", or add turns=flowkv to it"));
}

// --recipe auto is chosen anew for each budget.
Result<EngineOptions> OptionsFor(CacheFlags cache, const ChatFlags& flags, const ModelInfo& info) {
  PITH_ASSIGN_OR_RETURN(const size_t budget, BudgetBytes(cache, info));
  PITH_RETURN_IF_ERROR(SettleRecipe(cache, info, ContextOf(info, cache.ctx), budget));
  PITH_RETURN_IF_ERROR(CheckRecipe(cache));
  PITH_RETURN_IF_ERROR(flags.store.Check(cache.recipe));
  return MakeEngineOptions(cache, flags.model, info);
}

class Chat {
 public:
  Chat(ChatFlags& flags, std::unique_ptr<ChatState> state, std::shared_ptr<StoredPrefixes> prefixes,
       std::unique_ptr<HostSampler> sampler)
      : flags_(flags),
        state_(std::move(state)),
        prefixes_(std::move(prefixes)),
        sampler_(std::move(sampler)),
        colours_(WantsColours()) {}

  Result<int> Loop(MessageReader& reader) {
    reader_ = &reader;
    if (!flags_.prompt_cache.empty()) PITH_RETURN_IF_ERROR(state_->Load(flags_.prompt_cache));
    if (reader.is_terminal()) Note("{}; /help\n", state_->engine().model().info().description);
    std::string message;
    while (Next(reader, message)) {
      if (message.find_first_not_of(" \t\n") == std::string::npos) continue;
      if (message == "/exit" || message == "/quit") break;
      const Status done = Take(message);
      if (!done) {
        if (!Interrupted()) return tl::unexpected<Error>(done.error());
        std::fputs("\n", stderr);
      }
      // In a pipe nobody is there to go on with: an interrupt ends everything.
      if (Interrupted() && !reader.is_terminal()) return kExitInterrupted;
      ClearInterrupt();
      if (flags_.single_turn) break;
    }
    if (prefixes_ != nullptr) {
      PITH_RETURN_IF_ERROR(StartOver());
      PlaceContexts(prefixes_.get(), state_->engine(), flags_.output);
    }
    return unsaved_ ? kExitError : kExitOk;
  }

 private:
  // The message of -p first.
  bool Next(MessageReader& reader, std::string& message) {
    message = std::exchange(flags_.prompt, {});
    if (message.empty()) return reader.Read(message);
    if (reader.is_terminal()) Note("> {}\n", message);
    return true;
  }

  using Handler = Status (Chat::*)(const std::string& rest);
  struct ChatCommand {
    std::string_view name, arguments, help;
    Handler handler;
  };
  static std::span<const ChatCommand> Commands();

  // A command with what follows it, or a message. What a command could not do is said, and the conversation goes on.
  Status Take(const std::string& message) {
    const size_t end = message.find_first_of(" \n");
    const std::string_view word = std::string_view(message).substr(0, end);
    // A path or a fraction is a message, not a command.
    const bool is_word =
        word.size() > 1 && word.find_first_not_of("abcdefghijklmnopqrstuvwxyz-", 1) == std::string::npos;
    if (!word.starts_with('/') || !is_word) return Turn(message, false);
    for (const ChatCommand& command : Commands()) {
      if (command.name != word) continue;
      const size_t first = end == std::string::npos ? end : message.find_first_not_of(" \n", end);
      const std::string rest = first == std::string::npos ? std::string() : message.substr(first);
      Status status = (this->*command.handler)(rest);
      if (status || Interrupted()) return status;
      if (!state_->sequence().is_there()) return status;
      Complain(status.error());
      return {};
    }
    Note("{} is no command; /help lists them\n", word);
    return {};
  }

  Status Help(const std::string&) {
    for (const ChatCommand& command : Commands()) {
      Note("  {:<20} {}\n", fmt::format("{} {}", command.name, command.arguments), command.help);
    }
    Note("  {:<20} {}\n", "/exit", "end (also Ctrl-D)");
    return {};
  }

  Status Stats(const std::string&) {
    Note("{}\n", KvLine(state_->engine().stats(), state_->options().recipe));
    return {};
  }

  Status Cache(const std::string&) {
    const std::vector<double> kept = KeptByPosition(state_->engine(), state_->sequence().id());
    if (kept.empty()) return Note("nothing was read yet\n"), Status();
    Note("{}", DrawCacheMap(kept, state_->Rows()));
    return Stats({});
  }

  Status Budget(const std::string& rest) {
    if (rest.empty()) {
      const KvStats stats = state_->engine().stats();
      Note("{} of {} in use\n", FormatBytes(stats.used_bytes), FormatBytes(stats.budget_bytes));
      return {};
    }
    CacheFlags cache = flags_.cache;
    cache.budget = rest;
    return Change(cache);
  }

  Status ChangeRecipe(const std::string& rest) {
    if (rest.empty()) {
      Note("{}\n", state_->options().recipe.text);
      return {};
    }
    CacheFlags cache = flags_.cache;
    cache.recipe = rest;
    return Change(cache);
  }

  Status Change(const CacheFlags& cache) {
    PITH_RETURN_IF_ERROR(cache.Check());
    PITH_ASSIGN_OR_RETURN(EngineOptions options, OptionsFor(cache, flags_, state_->engine().model().info()));
    options.seed = state_->options().seed;
    options.resting_sequences = state_->options().resting_sequences;
    Keep();
    ProgressLine progress("reading the conversation", flags_.output.progress);
    PITH_RETURN_IF_ERROR(state_->Change(options, ShowProgress(progress)));
    flags_.cache = cache;
    return Stats({});
  }

  Status Pin(const std::string& rest) {
    if (rest.empty()) return InvalidArgument("/pin takes the message that is never dropped");
    return Turn(rest, true);
  }

  Result<std::optional<std::string>> TakeBack() {
    const CancelOnInterrupt cancel(state_->engine());
    ProgressLine progress("reading the conversation", flags_.output.progress);
    PITH_ASSIGN_OR_RETURN(std::optional<std::string> message, state_->Undo(ShowProgress(progress)));
    if (!message) return InvalidArgument("there is no message to take back");
    Save();
    return message;
  }

  Status Undo(const std::string&) {
    PITH_ASSIGN_OR_RETURN(const std::optional<std::string> message, TakeBack());
    Note("taken back: {}\n", *message);
    return {};
  }

  Status Edit(const std::string& rest) {
    PITH_ASSIGN_OR_RETURN(const std::optional<std::string> message, TakeBack());
    if (!rest.empty()) return Turn(rest, false);
    if (!reader_->Prefill(*message)) Note("taken back: {}\n", *message);
    return {};
  }

  Status SaveAs(const std::string& rest) {
    if (rest.empty()) return InvalidArgument("/save takes a file");
    PITH_RETURN_IF_ERROR(CheckSessionPath(rest));
    PITH_RETURN_IF_ERROR(state_->Save(rest));
    Note("saved in {}\n", rest);
    return {};
  }

  Status Load(const std::string& rest) {
    if (rest.empty()) return InvalidArgument("/load takes a file that /save wrote");
    // What is there stays where the file cannot be used.
    if (::access(rest.c_str(), R_OK) != 0) return NotFound(fmt::format("there is no session {} to be read", rest));
    PITH_ASSIGN_OR_RETURN(const bool loaded, state_->Load(rest));
    if (!loaded) return InvalidArgument(fmt::format("{} is empty", rest));
    Note("{} messages, {} tokens\n", state_->conversation().num_messages(), state_->sequence().num_tokens());
    Save();
    return {};
  }

  Status Reset(const std::string&) {
    PITH_RETURN_IF_ERROR(StartOver());
    Save();
    return {};
  }

  static Progress ShowProgress(ProgressLine& progress) {
    return [&progress](size_t done, size_t total) {
      progress.Update(static_cast<double>(done), static_cast<double>(total));
      return !Interrupted();
    };
  }

  // A conversation goes on where its file cannot be written.
  void Save() {
    if (flags_.prompt_cache.empty() || flags_.prompt_cache_ro) return;
    const Status saved = state_->Save(flags_.prompt_cache);
    unsaved_ = !saved;
    if (!saved) Complain(saved.error());
  }

  // What was read goes to the store, for whoever begins alike.
  void Keep() {
    if (prefixes_ == nullptr) return;
    Engine& engine = state_->engine();
    const SequenceId sequence = state_->sequence().id();
    const std::vector<int32_t> tokens = engine.Tokens(sequence);
    const auto num_pinned = static_cast<size_t>(engine.stats(sequence).num_pinned);
    (void)prefixes_->Keep(engine, sequence, KeyOfEngine(engine), tokens, num_pinned, read_seconds_);
  }
  Status StartOver() {
    Keep();
    read_seconds_ = 0;
    return state_->Reset();
  }

  Status Feed(const Progress& progress) {
    Conversation& conversation = state_->conversation();
    EngineSequence& sequence = state_->sequence();
    const Stopwatch watch;
    if (prefixes_ == nullptr || sequence.num_tokens() > 0) {
      PITH_RETURN_IF_ERROR(conversation.Feed(sequence, progress));
      read_seconds_ += watch.seconds();
      return {};
    }
    StoredReading reading;
    PITH_RETURN_IF_ERROR(ReadThroughStore(*prefixes_, KeyOfEngine(sequence.engine()), conversation, sequence, progress,
                                          reading));
    read_seconds_ = reading.compute_seconds;
    if (reading.taken) {
      Note("[{} tokens come from the store ({}, {:.0f} ms)]\n", reading.taken->tokens,
           store::TierName(reading.taken->tier), 1000 * reading.taken->load_seconds);
    }
    return {};
  }

  // False: it cannot be answered, and it was said why.
  Result<bool> Say(const std::string& message) {
    Status valid = RequireUtf8(message, "this message");
    const Result<ChatState::Queued> queued = valid ? state_->Say(message) : tl::unexpected<Error>(valid.error());
    if (!queued) {
      if (!state_->sequence().is_there()) return tl::unexpected<Error>(queued.error());
      Complain(queued.error());
      return false;
    }
    const int num_ctx = state_->num_ctx();
    if (*queued == ChatState::Queued::kTooLong) {
      Note("this message does not fit into the context of {} tokens (-c gives more room)\n", num_ctx);
      return false;
    }
    if (*queued == ChatState::Queued::kStartedAnew) {
      Note(
          "the context of {} tokens is full: the conversation starts anew with this message (-c gives more "
          "room)\n",
          num_ctx);
    }
    if (const std::string note = state_->conversation().TakePinNote(); !note.empty()) Note("pith: {}.\n", note);
    return true;
  }

  Status Turn(const std::string& message, bool pin) {
    const CancelOnInterrupt cancel(state_->engine());
    PITH_ASSIGN_OR_RETURN(const bool said, Say(message));
    if (!said) return {};
    Conversation& conversation = state_->conversation();
    if (pin) conversation.PinPending();
    const size_t fed = conversation.pending().size();
    const Stopwatch watch;
    {
      ProgressLine progress("reading", flags_.output.progress);
      if (const Status status = Feed(ShowProgress(progress)); !status) {
        if (!Interrupted()) return WithAdvice(status.error());
        conversation.Answered({}, std::nullopt);
        std::fputs("\n", stderr);
        return {};
      }
    }
    return Answer(fed, watch.seconds());
  }

  Status Answer(size_t fed, double prefill_seconds) {
    sampler_->StartOver();
    Generator generator(state_->text(), SampleBy(*sampler_),
                        {.max_tokens = flags_.max_tokens, .stops = flags_.text.stops});
    MarkdownStream markdown;
    const auto print = [&](std::string_view text) { return PrintText(colours_ ? markdown.Push(text) : text); };
    const Result<GenerationResult> written =
        Generate(state_->sequence(), std::move(generator),
                 {.num_ctx = state_->num_ctx(), .on_text = print, .interrupted = Interrupted});
    if (colours_) PrintText(markdown.Finish());
    if (!written) return WithAdvice(written.error());
    PrintText("\n");
    const GenerationResult& answer = *written;
    read_seconds_ += answer.seconds;
    state_->conversation().Answered(answer.text, answer.unfed);
    const std::string cut = CutNote(answer, flags_.max_tokens);
    const std::string status = fmt::format(
        "[{} read ({:.1f}/s), {} written ({:.1f}/s){}{}; {}]", fed,
        prefill_seconds > 0 ? static_cast<double>(fed) / prefill_seconds : 0.0, answer.tokens.size(),
        answer.decode_tps(), cut.empty() ? "" : ", ", cut, StatusOfCache());
    Note("{}{}{}\n", colours_ ? "\x1b[2m" : "", status, colours_ ? "\x1b[0m" : "");
    if (answer.stop == StopReason::kCallback) return IoError("standard output takes no more text");
    if (answer.stop == StopReason::kBudget) return WithAdvice({ErrorCode::kOutOfBudget, answer.stop_message});
    Save();
    return {};
  }

  // How full the budget is, at a terminal as a bar, too.
  std::string StatusOfCache() const {
    const KvStats stats = state_->engine().stats();
    std::string line = KvLine(stats, state_->options().recipe);
    if (!colours_ || stats.budget_bytes == 0) return line;
    constexpr size_t kCells = 10;
    const double share = static_cast<double>(stats.used_bytes) / static_cast<double>(stats.budget_bytes);
    const auto full = std::min(kCells, static_cast<size_t>(share * kCells + 0.5));
    std::string bar;
    for (size_t i = 0; i < kCells; ++i) bar += i < full ? "\u2588" : "\u2591";
    return fmt::format("{} {:.0f}% {}", bar, 100 * share, line);
  }

  ChatFlags& flags_;
  std::unique_ptr<ChatState> state_;
  std::shared_ptr<StoredPrefixes> prefixes_;  // null: no --store
  double read_seconds_ = 0;                   // that reading all of the sequence takes
  std::unique_ptr<HostSampler> sampler_;
  MessageReader* reader_ = nullptr;
  bool colours_;
  bool unsaved_ = false;  // the last writing of the session file failed
};

std::span<const Chat::ChatCommand> Chat::Commands() {
  static constexpr ChatCommand kCommands[] = {
      {"/help", "", "these commands", &Chat::Help},
      {"/stats", "", "what the cache holds", &Chat::Stats},
      {"/cache", "", "which parts of the conversation the cache still keeps", &Chat::Cache},
      {"/budget", "[SIZE]", "show or change the KV budget, as --kv-budget takes it", &Chat::Budget},
      {"/recipe", "[RECIPE]", "show or change the recipe; the conversation is read again", &Chat::ChangeRecipe},
      {"/pin", "MESSAGE", "say something that is never dropped", &Chat::Pin},
      {"/undo", "", "take the last message and its answer back", &Chat::Undo},
      {"/edit", "[MESSAGE]", "say the last message anew, edited or another one", &Chat::Edit},
      {"/save", "FILE", "write the conversation with its cache", &Chat::SaveAs},
      {"/load", "FILE", "go on with such a file", &Chat::Load},
      {"/reset", "", "forget the conversation", &Chat::Reset},
  };
  return kCommands;
}

Status CheckChat(const ChatFlags& flags) {
  PITH_RETURN_IF_ERROR(flags.model.Check());
  PITH_RETURN_IF_ERROR(flags.cache.Check());
  PITH_RETURN_IF_ERROR(flags.sampler.Check());
  if (!IsAutoRecipe(flags.cache.recipe)) {
    PITH_RETURN_IF_ERROR(CheckRecipe(flags.cache));
    PITH_RETURN_IF_ERROR(flags.store.Check(flags.cache.recipe));
  }
  if (flags.store.given() && !flags.prompt_cache.empty()) {
    return InvalidArgument("--store and --prompt-cache both keep what was read: give one of them");
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
  const std::string history = flags.no_history ? std::string() : CacheDir() + "/chat_history";
  MessageReader reader("> ", history);  // before the model is loaded: what is typed meanwhile is not lost
  PITH_ASSIGN_OR_RETURN(std::shared_ptr<HostModel> model, LoadModel(flags.model, flags.output));
  if (!model->has_chat_template()) {
    return Unsupported("this model has no chat template; \"pith run --raw\" continues texts with it");
  }
  PITH_ASSIGN_OR_RETURN(EngineOptions options, OptionsFor(flags.cache, flags, model->info()));
  PITH_ASSIGN_OR_RETURN(const SamplerOptions sampling, flags.sampler.Make(*model, options.num_ctx));
  PITH_ASSIGN_OR_RETURN(std::unique_ptr<HostSampler> sampler, HostSampler::Create(*model, sampling));
  options.seed = sampling.seed;
  if (flags.store.places()) options.resting_sequences = kPlacerSequences;
  WarnBeyondTraining(model->info(), static_cast<size_t>(options.num_ctx));
  PITH_ASSIGN_OR_RETURN(
      std::unique_ptr<ChatState> state,
      ChatState::Create(model, options, {.system = flags.text.system, .control_tokens = !flags.text.no_special}));
  PITH_ASSIGN_OR_RETURN(std::shared_ptr<StoredPrefixes> prefixes, flags.store.Open(*model));
  if (prefixes != nullptr) prefixes->Warm();
  return Chat(flags, std::move(state), std::move(prefixes), std::move(sampler)).Loop(reader);
}

}  // namespace

void AddChat(CLI::App& app, Command& chosen) {
  auto flags = std::make_shared<ChatFlags>();
  CLI::App* command = AddCommand(app, "chat", "Talk to a model over several turns", kChatExamples);
  AddOption(*command, "-p,--prompt", flags->prompt, "First message; further ones are read as ever", "TEXT");
  AddFlag(*command, "--single-turn", flags->single_turn, "-st: end after the first answer");
  AddOption(*command, "-n,--predict,--n-predict", flags->max_tokens,
            "Tokens an answer may have (default 512; -1: no limit)", "N");
  AddOption(*command, "--prompt-cache", flags->prompt_cache,
            "File that keeps the conversation with its cache: written after each answer, taken up at the start "
            "(same model, recipe and format)",
            "FILE");
  AddFlag(*command, "--prompt-cache-ro", flags->prompt_cache_ro, "Use that file without writing it");
  AddFlag(*command, "--no-history", flags->no_history, "Keep no history of what is entered at a terminal");
  AddStoreFlag(*command, flags->store);
  AddPromptFlags(*command, flags->text);
  AddModelFlags(*command, flags->model);
  AddCacheFlags(*command, flags->cache);
  AddSaveFormat(*command, flags->cache.save_format);
  AddSamplerFlags(*command, flags->sampler);
  AddFlag(*command, "--progress", flags->output.progress, "Show progress even where standard error is no terminal");
  OnCommand(*command, [flags, &chosen] {
    chosen.check = [flags] { return CheckChat(*flags); };
    chosen.run = [flags] { return RunChat(*flags); };
  });
}

}  // namespace pith::cli
