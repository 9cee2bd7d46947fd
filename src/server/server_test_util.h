// A scheduler that plays a script and an exchange that remembers, for tests of the protocols without a model or a
// socket.
#ifndef PITH_SERVER_SERVER_TEST_UTIL_H_
#define PITH_SERVER_SERVER_TEST_UTIL_H_

#include <algorithm>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include "server/json_reader.h"
#include "server/protocol.h"
#include "server/scheduler.h"
#include "server/server.h"
#include "session/session_test_util.h"

namespace pith::testing {

// Answers every request at once with `text`, a token a byte, in pieces of three.
class FakeScheduler final : public server::Scheduler {
 public:
  Result<server::RequestId> Submit(server::Request request, std::shared_ptr<server::RequestSink> sink) override {
    if (refusal) return tl::unexpected<Error>(*refusal);
    requests.push_back(request);
    if (holds) {
      held.emplace_back(std::move(request), std::move(sink));
      return ++last_;
    }
    Play(request, sink);
    return ++last_;
  }
  // Answers what was held.
  void GoOn() {
    for (const auto& [request, sink] : std::exchange(held, {})) Play(request, sink);
  }
  void Play(const server::Request& request, const std::shared_ptr<server::RequestSink>& sink) {
    const auto num_prompt = static_cast<int>(request.prompt.size());
    server::RequestUsage usage{.prompt_tokens = num_prompt, .cached_tokens = cached_tokens};
    if (failure) return sink->Failed(*failure);
    sink->Started(usage, 0);
    for (const int done : reads_in) sink->Progress(done, num_prompt);
    if (request.pooling != EmbeddingPooling::kNone) sink->Embedding({0.6f, 0.0f, 0.8f});
    if (request.prompt_logprobs >= 0) {
      std::vector<TokenLogprobs> logprobs;
      for (int i = 1; i < num_prompt; ++i) logprobs.push_back({{request.prompt[static_cast<size_t>(i)], -1.5f}, {}});
      sink->PromptLogprobs(std::move(logprobs));
    }
    for (int choice = 0; choice < request.num_choices; ++choice) {
      GenerationResult result = Write(request.generation);
      for (size_t at = 0; at < result.text.size(); at += 3) {
        const std::string part = result.text.substr(at, 3);
        std::vector<TokenLogprobs> logprobs;
        if (request.generation.num_logprobs >= 0) logprobs = Logprobs(part);
        sink->Text(choice, part, std::vector<int32_t>(part.begin(), part.end()), logprobs);
      }
      usage.completion_tokens += static_cast<int>(result.tokens.size());
      sink->Ended(choice, std::move(result));
    }
    sink->Finished(usage, {.queued = 0.1, .prompt = 0.5, .generation = 0.25}, cache);
  }
  void Cancel(server::RequestId request) override { cancelled.push_back(request); }
  server::SchedulerStats stats() override { return statistics; }
  Result<server::SavedSlot> SaveSlot(int, const std::string& file_name) override {
    files.push_back(file_name);
    return server::SavedSlot{.tokens = 7, .bytes = 70, .seconds = 0.5};
  }
  Result<server::SavedSlot> RestoreSlot(int, const std::string& file_name) override {
    if (std::ranges::find(files, file_name) == files.end()) return NotFound("there is no such file");
    return server::SavedSlot{.tokens = 7, .bytes = 70, .seconds = 0.5};
  }
  Result<int> EraseSlot(int) override { return 7; }
  Result<server::SlotToken> TokenInSlot(int, int position, const std::string&) override {
    if (position > 5) return InvalidArgument("it has not been read");
    return server::SlotToken{
        .num_tokens = 6, .recipe = "fake", .layers = {{{.held = true, .score = 0.5F}, {}}, {{}, {}}}};
  }
  void Drain(double) override {}

  std::string text = "Hello";
  std::optional<Error> refusal;  // of Submit
  std::optional<Error> failure;  // told to the sink
  bool holds = false;            // requests wait for GoOn()
  std::vector<std::pair<server::Request, std::shared_ptr<server::RequestSink>>> held;
  std::vector<int> reads_in;  // tokens of a prompt after each piece
  int cached_tokens = 2;
  server::CacheReport cache{.budget_bytes = 1000,
                            .used_bytes = 400,
                            .kept_fraction = 0.5,
                            .evicted_tokens = 3,
                            .evicted_spans = {{4, 7}},
                            .held_heads = {},
                            .layers = {},
                            .format = "f16",
                            .recipe = "pith"};
  server::SchedulerStats statistics;
  std::vector<server::Request> requests;
  std::vector<server::RequestId> cancelled;
  std::vector<std::string> files;

 private:
  static std::vector<TokenLogprobs> Logprobs(const std::string& part) {
    std::vector<TokenLogprobs> out;
    for (const char c : part) out.push_back({{c, -0.5f}, {{c, -0.5f}, {'x', -2.0f}}});
    return out;
  }

  GenerationResult Write(const GeneratorOptions& options) const {
    GenerationResult result;
    std::string written = text;
    if (options.max_tokens >= 0 && written.size() > static_cast<size_t>(options.max_tokens)) {
      written.resize(static_cast<size_t>(options.max_tokens));
      result.stop = StopReason::kLength;
    }
    result.text = written;
    for (const std::string& stop : options.stops) {
      const size_t at = written.find(stop);
      if (at == std::string::npos) continue;
      result.text = written.substr(0, at);
      written.resize(at + stop.size());
      result.stop = StopReason::kStopString;
    }
    result.tokens.assign(written.begin(), written.end());
    if (options.num_logprobs >= 0) result.logprobs = Logprobs(written);
    return result;
  }

  server::RequestId last_ = 0;
};

// Everything at once, on the caller's thread.
class FakeExchange final : public server::HttpExchange {
 public:
  void Send(server::HttpResponse response) override {
    ++num_answers;
    status = response.status;
    headers = response.headers;
    body = std::move(response.body);
    over_ = true;
  }
  void BeginStream(std::string type) override {
    ++num_answers;
    status = 200;
    stream_type = std::move(type);
  }
  void Write(std::string data) override { body += data; }
  void EndStream() override { over_ = true; }
  void Abort() override { over_ = true; }
  void Post(std::function<void()> task) override {
    if (!over_) task();
  }
  void PostAfter(double seconds, std::function<void()> task) override {
    later_seconds = seconds;
    later = std::move(task);
  }
  void OnLeave(std::function<void()> callback) override {
    if (over_)
      callback();
    else
      leaves.push_back(std::move(callback));
  }
  bool over() const { return over_; }
  std::string Header(const std::string& name) const {
    for (const auto& [key, value] : headers) {
      if (key == name) return value;
    }
    return {};
  }

  int num_answers = 0;
  int status = 0;
  std::string stream_type, body;
  std::vector<std::pair<std::string, std::string>> headers;
  std::vector<std::function<void()>> leaves;
  double later_seconds = 0;
  std::function<void()> later;

 private:
  bool over_ = false;
};

// The routes over these.
struct FakeServer {
  FakeServer()
      : scheduler(std::make_shared<FakeScheduler>()), router(catalog, front, {}, {.most = 3, .bytes = 64 << 10}) {
    context.scheduler = scheduler;
    context.saves_slots = true;
    server::ServedModel& model = context.model;
    model.id = "bytes";
    model.text = std::make_shared<ByteModel>();
    model.info.num_vocab = kNumVocab;
    model.info.architecture = "llama";
    model.info.description = "llama 1B Q4_1";
    model.num_ctx = 4096;
    model.most_token_bytes = kControl[1].size();
    model.num_slots = 2;
    model.recipe.text = "pith";
    model.parse_budget = [](const std::string& text) -> Result<size_t> {
      if (text == "1KiB") return size_t{1024};
      return InvalidArgument("it is none");
    };
    catalog.AddLoaded(context);
  }
  // What was to be done later holds the exchange itself.
  ~FakeServer() {
    for (const std::shared_ptr<FakeExchange>& exchange : exchanges) exchange->later = nullptr, exchange->leaves.clear();
  }
  FakeServer(const FakeServer&) = delete;
  FakeServer& operator=(const FakeServer&) = delete;

  std::shared_ptr<FakeExchange> Handle(std::string method, std::string path, std::string body = "",
                                       std::vector<std::pair<std::string, std::string>> headers = {}) {
    server::HttpRequest request{.method = std::move(method),
                                .path = std::move(path),
                                .query = {},
                                .body = std::move(body),
                                .headers = std::move(headers)};
    if (const size_t at = request.path.find('?'); at != std::string::npos) {
      request.query = request.path.substr(at + 1);
      request.path.resize(at);
    }
    auto exchange = std::make_shared<FakeExchange>();
    exchanges.push_back(exchange);
    router.Handle(std::move(request), exchange);
    return exchange;
  }

  std::vector<std::shared_ptr<FakeExchange>> exchanges;
  std::shared_ptr<FakeScheduler> scheduler;
  server::ServerContext context, front;
  server::ModelCatalog catalog;
  server::Router router;
};

// Bodies of requests and of their answers.
inline constexpr const char* kHi = R"("messages":[{"role":"user","content":"Hi"}])";

inline std::string With(const std::string& more) {
  return std::string("{") + kHi + (more.empty() ? "" : "," + more) + "}";
}

inline server::Json Body(const FakeExchange& exchange) { return server::Json::parse(exchange.body); }

// The data of server-sent events, or lines of NDJSON.
inline std::vector<server::Json> Parts(const std::string& text) {
  std::vector<server::Json> parts;
  for (size_t from = 0; from < text.size();) {
    const size_t end = std::min(text.find('\n', from), text.size());
    std::string line = text.substr(from, end - from);
    from = end + 1;
    if (line.starts_with("data: ")) line.erase(0, 6);
    if (line.starts_with("{")) parts.push_back(server::Json::parse(line));
  }
  return parts;
}

}  // namespace pith::testing

#endif  // PITH_SERVER_SERVER_TEST_UTIL_H_
