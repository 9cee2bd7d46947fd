// Rows of prompts: hidden states and log probabilities of every token, alone and beside other sequences, and what the
// scheduler makes of them. The reference is libllama's own context.
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <condition_variable>
#include <filesystem>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "engine/engine.h"
#include "host/embedder.h"
#include "host/embedding_context.h"
#include "host/llama_util.h"
#include "host/model.h"
#include "server/embedding_scheduler.h"
#include "server/scheduler.h"
#include "tests/support/random_model.h"

namespace pith::testing {
namespace {

std::shared_ptr<HostModel> Load(const std::string& architecture, ModelUse use = ModelUse::kText) {
  const std::string path = ::testing::TempDir() + fmt::format("pith_rows_{}_{}.gguf", architecture, getpid());
  const Status made = MakeRandomModel(architecture, false, path, 5);
  EXPECT_TRUE(made) << made.error().message;
  HostModelOptions options;
  options.use = use;
  auto model = HostModel::Load(path, options);
  EXPECT_TRUE(model) << model.error().message;
  std::error_code ignored;
  std::filesystem::remove(path, ignored);
  return model ? *model : nullptr;
}

std::vector<int32_t> Tokens(size_t count, int seed) {
  std::vector<int32_t> tokens;
  for (size_t i = 0; i < count; ++i) tokens.push_back(4 + static_cast<int32_t>((i * 31 + i * i * 7) % 97 + seed) % 120);
  return tokens;
}

// [tokens.size(), hidden_dim] by libllama alone.
std::vector<float> Reference(const HostModel& model, const std::vector<int32_t>& tokens) {
  llama_context_params params = llama_context_default_params();
  params.n_ctx = params.n_batch = params.n_ubatch = 512;
  params.n_threads = params.n_threads_batch = 1;
  params.embeddings = true;
  params.pooling_type = LLAMA_POOLING_TYPE_NONE;
  const LlamaContextPtr context(llama_init_from_model(model.handle(), params));
  Batch batch(512);
  for (size_t i = 0; i < tokens.size(); ++i) batch.Add(tokens[i], static_cast<int32_t>(i), 0, true);
  EXPECT_EQ(llama_decode(context.get(), batch.get()), 0);
  std::vector<float> rows;
  for (size_t i = 0; i < tokens.size(); ++i) {
    const float* row = llama_get_embeddings_ith(context.get(), static_cast<int32_t>(i));
    rows.insert(rows.end(), row, row + model.info().hidden_dim);
  }
  return rows;
}

double Cosine(std::span<const float> a, std::span<const float> b) {
  double product = 0, of_a = 0, of_b = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    product += static_cast<double>(a[i]) * static_cast<double>(b[i]);
    of_a += static_cast<double>(a[i]) * static_cast<double>(a[i]);
    of_b += static_cast<double>(b[i]) * static_cast<double>(b[i]);
  }
  return product / std::sqrt(of_a * of_b);
}

std::shared_ptr<Engine> MakeEngine(const std::shared_ptr<HostModel>& model, int max_sequences) {
  EngineOptions options;
  options.num_ctx = 256;
  options.num_threads = 1;
  options.block_tokens = 64;
  options.max_sequences = max_sequences;
  options.resting_sequences = 4;
  options.recipe = *ParseRecipe("full");
  auto engine = Engine::Create(model, options);
  EXPECT_TRUE(engine) << engine.error().message;
  return std::move(*engine);
}

TEST(ModelRows, HiddenStatesAreLibllamas) {
  for (const char* architecture : {"llama", "qwen3", "gemma3", "lfm2"}) {
    const std::shared_ptr<HostModel> model = Load(architecture);
    ASSERT_NE(model, nullptr);
    const std::vector<int32_t> tokens = Tokens(100, 1), other = Tokens(20, 9);
    const std::vector<float> expected = Reference(*model, tokens);
    const std::shared_ptr<Engine> engine = MakeEngine(model, 2);
    const SequenceId id = *engine->NewSequence(), beside = *engine->NewSequence();
    std::vector<float> hidden, logits;
    for (size_t at = 0; at < tokens.size(); at += 25) {
      std::vector<StepItem> items = {
          {.sequence = id, .tokens = std::span(tokens).subspan(at, 25), .all_logits = &logits, .all_hidden = &hidden}};
      if (at == 25) items.push_back({.sequence = beside, .tokens = other});
      std::vector<Status> statuses(items.size());
      engine->Step(items, statuses);
      for (const Status& status : statuses) ASSERT_TRUE(status) << architecture << ": " << status.error().message;
    }
    ASSERT_EQ(hidden.size(), expected.size()) << architecture;
    ASSERT_EQ(logits.size(), tokens.size() * static_cast<size_t>(model->info().num_vocab)) << architecture;
    const auto dim = static_cast<size_t>(model->info().hidden_dim);
    for (size_t row = 0; row < tokens.size(); ++row) {
      EXPECT_GT(Cosine(std::span(hidden).subspan(row * dim, dim), std::span(expected).subspan(row * dim, dim)), 0.999)
          << architecture << " row " << row;
    }
    // Afterwards steps are what they were.
    const int32_t next = 17;
    ASSERT_TRUE(engine->Decode(id, next));
    EXPECT_EQ(engine->logits(id).size(), static_cast<size_t>(model->info().num_vocab));
  }
}

// The last that it was told, of one request.
class RowSink final : public server::RequestSink {
 public:
  void Started(const server::RequestUsage&, int) override {}
  void Progress(int, int) override {}
  void PromptLogprobs(std::vector<TokenLogprobs> told) override { logprobs = std::move(told); }
  void Embedding(std::vector<float> told) override { embedding = std::move(told); }
  void Text(int, std::string, std::vector<int32_t>, std::vector<TokenLogprobs>) override {}
  void Ended(int, GenerationResult) override {}
  void Finished(const server::RequestUsage&, const server::RequestTimes&, const server::CacheReport&) override {
    End();
  }
  void Failed(const Error& failed) override {
    error = failed.message;
    End();
  }
  void End() {
    const std::lock_guard lock(mutex);
    over = true;
    changed.notify_all();
  }
  void Wait() {
    std::unique_lock lock(mutex);
    changed.wait(lock, [this] { return over; });
  }

  std::mutex mutex;
  std::condition_variable changed;
  bool over = false;
  std::string error;
  std::vector<float> embedding;
  std::vector<TokenLogprobs> logprobs;
};

class NoText final : public TextModel {
 public:
  Result<std::vector<int32_t>> Tokenize(std::string_view, bool, bool) const override { return Unsupported("none"); }
  std::string Piece(int32_t) const override { return "x"; }
  bool IsEnd(int32_t) const override { return false; }
  bool has_template() const override { return false; }
  Result<std::string> Render(std::span<const ChatMessage>, bool) const override { return Unsupported("none"); }
};

TEST(ModelRows, TheSchedulerPoolsAndScores) {
  const std::shared_ptr<HostModel> model = Load("llama");
  ASSERT_NE(model, nullptr);
  const auto dim = static_cast<size_t>(model->info().hidden_dim), vocab = static_cast<size_t>(model->info().num_vocab);
  server::SchedulerOptions options;
  options.max_running = 3;
  auto scheduler = server::Scheduler::Create(MakeEngine(model, 3), std::make_shared<NoText>(), options);
  ASSERT_TRUE(scheduler) << scheduler.error().message;
  const std::vector<int32_t> prompt = Tokens(150, 3);
  server::Request writing;  // decodes beside
  writing.prompt = Tokens(30, 4);
  writing.generation.max_tokens = 60;
  server::Request embed, score;
  embed.prompt = score.prompt = prompt;
  embed.generation.max_tokens = score.generation.max_tokens = 0;
  embed.pooling = EmbeddingPooling::kMean;
  score.prompt_logprobs = 2;
  std::vector<std::shared_ptr<RowSink>> sinks;
  for (const server::Request& request : {writing, embed, score, embed, score}) {
    sinks.push_back(std::make_shared<RowSink>());
    ASSERT_TRUE((*scheduler)->Submit(request, sinks.back()));
  }
  for (const auto& sink : sinks) {
    sink->Wait();
    ASSERT_EQ(sink->error, "");
  }
  const std::vector<float> rows = Reference(*model, prompt);
  std::vector<double> mean(dim, 0);
  for (size_t i = 0; i < rows.size(); ++i) mean[i % dim] += static_cast<double>(rows[i]);
  const std::vector<float> expected = UnitVector(mean);
  for (const size_t i : {size_t{1}, size_t{3}}) {
    ASSERT_EQ(sinks[i]->embedding.size(), dim);
    EXPECT_GT(Cosine(sinks[i]->embedding, expected), 0.999);
    EXPECT_NEAR(Cosine(sinks[i]->embedding, sinks[i]->embedding), 1, 1e-5);
  }
  const std::shared_ptr<Engine> engine = MakeEngine(model, 1);
  std::vector<float> logits;
  ASSERT_TRUE(engine->Prefill(*engine->NewSequence(), prompt, false, &logits));
  for (const size_t i : {size_t{2}, size_t{4}}) {
    ASSERT_EQ(sinks[i]->logprobs.size(), prompt.size() - 1);
    for (size_t row = 0; row + 1 < prompt.size(); ++row) {
      const TokenLogprobs wanted = LogprobsOf(std::span(logits).subspan(row * vocab, vocab), prompt[row + 1], 2);
      EXPECT_EQ(sinks[i]->logprobs[row].chosen.token, prompt[row + 1]);
      EXPECT_NEAR(sinks[i]->logprobs[row].chosen.logprob, wanted.chosen.logprob, 0.02);
      EXPECT_EQ(sinks[i]->logprobs[row].top.size(), 2u);
    }
  }
  EXPECT_EQ((*scheduler)->stats().live_bytes, 0u);
}

TEST(ModelRows, AnEncoderEmbedsTextsOneAfterTheOther) {
  for (const char* architecture : {"bert", "modern-bert", "nomic-bert"}) {
    const std::shared_ptr<HostModel> model = Load(architecture, ModelUse::kEmbeddings);
    ASSERT_NE(model, nullptr) << architecture;
    auto scheduler = server::EmbeddingScheduler::Create(model, 1, 3);
    ASSERT_TRUE(scheduler) << scheduler.error().message;
    server::Request request;
    request.prompt = Tokens(20, 2);
    request.pooling = EmbeddingPooling::kMean;
    const auto first = std::make_shared<RowSink>(), second = std::make_shared<RowSink>();
    ASSERT_TRUE((*scheduler)->Submit(request, first));
    request.prompt = Tokens(20, 7);
    ASSERT_TRUE((*scheduler)->Submit(request, second));
    first->Wait(), second->Wait();
    ASSERT_EQ(first->error + second->error, "") << architecture;
    EXPECT_NEAR(Cosine(first->embedding, first->embedding), 1, 1e-5);
    EXPECT_LT(Cosine(first->embedding, second->embedding), 0.9999) << architecture;
    request.pooling = EmbeddingPooling::kNone;
    EXPECT_EQ((*scheduler)->Submit(request, first).error().code, ErrorCode::kUnsupported);
    request.pooling = EmbeddingPooling::kMean;
    request.prompt.assign(5000, 5);
    const auto third = std::make_shared<RowSink>();
    ASSERT_TRUE((*scheduler)->Submit(request, third));
    third->Wait();
    EXPECT_NE(third->error, "") << "longer than the model reads";
  }
}

// What stands beside a model that answers (EpiCache) takes texts of any length, and is the same encoder.
TEST(ModelRows, AnEmbedderReadsTheBeginningOfWhatIsTooLong) {
  const std::string path = ::testing::TempDir() + fmt::format("pith_rows_embedder_{}.gguf", getpid());
  ASSERT_TRUE(MakeRandomModel("bert", false, path, 5));
  const auto embedder = LoadEmbedder(path, 1);
  ASSERT_TRUE(embedder) << embedder.error().message;
  const auto model = Load("bert", ModelUse::kEmbeddings);
  const auto context = EmbeddingContext::Create(*model, 1);
  ASSERT_TRUE(context);
  const std::string text = "a river";
  const auto direct = (*context)->Embed(*model->TokenizeWhole(text)), same = (*embedder)->Embed(text);
  ASSERT_TRUE(direct && same);
  EXPECT_EQ(*direct, *same);
  std::string book;
  const auto most = static_cast<size_t>((*context)->num_ctx());
  while (model->TokenizeWhole(book)->size() <= most) book += text + ", a bridge. ";
  EXPECT_EQ((*context)->Embed(*model->TokenizeWhole(book)).error().code, ErrorCode::kOutOfContext) << "control";
  const auto beginning = (*embedder)->Embed(book), longer = (*embedder)->Embed(book + text + "!");
  ASSERT_TRUE(beginning && longer);
  EXPECT_EQ(*beginning, *longer);
  EXPECT_NE(*beginning, *same);
  std::error_code ignored;
  std::filesystem::remove(path, ignored);
  EXPECT_EQ(LoadEmbedder(path, 1).error().code, ErrorCode::kNotFound);
}

TEST(ModelRows, ModelsThatGenerateAreNoEncoders) {
  const std::string path = ::testing::TempDir() + fmt::format("pith_rows_which_{}.gguf", getpid());
  HostModelOptions options;
  options.use = ModelUse::kEmbeddings;
  ASSERT_TRUE(MakeRandomModel("llama", false, path, 5));
  EXPECT_EQ(HostModel::Load(path, options).error().code, ErrorCode::kUnsupported);
  ASSERT_TRUE(MakeRandomModel("bert", false, path, 5));
  EXPECT_EQ(HostModel::Load(path, {}).error().code, ErrorCode::kUnsupported);
  std::error_code ignored;
  std::filesystem::remove(path, ignored);
}

}  // namespace
}  // namespace pith::testing
