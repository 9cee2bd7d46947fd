// What a file is loaded for: its vocabulary alone, or embeddings alone.
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <string>
#include <vector>

#include "base/paths.h"
#include "pith/pith.hpp"
#include "tests/support/model_files.h"
#include "tests/support/random_model.h"

namespace pith::testing {
namespace {

class File {
 public:
  explicit File(const char* name) : path(::testing::TempDir() + fmt::format("pith_uses_{}_{}.gguf", name, getpid())) {}
  ~File() {
    std::error_code ignored;
    std::filesystem::remove(path, ignored);
  }
  const std::string path;
};

TEST(ModelUses, AVocabularyIsThatOfTheWholeModel) {
  const File file("vocabulary");
  ASSERT_TRUE(WriteVocabulary(DefaultModelPath(), file.path));
  const auto whole = Model::Load(DefaultModelPath(), {.num_threads = 1});
  ASSERT_TRUE(whole) << whole.error().message;
  const std::string text = "The keeper climbed 212 stairs.<|im_end|>\n";
  for (const std::string& path : {file.path, DefaultModelPath()}) {
    const auto vocabulary = Model::Load(path, {.num_threads = 1, .use = PITH_USE_VOCABULARY});
    ASSERT_TRUE(vocabulary) << vocabulary.error().message;
    EXPECT_EQ(*vocabulary->Tokenize(text), *whole->Tokenize(text));
    EXPECT_EQ(*vocabulary->TokenizeWhole(text), *whole->TokenizeWhole(text));
    EXPECT_EQ(*vocabulary->ApplyTemplate({{"user", "Hi"}}), *whole->ApplyTemplate({{"user", "Hi"}}));
    EXPECT_EQ(vocabulary->info().num_vocab, whole->info().num_vocab);
    EXPECT_EQ(vocabulary->info().eos_token, whole->info().eos_token);
    const auto engine = Engine::Create(*vocabulary, {.num_ctx = 64});
    ASSERT_FALSE(engine);
    EXPECT_EQ(engine.error().code, ErrorCode::kInvalidArgument);
    EXPECT_NE(engine.error().message.find("vocabulary"), std::string::npos) << engine.error().message;
    EXPECT_EQ(Embedder::Create(*vocabulary).error().code, ErrorCode::kInvalidArgument);
  }
  EXPECT_EQ(Model::Load(file.path).error().code, ErrorCode::kCorrupt) << "control: it has no weights";
  EXPECT_EQ(Model::Load(file.path, {.use = 3}).error().code, ErrorCode::kInvalidArgument);
}

TEST(ModelUses, AnEncoderEmbedsTextsAndReadsNone) {
  const File file("encoder");
  ASSERT_TRUE(MakeRandomModel("bert", false, file.path, 7));
  EXPECT_EQ(Model::Load(file.path).error().code, ErrorCode::kUnsupported);
  const auto model = Model::Load(file.path, {.num_threads = 1, .use = PITH_USE_EMBEDDINGS});
  ASSERT_TRUE(model) << model.error().message;
  EXPECT_EQ(Engine::Create(*model, {.num_ctx = 64}).error().code, ErrorCode::kInvalidArgument);
  auto embedder = Embedder::Create(*model, 1);
  ASSERT_TRUE(embedder) << embedder.error().message;
  const auto tokens = model->TokenizeWhole("a lighthouse on a rock");
  const auto other = model->TokenizeWhole("the price of bread");
  ASSERT_TRUE(tokens && other);
  const auto one = embedder->Embed(*tokens);
  ASSERT_TRUE(one) << one.error().message;
  double length = 0;
  for (const float x : *one) length += static_cast<double>(x) * static_cast<double>(x);
  EXPECT_NEAR(length, 1, 1e-5);
  EXPECT_NE(*one, *embedder->Embed(*other)) << "control";
  EXPECT_EQ(*one, *embedder->Embed(*tokens));
  EXPECT_EQ(embedder->Embed(Tokens(embedder->num_ctx() + 1, tokens->front())).error().code, ErrorCode::kOutOfContext);
  EXPECT_EQ(embedder->Embed({}).error().code, ErrorCode::kInvalidArgument);
  EXPECT_EQ(embedder->Embed({-1}).error().code, ErrorCode::kInvalidArgument);

  // In C: the rows of all tokens, whose mean has the pooled one's direction.
  pith_embedder* own = nullptr;
  ASSERT_EQ(pith_embedder_new(model->get(), 1, &own), PITH_OK) << pith_last_error();
  std::vector<float> rows(tokens->size() * one->size(), NAN), mean(one->size(), 0);
  ASSERT_EQ(pith_embedder_embed(own, tokens->data(), tokens->size(), rows.data(), nullptr), PITH_OK);
  for (size_t i = 0; i < rows.size(); ++i) mean[i % mean.size()] += rows[i];
  double dot = 0, square = 0;
  for (size_t i = 0; i < mean.size(); ++i) {
    dot += static_cast<double>(mean[i]) * static_cast<double>((*one)[i]);
    square += static_cast<double>(mean[i]) * static_cast<double>(mean[i]);
  }
  EXPECT_NEAR(dot / std::sqrt(square), 1, 1e-5);
  pith_embedder_free(own);
  EXPECT_EQ(pith_embedder_num_ctx(nullptr), 0u);
}

}  // namespace
}  // namespace pith::testing
