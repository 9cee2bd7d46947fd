#include "server/answer.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include <fmt/format.h>

#include <nlohmann/json.hpp>
#include "base/stopwatch.h"

namespace pith::server {
namespace {

// Prompts of one request that the scheduler has at once; the others come when these are done.
constexpr int kMostAtOnce = 8;

// The state of one answer. Everything but its beginning happens on the connections' thread.
class Answer : public std::enable_shared_from_this<Answer> {
 public:
  Answer(const Call& call, ChatRequest request, std::unique_ptr<AnswerWriter> writer)
      : lease_(call.lease),
        context_(call.context),
        dialect_(call.dialect),
        exchange_(call.exchange),
        writer_(std::move(writer)),
        base_(std::move(request.base)),
        prompts_(std::move(request.prompts)),
        prompt_text_(std::move(request.prompt_text)),
        tools_(request.uses_tools() ? request.tools : std::vector<ToolSpec>()),
        stops_(base_.generation.stops),
        stream_(request.stream),
        tells_timings_(request.stream && request.timings_per_token),
        tells_progress_(request.stream && request.returns_progress && prompts_.size() == 1),
        ping_seconds_(request.stream ? request.ping_seconds : -1),
        is_evict_off_(request.is_evict_off),
        num_choices_(base_.num_choices),
        num_prompts_(static_cast<int>(prompts_.size())),
        filters_(static_cast<size_t>(num_prompts_ * num_choices_)),
        sent_tokens_(filters_.size()) {
    for (const auto& prompt : prompts_) longest_ = std::max(longest_, prompt.size());
  }

  static void Begin(const std::shared_ptr<Answer>& self);

  template <typename Task>
  void Post(Task task) {
    exchange_->Post([self = shared_from_this(), task = std::move(task)]() mutable {
      if (!self->over_) task(*self);
    });
  }

  void Started(const RequestUsage& usage, int slot, SteadyClock::time_point now) {
    if (num_started_++ == 0) started_ = now;
    totals_.usage.prompt_tokens += usage.prompt_tokens;
    totals_.usage.cached_tokens += usage.cached_tokens;
    if (totals_.slot < 0) totals_.slot = slot;
    Progress(usage.cached_tokens, now);
  }

  void Progress(int done, SteadyClock::time_point now) {
    const RequestUsage& usage = totals_.usage;
    if (!tells_progress_ || done < last_progress_.value_or(-1) + 1) return;
    last_progress_ = done;
    BeginOnce();
    writer_->Progress({.total = usage.prompt_tokens,
                       .cached = usage.cached_tokens,
                       .done = done,
                       .seconds = SecondsBetween(started_, now)});
  }

  void PromptLogprobs(int prompt, std::vector<TokenLogprobs> logprobs) {
    writer_->PromptLogprobs(prompt, std::move(logprobs));
  }
  void Embedding(int prompt, std::vector<float> embedding) { writer_->Embedding(prompt, std::move(embedding)); }

  void Text(int prompt, Delta delta, SteadyClock::time_point now) {
    if (!stream_) return;
    if (!first_token_) first_token_ = now;
    delta.choice += prompt * num_choices_;
    const auto choice = static_cast<size_t>(delta.choice);
    if (!tools_.empty()) delta.text = filters_[choice].Push(delta.text);
    sent_tokens_[choice] += delta.tokens.size();
    if (delta.text.empty() && delta.tokens.empty()) return;
    if (tells_timings_) {
      delta.so_far = totals_;
      delta.so_far->usage.completion_tokens = static_cast<int>(sent_tokens_[choice]);
      delta.so_far->times = {.queued = 0,
                             .prompt = SecondsBetween(started_, *first_token_),
                             .generation = SecondsBetween(*first_token_, now)};
    }
    BeginOnce();
    writer_->Text(std::move(delta));
  }

  void Ended(int prompt, int choice, GenerationResult result) {
    ChoiceEnd end;
    end.choice = prompt * num_choices_ + choice;
    end.stop = result.stop;
    end.num_tokens = static_cast<int>(result.tokens.size());
    if (result.stop == StopReason::kStopString) end.stop_string = StopOf(result);
    if (choice == 0 && !prompt_text_.empty()) Remember(result.tokens);
    const auto at = static_cast<size_t>(end.choice);
    if (stream_) {
      if (!tools_.empty()) {
        ToolAnswer answer = filters_[at].Finish(tools_);
        end.text = std::move(answer.content);
        end.calls = std::move(answer.calls);
      }
      const size_t sent = std::min(sent_tokens_[at], result.tokens.size());
      end.tokens.assign(result.tokens.begin() + static_cast<std::ptrdiff_t>(sent), result.tokens.end());
      if (sent < result.logprobs.size()) {
        end.logprobs.assign(result.logprobs.begin() + static_cast<std::ptrdiff_t>(sent), result.logprobs.end());
      }
    } else {
      end.text = std::move(result.text);
      if (!tools_.empty()) {
        ToolAnswer answer = ParseToolCalls(end.text, tools_);
        end.text = std::move(answer.content);
        end.calls = std::move(answer.calls);
      }
      end.tokens = std::move(result.tokens);
      end.logprobs = std::move(result.logprobs);
    }
    end.is_last = ++num_ended_ == num_prompts_ * num_choices_;
    BeginOnce();
    writer_->Ended(std::move(end));
  }

  void Finished(const RequestUsage& usage, const RequestTimes& times, const CacheReport& cache) {
    totals_.usage.completion_tokens += usage.completion_tokens;
    cached_tokens_ += usage.cached_tokens;
    totals_.times.queued = std::max(totals_.times.queued, times.queued);
    totals_.times.prompt += times.prompt;
    totals_.times.generation = std::max(totals_.times.generation, times.generation);
    if (++num_finished_ == 1)
      totals_.cache = cache;
    else
      totals_.cache.used_bytes += cache.used_bytes;
    if (num_finished_ < num_prompts_) return SubmitNext();
    totals_.usage.cached_tokens = cached_tokens_;  // what was thought to be there at the start may have been read
    over_ = true;
    BeginOnce();
    writer_->Finished(totals_);
  }

  void Failed(const Error& error) {
    over_ = true;
    for (const RequestId id : ids_) context_.scheduler->Cancel(id);
    writer_->Failed(error, ErrorOf(error), begun_);
  }

 private:
  // Headers go out with the first thing that there is to say, so that errors before it have a status of their own.
  void BeginOnce() {
    last_said_ = SteadyClock::now();
    if (std::exchange(begun_, true)) return;
    RequestUsage usage = totals_.usage;
    for (size_t i = static_cast<size_t>(num_started_); i < prompts_.size(); ++i)
      usage.prompt_tokens += static_cast<int>(prompts_[i].size());
    writer_->Begin(usage, totals_.slot);
  }

  void PingAfter(double seconds);

  // The conversation so far, for its next turn.
  void Remember(const std::vector<int32_t>& written) {
    std::string text = prompt_text_;
    for (const int32_t token : written) text += context_.model.text->Piece(token);
    std::vector<int32_t> tokens = prompts_.front();
    tokens.insert(tokens.end(), written.begin(), written.end());
    context_.memory.Add(base_.tenant, std::move(text), std::move(tokens));
  }

  // The stop string that the text ends before: it begins the tokens' text behind it.
  std::string StopOf(const GenerationResult& result) const {
    std::string all;
    for (const int32_t token : result.tokens) all += context_.model.text->Piece(token);
    const std::string_view behind = std::string_view(all).substr(std::min(result.text.size(), all.size()));
    for (const std::string& stop : stops_) {
      if (behind.starts_with(stop)) return stop;
    }
    for (const std::string& stop : stops_) {
      if (all.find(stop) != std::string::npos) return stop;
    }
    return {};
  }

  HttpResponse ErrorOf(const Error& error) const;
  Result<RequestId> SubmitOne(int prompt);
  void SubmitNext();

  std::shared_ptr<const void> lease_;  // goes last
  ServerContext& context_;
  Dialect dialect_;
  std::shared_ptr<HttpExchange> exchange_;
  std::unique_ptr<AnswerWriter> writer_;
  Request base_;  // of all prompts
  std::vector<std::vector<int32_t>> prompts_;
  std::string prompt_text_;  // of the one prompt, where it was messages
  std::vector<ToolSpec> tools_;
  std::vector<std::string> stops_;
  bool stream_, tells_timings_, tells_progress_;
  int ping_seconds_;
  bool is_evict_off_;
  int num_choices_, num_prompts_;
  size_t longest_ = 0;
  std::vector<ToolFilter> filters_;  // of each choice
  std::vector<size_t> sent_tokens_;  // of each choice
  std::vector<RequestId> ids_;
  AnswerTotals totals_;
  int num_submitted_ = 0, num_started_ = 0, num_ended_ = 0, num_finished_ = 0;
  std::optional<int> last_progress_;
  SteadyClock::time_point started_, last_said_ = SteadyClock::now();
  std::optional<SteadyClock::time_point> first_token_;
  int cached_tokens_ = 0;  // of prompts whose answers are finished
  bool begun_ = false, over_ = false;
};

// One prompt's events, on the engine's thread: handed on.
class Sink final : public RequestSink {
 public:
  Sink(std::shared_ptr<Answer> answer, int prompt) : answer_(std::move(answer)), prompt_(prompt) {}

  void Started(const RequestUsage& usage, int slot) override {
    answer_->Post([usage, slot, now = SteadyClock::now()](Answer& answer) { answer.Started(usage, slot, now); });
  }
  void Progress(int prompt_done, int) override {
    answer_->Post([prompt_done, now = SteadyClock::now()](Answer& answer) { answer.Progress(prompt_done, now); });
  }
  void PromptLogprobs(std::vector<TokenLogprobs> logprobs) override {
    answer_->Post([prompt = prompt_, logprobs = std::move(logprobs)](Answer& answer) mutable {
      answer.PromptLogprobs(prompt, std::move(logprobs));
    });
  }
  void Embedding(std::vector<float> embedding) override {
    answer_->Post([prompt = prompt_, embedding = std::move(embedding)](Answer& answer) mutable {
      answer.Embedding(prompt, std::move(embedding));
    });
  }
  void Text(int choice, std::string text, std::vector<int32_t> tokens, std::vector<TokenLogprobs> logprobs) override {
    Delta delta{choice, std::move(text), std::move(tokens), std::move(logprobs)};
    answer_->Post([prompt = prompt_, delta = std::move(delta), now = SteadyClock::now()](Answer& answer) mutable {
      answer.Text(prompt, std::move(delta), now);
    });
  }
  void Ended(int choice, GenerationResult result) override {
    answer_->Post([prompt = prompt_, choice, result = std::move(result)](Answer& answer) mutable {
      answer.Ended(prompt, choice, std::move(result));
    });
  }
  void Finished(const RequestUsage& usage, const RequestTimes& times, const CacheReport& cache) override {
    answer_->Post([usage, times, cache](Answer& answer) { answer.Finished(usage, times, cache); });
  }
  void Failed(const Error& error) override {
    answer_->Post([error](Answer& answer) { answer.Failed(error); });
  }

 private:
  std::shared_ptr<Answer> answer_;
  int prompt_;
};

HttpResponse LengthError(const ServerContext& context, Dialect dialect, const Error& error, size_t num_tokens,
                         bool is_evict_off) {
  const bool by_length =
      error.code == ErrorCode::kOutOfContext || (error.code == ErrorCode::kOutOfBudget && is_evict_off);
  if (!by_length || dialect != Dialect::kOpenAi) return ErrorResponse(dialect, error, context.draining);
  return ErrorResponse(
      dialect, 400, "exceed_context_size_error", error.message,
      {{"code", "context_length_exceeded"}, {"n_prompt_tokens", num_tokens}, {"n_ctx", context.model.num_ctx}});
}

HttpResponse Answer::ErrorOf(const Error& error) const {
  return LengthError(context_, dialect_, error, longest_, is_evict_off_);
}

// On a worker thread, before anything else knows this answer.
void Answer::Begin(const std::shared_ptr<Answer>& self) {
  const int count = self->num_submitted_ = std::min(self->num_prompts_, kMostAtOnce);
  for (int prompt = 0; prompt < count; ++prompt) {
    const Result<RequestId> id = self->SubmitOne(prompt);
    if (!id) {
      self->Post([error = id.error()](Answer& answer) { answer.Failed(error); });
      return;
    }
    // The client may be gone already: then it is cancelled at once.
    self->Post([id = *id](Answer& answer) { answer.ids_.push_back(id); });
  }
  self->PingAfter(self->ping_seconds_);
}

void Answer::PingAfter(double seconds) {
  if (ping_seconds_ <= 0) return;
  exchange_->PostAfter(seconds, [weak = weak_from_this()] {
    const std::shared_ptr<Answer> self = weak.lock();
    if (self == nullptr || self->over_) return;
    const double left = self->ping_seconds_ - SecondsBetween(self->last_said_, SteadyClock::now());
    if (left > 0) return self->PingAfter(left);
    const std::string ping = self->writer_->Ping();
    if (ping.empty()) return;
    self->BeginOnce();
    self->exchange_->Write(ping);
    self->PingAfter(self->ping_seconds_);
  });
}

Result<RequestId> Answer::SubmitOne(int prompt) {
  Request one = base_;
  one.prompt = prompts_[static_cast<size_t>(prompt)];
  PITH_ASSIGN_OR_RETURN(const RequestId id, context_.scheduler->Submit(std::move(one), std::make_shared<Sink>(
                                                                                          shared_from_this(), prompt)));
  exchange_->OnLeave([scheduler = context_.scheduler, id] { scheduler->Cancel(id); });
  return id;
}

// One prompt is done: the next.
void Answer::SubmitNext() {
  while (num_submitted_ < num_prompts_ && num_submitted_ - num_finished_ < kMostAtOnce) {
    const Result<RequestId> id = SubmitOne(num_submitted_);
    if (!id && id.error().code == ErrorCode::kBusy && num_submitted_ > num_finished_) return;  // with the next one
    if (!id) return Failed(id.error());
    ++num_submitted_;
    ids_.push_back(*id);
  }
}

}  // namespace

void StartAnswer(const Call& call, ChatRequest request, std::unique_ptr<AnswerWriter> writer) {
  Answer::Begin(std::make_shared<Answer>(call, std::move(request), std::move(writer)));
}

HttpResponse LengthAwareError(const ServerContext& context, Dialect dialect, const ChatRequest& request,
                              const Error& error) {
  size_t longest = request.least_tokens;
  for (const auto& prompt : request.prompts) longest = std::max(longest, prompt.size());
  return LengthError(context, dialect, error, longest, request.is_evict_off);
}

Json KvJson(const CacheReport& cache) {
  Json spans = Json::array();
  for (const auto& [from, to] : cache.evicted_spans) spans.push_back(Json::array({from, to}));
  Json kv = {{"budget_bytes", cache.budget_bytes},
             {"used_bytes", cache.used_bytes},
             {"kept_fraction", cache.kept_fraction},
             {"evicted_tokens", cache.evicted_tokens},
             {"evicted_spans", std::move(spans)},
             {"recipe", cache.recipe},
             {"compress", cache.compress == CompressMode::kAfter ? "after" : "block"},
             {"format", cache.format},
             {"slot", cache.slot}};
  if (cache.held_heads.empty()) return kv;
  Json map = Json::array();
  for (const uint16_t heads : cache.held_heads) map.push_back(100 * heads / std::max(cache.num_heads, 1));
  kv["map"] = std::move(map);
  if (cache.layers.empty()) return kv;
  // A character for each position, since there are many: tenths of the layer's heads that hold it, 'a' for all.
  Json layers = Json::array();
  for (const CacheReport::Layer& layer : cache.layers) {
    std::string held;
    for (const uint8_t heads : layer.held) {
      const int tenths = (10 * heads + layer.num_heads - 1) / std::max(layer.num_heads, 1);
      held += tenths >= 10 ? 'a' : static_cast<char>('0' + tenths);
    }
    layers.push_back({{"heads", layer.num_heads}, {"entries", layer.entries}, {"held", std::move(held)}});
  }
  kv["layers"] = std::move(layers);
  return kv;
}

Json TimingsJson(const AnswerTotals& totals) {
  const int read = totals.usage.prompt_tokens - totals.usage.cached_tokens;
  const int written = totals.usage.completion_tokens;
  const auto per_second = [](int count, double seconds) { return seconds > 0 ? count / seconds : 0.0; };
  const auto per_token = [](double seconds, int count) { return count > 0 ? 1000 * seconds / count : 0.0; };
  const RequestTimes& times = totals.times;
  return {{"cache_n", totals.usage.cached_tokens},
          {"prompt_n", read},
          {"prompt_ms", 1000 * times.prompt},
          {"prompt_per_token_ms", per_token(times.prompt, read)},
          {"prompt_per_second", per_second(read, times.prompt)},
          {"predicted_n", written},
          {"predicted_ms", 1000 * times.generation},
          {"predicted_per_token_ms", per_token(times.generation, written)},
          {"predicted_per_second", per_second(written, times.generation)}};
}

Json ProgressJson(const PromptProgress& progress) {
  return {{"total", progress.total},
          {"cache", progress.cached},
          {"processed", progress.done},
          {"time_ms", std::llround(1e3 * progress.seconds)}};
}

const char* FinishReason(const ChoiceEnd& end) {
  if (!end.calls.empty()) return "tool_calls";
  return end.stop == StopReason::kEnd || end.stop == StopReason::kStopString ? "stop" : "length";
}

}  // namespace pith::server
