// pith chat: several turns over the model's chat template.
//
// The cache holds the conversation; each turn feeds only what is new, which is
// the end of the answer before it (that the model never saw as input), the new
// message and the opening of the next answer.
#include <fmt/format.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <utility>

#include "cli/command.h"
#include "cli/generate.h"
#include "cli/terminal.h"

namespace pith::cli {
namespace {

constexpr const char* kExamples = R"(
Each line is a message; it may also come from a pipe. Ctrl-C stops an answer, and ends the program between answers.
Commands: /stats (what the cache holds), /reset (forget the conversation), /exit.
The system message is pinned: no recipe drops it.

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
  OutputFlags output;
  std::string system;
  int max_tokens = 512;
  std::string prompt_cache;
  bool prompt_cache_ro = false;
};

// The conversation as text, and how much of it the cache has.
class Conversation {
 public:
  Conversation(const HostModel& model, std::string system) : model_(model), system_(std::move(system)) {}

  struct NewText {
    std::string head;  // up to the first message: pinned
    std::string all;   // head included
  };

  // What must be fed before the answer to `message`.
  Result<NewText> Say(std::string message) {
    const bool first = !started_;
    if (first) {
      messages_.clear();
      if (!system_.empty()) messages_.push_back({"system", system_});
      PITH_ASSIGN_OR_RETURN(turn_end_, TurnEnd());
    }
    std::string before;
    if (!first) {
      PITH_ASSIGN_OR_RETURN(before, model_.ApplyChatTemplate(messages_, false));
    }
    messages_.push_back({"user", message});
    PITH_ASSIGN_OR_RETURN(const std::string after, model_.ApplyChatTemplate(messages_, true));
    started_ = true;
    if (first) {
      NewText text{{}, after};
      const size_t at = system_.empty() ? std::string::npos : after.rfind(message);
      if (at != std::string::npos) text.head = after.substr(0, at);
      return text;
    }
    if (after.starts_with(before)) return NewText{{}, turn_end_ + after.substr(before.size())};
    // A template that rewrites what was said before: the new message by itself.
    const ChatMessage alone{"user", std::move(message)};
    PITH_ASSIGN_OR_RETURN(const std::string text, model_.ApplyChatTemplate(std::span(&alone, 1), true));
    return NewText{{}, turn_end_ + text};
  }

  void Answered(std::string answer) { messages_.push_back({"assistant", std::move(answer)}); }

  void Reset() {
    messages_.clear();
    started_ = false;
  }

  // All messages as JSON: [{"role": "user", "content": "..."}, ...]
  std::string Save() const {
    auto json = nlohmann::json::array();
    for (const ChatMessage& message : messages_) json.push_back({{"role", message.role}, {"content", message.content}});
    return json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
  }

  Status Restore(const std::string& text) {
    const nlohmann::json json = nlohmann::json::parse(text, nullptr, false);
    if (!json.is_array() || json.empty()) return Corrupt("it holds no conversation of \"pith chat\"");
    std::vector<ChatMessage> messages;
    for (const nlohmann::json& entry : json) {
      const bool whole = entry.is_object() && entry.contains("role") && entry["role"].is_string() &&
                         entry.contains("content") && entry["content"].is_string();
      if (!whole) return Corrupt("it holds no conversation of \"pith chat\"");
      messages.push_back({entry["role"].get<std::string>(), entry["content"].get<std::string>()});
    }
    const std::string system = messages.front().role == "system" ? messages.front().content : std::string();
    if (!system_.empty() && system != system_) return InvalidArgument("its conversation has another system message");
    PITH_ASSIGN_OR_RETURN(turn_end_, TurnEnd());
    messages_ = std::move(messages);
    system_ = system;
    started_ = true;
    return {};
  }

 private:
  // What the template puts after an answer.
  Result<std::string> TurnEnd() const {
    constexpr std::string_view kMark = "pith7answer";
    const ChatMessage turns[] = {{"user", "a"}, {"assistant", std::string(kMark)}};
    PITH_ASSIGN_OR_RETURN(const std::string text, model_.ApplyChatTemplate(turns, false));
    const size_t at = text.rfind(kMark);
    return at == std::string::npos ? std::string() : text.substr(at + kMark.size());
  }

  const HostModel& model_;
  std::string system_;
  std::vector<ChatMessage> messages_;
  std::string turn_end_;
  bool started_ = false;
};

class Chat {
 public:
  Chat(ChatFlags& flags, std::shared_ptr<HostModel> model, std::unique_ptr<Engine> engine,
       const EngineOptions& options, const SamplerOptions& sampling)
      : flags_(flags),
        model_(std::move(model)),
        engine_(std::move(engine)),
        recipe_(options.recipe),
        num_ctx_(options.num_ctx),
        sampler_(*model_, sampling),
        conversation_(*model_, flags.system) {}

  Result<int> Loop() {
    PITH_RETURN_IF_ERROR(Begin());
    const bool terminal = ::isatty(STDIN_FILENO) != 0;
    if (terminal) fmt::print(stderr, "{}; /stats, /reset, /exit\n", model_->info().description);
    std::string line;
    while (ReadLine(terminal, line)) {
      if (line.ends_with('\r')) line.pop_back();
      if (line.find_first_not_of(" \t") == std::string::npos) continue;
      if (line == "/exit" || line == "/quit") break;
      if (line == "/stats") {
        fmt::print(stderr, "{}\n", KvLine(engine_->stats(), recipe_));
        continue;
      }
      if (line == "/reset") {
        PITH_RETURN_IF_ERROR(Reset());
        continue;
      }
      if (line.starts_with('/') && line.find(' ') == std::string::npos) {
        fmt::print(stderr, "{} is no command; there are /stats, /reset and /exit\n", line);
        continue;
      }
      PITH_RETURN_IF_ERROR(Turn(line));
      // In a pipe nobody is there to go on with: an interrupt ends everything.
      if (Interrupted() && !terminal) return kExitInterrupted;
      ClearInterrupt();
    }
    return kExitOk;
  }

 private:
  static bool ReadLine(bool terminal, std::string& line) {
    const ExitOnInterrupt exit;
    if (terminal) {
      std::fputs("> ", stderr);
      std::fflush(stderr);
    }
    return static_cast<bool>(std::getline(std::cin, line));
  }

  // The conversation of --prompt-cache, or a new one.
  Status Begin() {
    if (!flags_.prompt_cache.empty()) {
      Result<RestoredSequence> restored = engine_->Restore(flags_.prompt_cache);
      if (restored) {
        sequence_ = restored->sequence;
        pending_ = std::move(restored->note.tokens);
        started_ = true;
        const Status status = conversation_.Restore(restored->note.text);
        if (status) return {};
        return MakeError(status.error().code,
                         fmt::format("the session {} cannot be used: {}", flags_.prompt_cache, status.error().message));
      }
      if (restored.error().code != ErrorCode::kNotFound) return tl::unexpected<Error>(restored.error());
    }
    PITH_ASSIGN_OR_RETURN(sequence_, engine_->NewSequence());
    return {};
  }

  // The tokens that the cache does not have yet go along.
  Status Save() {
    if (flags_.prompt_cache.empty() || flags_.prompt_cache_ro) return {};
    return engine_->Save(sequence_, flags_.prompt_cache, {.tokens = pending_, .text = conversation_.Save()});
  }

  Status Reset() {
    engine_->Free(sequence_);
    PITH_ASSIGN_OR_RETURN(sequence_, engine_->NewSequence());
    conversation_.Reset();
    pending_.clear();
    started_ = false;
    return {};
  }

  // Feeds pending_; an interrupt leaves what it did not reach there.
  Status Feed(size_t num_pinned) {
    const auto feed = [this](size_t count, bool pin) -> Status {
      ProgressLine progress("reading", flags_.output.progress);
      const int before = engine_->num_tokens(sequence_);
      const Status status = engine_->Prefill(sequence_, std::span(pending_).first(count), pin, nullptr,
                                             [&progress](size_t done, size_t total) {
                                               progress.Update(static_cast<double>(done), static_cast<double>(total));
                                               return !Interrupted();
                                             });
      const auto fed = status ? count : static_cast<size_t>(engine_->num_tokens(sequence_) - before);
      pending_.erase(pending_.begin(), pending_.begin() + static_cast<std::ptrdiff_t>(fed));
      return status;
    };
    if (num_pinned > 0) PITH_RETURN_IF_ERROR(feed(num_pinned, true));
    return feed(pending_.size(), false);
  }

  Status Turn(const std::string& message) {
    if (const Status valid = RequireUtf8(message, "this line"); !valid) {
      Complain(valid.error());
      return {};
    }
    PITH_ASSIGN_OR_RETURN(const Conversation::NewText text, conversation_.Say(message));
    size_t num_pinned = 0;
    PITH_RETURN_IF_ERROR(Tokenize(text, num_pinned));
    if (static_cast<size_t>(engine_->num_tokens(sequence_)) + pending_.size() >= static_cast<size_t>(num_ctx_)) {
      fmt::print(stderr, "this does not fit into what is left of the context of {} tokens: the conversation starts "
                         "anew (-c gives more room)\n",
                 num_ctx_);
      return Reset();
    }
    const size_t fed = pending_.size();
    const Stopwatch watch;
    if (const Status status = Feed(num_pinned); !status) {
      if (!Interrupted()) return WithAdvice(status.error());
      conversation_.Answered("");
      std::fputs("\n", stderr);
      return {};
    }
    const double prefill_seconds = watch.seconds();
    const Result<Generation> written = Generate(*engine_, sequence_, sampler_, flags_.max_tokens, num_ctx_,
                                                [](std::string_view piece) {
                                                  std::fwrite(piece.data(), 1, piece.size(), stdout);
                                                  std::fflush(stdout);
                                                });
    std::fputs("\n", stdout);
    std::fflush(stdout);
    if (!written) return WithAdvice(written.error());
    const Generation& answer = *written;
    // The last token of an answer that was cut off has not been fed yet.
    const bool cut = answer.stop != StopReason::kEnd && !answer.tokens.empty();
    if (cut) pending_.push_back(answer.tokens.back());
    conversation_.Answered(answer.text);
    fmt::print(stderr, "[{} read ({:.1f}/s), {} written ({:.1f}/s); {}]\n", fed,
               prefill_seconds > 0 ? static_cast<double>(fed) / prefill_seconds : 0.0, answer.tokens.size(),
               answer.decode_tps(), KvLine(engine_->stats(), recipe_));
    return Save();
  }

  // Appends the text's tokens to pending_. The pinned ones are those that the
  // head alone gives, as far as the whole text begins with them.
  Status Tokenize(const Conversation::NewText& text, size_t& num_pinned) {
    if (started_) {
      PITH_ASSIGN_OR_RETURN(const std::vector<int32_t> tokens, model_->Tokenize(text.all, false, true));
      pending_.insert(pending_.end(), tokens.begin(), tokens.end());
      return {};
    }
    PITH_ASSIGN_OR_RETURN(pending_, TokenizePrompt(*model_, text.all));
    if (!text.head.empty()) {
      PITH_ASSIGN_OR_RETURN(const std::vector<int32_t> head, TokenizePrompt(*model_, text.head));
      while (num_pinned < head.size() && num_pinned + 1 < pending_.size() && head[num_pinned] == pending_[num_pinned]) {
        ++num_pinned;
      }
    }
    started_ = true;
    return {};
  }

  ChatFlags& flags_;
  std::shared_ptr<HostModel> model_;
  std::unique_ptr<Engine> engine_;
  Recipe recipe_;
  int num_ctx_;
  HostSampler sampler_;
  Conversation conversation_;
  SequenceId sequence_ = 0;
  std::vector<int32_t> pending_;  // not yet in the cache
  bool started_ = false;
};

Status Check(const ChatFlags& flags) {
  PITH_RETURN_IF_ERROR(flags.model.Check());
  PITH_RETURN_IF_ERROR(flags.cache.Check());
  PITH_RETURN_IF_ERROR(flags.sampler.Check());
  PITH_ASSIGN_OR_RETURN(const Recipe recipe, ParseRecipe(flags.cache.recipe));
  if (NeedsWholePrompt(recipe) || flags.cache.compress == "after") {
    return InvalidArgument("a chat goes on, so there is no whole prompt to compress once: choose a --recipe that evicts, with "
                           "--compress block");
  }
  if (flags.max_tokens < -1) return InvalidArgument("-n takes a number of tokens, or -1 for no limit");
  if (flags.prompt_cache_ro && flags.prompt_cache.empty()) {
    return InvalidArgument("--prompt-cache-ro needs --prompt-cache FILE");
  }
  return RequireUtf8(flags.system, "the system prompt");
}

Result<int> RunChat(ChatFlags& flags) {
  PITH_ASSIGN_OR_RETURN(std::shared_ptr<HostModel> model, LoadModel(flags.model, flags.output));
  if (!model->has_chat_template()) {
    return Unsupported("this model has no chat template; \"pith run --raw\" continues texts with it");
  }
  const SamplerOptions sampling = flags.sampler.Make();
  PITH_ASSIGN_OR_RETURN(EngineOptions options, MakeEngineOptions(flags.cache, flags.model, model->info()));
  options.seed = sampling.seed;
  PITH_ASSIGN_OR_RETURN(std::unique_ptr<Engine> engine, Engine::Create(model, options));
  WarnBeyondTraining(model->info(), static_cast<size_t>(options.num_ctx));
  return Chat(flags, std::move(model), std::move(engine), options, sampling).Loop();
}

}  // namespace

void AddChat(CLI::App& app, Command& chosen) {
  auto flags = std::make_shared<ChatFlags>();
  CLI::App* command = app.add_subcommand("chat", "Talk to a model over several turns");
  command->footer(kExamples);
  command->add_option("--system,--system-prompt", flags->system, "System message, pinned in the cache")
      ->type_name("TEXT");
  command->add_option("-n,--predict,--n-predict", flags->max_tokens,
                      "Tokens an answer may have (default 512; -1: no limit)")
      ->type_name("N");
  command->add_option("--prompt-cache", flags->prompt_cache,
                      "File that keeps the conversation with its cache: written after each answer, taken up at the start "
                      "(same model, recipe and format)")
      ->type_name("FILE");
  command->add_flag("--prompt-cache-ro", flags->prompt_cache_ro, "Use that file without writing it");
  AddModelFlags(*command, flags->model);
  AddCacheFlags(*command, flags->cache);
  AddSamplerFlags(*command, flags->sampler);
  command->add_flag("--progress", flags->output.progress, "Show progress even where standard error is no terminal");
  command->callback([flags, &chosen] {
    chosen.check = [flags] { return Check(*flags); };
    chosen.run = [flags] { return RunChat(*flags); };
  });
}

}  // namespace pith::cli
