// Requests to a scheduler over a small random model, and what their sinks hear.
#ifndef PITH_TESTS_SUPPORT_SCHEDULER_CLIENTS_H_
#define PITH_TESTS_SUPPORT_SCHEDULER_CLIENTS_H_

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <filesystem>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <random>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "engine/engine.h"
#include "host/model.h"
#include "server/scheduler.h"
#include "tests/support/random_model.h"

namespace pith::server::testing {

inline constexpr int32_t kEndToken = 3;

// Tokens of the random model as text: "<17>".
class NumberText final : public TextModel {
 public:
  Result<std::vector<int32_t>> Tokenize(std::string_view, bool, bool) const override {
    return Unsupported("numbers only");
  }
  std::string Piece(int32_t token) const override { return fmt::format("<{}>", token); }
  bool IsEnd(int32_t token) const override { return token == kEndToken; }
  bool has_template() const override { return false; }
  Result<std::string> Render(std::span<const ChatMessage>, bool) const override { return Unsupported("numbers only"); }
};

// Of the process, removed at its end: saved sequences name their model by its file's contents.
class ModelFolder {
 public:
  ModelFolder() : path_(::testing::TempDir() + fmt::format("pith_scheduler_{}", getpid())) {
    std::filesystem::create_directories(path_);
  }
  ~ModelFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  std::string File(const std::string& name) const { return path_ + "/" + name; }

 private:
  std::string path_;
};

inline std::shared_ptr<HostModel> RandomModel(const std::string& architecture = "llama") {
  static const ModelFolder folder;
  static std::map<std::string, std::shared_ptr<HostModel>> models;
  std::shared_ptr<HostModel>& model = models[architecture];
  if (model != nullptr) return model;
  const std::string path = folder.File(architecture + ".gguf");
  const Status made = ::pith::testing::MakeRandomModel(architecture, false, path, 11);
  EXPECT_TRUE(made) << made.error().message;
  auto loaded = HostModel::Load(path, {});
  EXPECT_TRUE(loaded) << loaded.error().message;
  if (loaded) model = *loaded;
  return model;
}

// Remembers everything; Wait() returns when nothing more will come.
class Collector final : public RequestSink {
 public:
  struct Choice {
    std::string text;
    std::vector<int32_t> tokens;
    std::optional<GenerationResult> result;
    std::vector<std::chrono::steady_clock::time_point> times;
  };

  void Started(const RequestUsage& usage, int slot) override {
    const std::lock_guard lock(mutex_);
    EXPECT_FALSE(started_ || over_);
    started_ = true, slot_ = slot, usage_ = usage;
  }
  void Progress(int done, int total) override {
    const std::lock_guard lock(mutex_);
    EXPECT_TRUE(started_ && !over_);
    EXPECT_GT(done, progress_);
    EXPECT_LE(done, total);
    progress_ = done;
  }
  void Text(int choice, std::string text, std::vector<int32_t> tokens, std::vector<TokenLogprobs> logprobs) override {
    const std::lock_guard lock(mutex_);
    EXPECT_TRUE(started_ && !over_);
    Choice& to = choices_[choice];
    EXPECT_FALSE(to.result);
    to.text += text;
    to.tokens.insert(to.tokens.end(), tokens.begin(), tokens.end());
    to.times.push_back(std::chrono::steady_clock::now());
    num_logprobs_ += logprobs.size();
    ++num_texts_;
    changed_.notify_all();
  }
  void Ended(int choice, GenerationResult result) override {
    const std::lock_guard lock(mutex_);
    EXPECT_FALSE(over_ || choices_[choice].result);
    choices_[choice].result = std::move(result);
  }
  void Finished(const RequestUsage& usage, const RequestTimes& times, const CacheReport& cache) override {
    const std::lock_guard lock(mutex_);
    EXPECT_FALSE(over_);
    usage_ = usage, times_ = times, cache_ = cache;
    over_ = true;
    changed_.notify_all();
  }
  void Failed(const Error& error) override {
    const std::lock_guard lock(mutex_);
    EXPECT_FALSE(over_);
    error_ = error, over_ = true;
    changed_.notify_all();
  }

  bool Wait(double seconds = 120) {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, std::chrono::duration<double>(seconds), [this] { return over_; });
  }
  bool WaitForTexts(int count, double seconds = 120) {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, std::chrono::duration<double>(seconds),
                             [&] { return over_ || num_texts_ >= count; });
  }
  int progress() {
    const std::lock_guard lock(mutex_);
    return progress_;
  }
  bool over() {
    const std::lock_guard lock(mutex_);
    return over_;
  }
  int num_calls() {
    const std::lock_guard lock(mutex_);
    return num_texts_ + progress_ + (over_ ? 1 : 0) + (started_ ? 1 : 0);
  }

  const std::vector<int32_t>& tokens(int choice = 0) { return choices_[choice].tokens; }

  std::mutex mutex_;
  std::condition_variable changed_;
  bool started_ = false, over_ = false;
  int slot_ = -1, progress_ = 0, num_texts_ = 0;
  size_t num_logprobs_ = 0;
  RequestUsage usage_;
  RequestTimes times_;
  CacheReport cache_;
  std::optional<Error> error_;
  std::map<int, Choice> choices_;
};

struct Server {
  std::shared_ptr<Engine> engine;
  std::unique_ptr<Scheduler> scheduler;
};

struct ServerSetup {
  std::string recipe = "full";
  size_t budget_bytes = size_t{16} << 20;
  int num_ctx = 512;
  int block_tokens = 64;
  std::string architecture = "llama";
  SchedulerOptions options = {};
};

inline Server Make(const ServerSetup& setup) {
  Server server;
  EngineOptions options;
  options.num_ctx = setup.num_ctx;
  options.num_threads = 1;
  options.adapt_threads = false;
  options.budget_bytes = setup.budget_bytes;
  options.block_tokens = setup.block_tokens;
  options.recipe = *ParseRecipe(setup.recipe);
  const bool after = setup.options.compress_after || NeedsWholePrompt(options.recipe);
  options.compress = after ? CompressMode::kAfter : CompressMode::kBlock;
  ReserveSequences(setup.options, &options);
  auto engine = Engine::Create(RandomModel(setup.architecture), options);
  EXPECT_TRUE(engine) << engine.error().message;
  if (!engine) return server;
  server.engine = std::move(*engine);
  auto scheduler = Scheduler::Create(server.engine, std::make_shared<NumberText>(), setup.options);
  EXPECT_TRUE(scheduler) << scheduler.error().message;
  if (scheduler) server.scheduler = std::move(*scheduler);
  return server;
}

inline std::vector<int32_t> Prompt(size_t count, unsigned seed) {
  std::mt19937 random(seed);
  std::vector<int32_t> tokens(count);
  for (int32_t& token : tokens) token = 4 + static_cast<int32_t>(random() % 120);
  return tokens;
}

inline Request Greedy(std::vector<int32_t> prompt, int max_tokens) {
  Request request;
  request.prompt = std::move(prompt);
  request.sampling.temperature = 0;
  request.generation.max_tokens = max_tokens;
  return request;
}

inline std::shared_ptr<Collector> Send(Server& server, Request request, RequestId* id = nullptr) {
  auto sink = std::make_shared<Collector>();
  const Result<RequestId> sent = server.scheduler->Submit(std::move(request), sink);
  EXPECT_TRUE(sent) << sent.error().message;
  if (sent && id != nullptr) *id = *sent;
  return sink;
}

// How far the tokens are from what the model likes best after the prompt alone: the largest lead of the likeliest token
// over the one that was taken. Rounding leaves nearly nothing; another text's tokens leave much.
inline double WorstLead(const std::vector<int32_t>& prompt, const std::vector<int32_t>& tokens,
                        const std::string& recipe = "full") {
  EngineOptions options;
  options.num_ctx = 1024;
  options.num_threads = 1;
  options.recipe = *ParseRecipe(recipe);
  auto engine = Engine::Create(RandomModel(), options);
  EXPECT_TRUE(engine);
  const SequenceId id = *(*engine)->NewSequence();
  EXPECT_TRUE((*engine)->Prefill(id, prompt));
  double worst = 0;
  for (const int32_t token : tokens) {
    const std::span<const float> logits = (*engine)->logits(id);
    worst = std::max<double>(worst, *std::ranges::max_element(logits) - logits[static_cast<size_t>(token)]);
    EXPECT_TRUE((*engine)->Decode(id, token));
  }
  return worst;
}

inline constexpr double kRounding = 0.02;

// Everything idle and nothing kept: what the engine holds then.
inline size_t IdleBytes(Server& server) {
  for (int slot = 0; slot < 64; ++slot) (void)server.scheduler->EraseSlot(slot);
  return server.scheduler->stats().kv.used_bytes;
}

}  // namespace pith::server::testing

#endif  // PITH_TESTS_SUPPORT_SCHEDULER_CLIENTS_H_
