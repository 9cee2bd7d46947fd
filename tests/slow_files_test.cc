// Models in several files: parts of a split model, LoRA adapters.
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include "engine/engine.h"
#include "host/model.h"
#include "policy/policy.h"
#include "tests/support/model_files.h"
#include "tests/support/model_parity.h"
#include "tests/support/random_model.h"

namespace pith::testing {
namespace {

constexpr uint32_t kSeed = 9;

class SlowFiles : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = ::testing::TempDir() + fmt::format("pith_files_{}", getpid());
    std::filesystem::create_directories(folder_);
    model_path_ = folder_ + "/whole.gguf";
    const Status made = MakeRandomModel("llama", false, model_path_, kSeed);
    ASSERT_TRUE(made) << made.error().message;
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  static std::vector<float> Logits(const std::string& path, const HostModelOptions& model_options = {}) {
    auto model = HostModel::Load(path, model_options);
    EXPECT_TRUE(model) << model.error().message;
    if (!model) return {};
    EngineOptions options;
    options.num_ctx = 100;
    options.num_threads = 1;
    options.recipe = *ParseRecipe("criticalkv");  // reads projections from the file too
    options.keep_entries = 32;
    auto engine = Engine::Create(*model, options);
    EXPECT_TRUE(engine) << engine.error().message;
    std::vector<float> logits;
    std::vector<int32_t> tokens;
    for (int i = 0; i < 90; ++i) tokens.push_back(i * 31 % 100);
    const Status read = (*engine)->Prefill(*(*engine)->NewSequence(), tokens, false, &logits);
    EXPECT_TRUE(read) << read.error().message;
    return logits;
  }

  static HostModelOptions WithLora(const std::string& path, float scale) {
    HostModelOptions options;
    options.lora_paths = {path};
    options.lora_scales = {scale};
    return options;
  }

  static void ExpectRefused(const std::string& path, ErrorCode code, const std::string& part) {
    const auto model = HostModel::Load(path, {});
    ASSERT_FALSE(model) << part;
    EXPECT_EQ(model.error().code, code) << model.error().message;
    EXPECT_NE(model.error().message.find(part), std::string::npos) << model.error().message;
  }

  std::string folder_, model_path_;
};

TEST_F(SlowFiles, ASplitModelEqualsTheWhole) {
  const auto parts = SplitModel(model_path_, folder_ + "/parts", 3);
  ASSERT_TRUE(parts) << parts.error().message;
  EXPECT_EQ(Logits(model_path_), Logits(parts->front()));
}

TEST_F(SlowFiles, PartsThatAreMissingOrWrongAreNamed) {
  const auto parts = SplitModel(model_path_, folder_ + "/parts", 3);
  ASSERT_TRUE(parts) << parts.error().message;
  ExpectRefused((*parts)[1], ErrorCode::kInvalidArgument,
                "is part 2 of 3 of a split model: give the first part, " + parts->front());
  std::filesystem::copy_file((*parts)[0], folder_ + "/renamed.gguf");
  ExpectRefused(folder_ + "/renamed.gguf", ErrorCode::kInvalidArgument, "its name must end in -00001-of-00003.gguf");
  std::filesystem::resize_file((*parts)[2], std::filesystem::file_size((*parts)[2]) - 100);
  ExpectRefused((*parts)[0], ErrorCode::kCorrupt, (*parts)[2] + " is truncated");
  std::filesystem::copy_file((*parts)[1], (*parts)[2], std::filesystem::copy_options::overwrite_existing);
  ExpectRefused((*parts)[0], ErrorCode::kCorrupt, "says that it is part 2 of 3, where part 3 of 3 was expected");
  std::filesystem::remove((*parts)[2]);
  ExpectRefused((*parts)[0], ErrorCode::kNotFound,
                "part 3 of 3 of the model is missing: there is no file " + (*parts)[2]);
}

TEST_F(SlowFiles, AdaptersChangeLogitsAsInLibllama) {
  const std::string lora = folder_ + "/lora.gguf";
  const Status made = MakeRandomLora(model_path_, lora, 4, kSeed);
  ASSERT_TRUE(made) << made.error().message;
  for (const float scale : {1.0f, -0.5f}) {
    auto model = HostModel::Load(model_path_, WithLora(lora, scale));
    ASSERT_TRUE(model) << model.error().message;
    const auto parity = CompareReaders(*model, UnevenBlocks(120, 65), 2, kSeed);
    ASSERT_TRUE(parity) << parity.error().message;
    EXPECT_TRUE(parity->exact()) << parity->ToString();
    EXPECT_TRUE(parity->telling()) << parity->ToString();
  }
  // The control: the adapter matters, its strength too, and none is left of it at 0.
  const std::vector<float> without = Logits(model_path_);
  const std::vector<float> whole = Logits(model_path_, WithLora(lora, 1));
  EXPECT_NE(without, whole);
  EXPECT_NE(whole, Logits(model_path_, WithLora(lora, 0.5f)));
  EXPECT_EQ(without, Logits(model_path_, WithLora(lora, 0)));
}

TEST_F(SlowFiles, AdaptersThatDoNotFitAreRefused) {
  const std::string other = folder_ + "/other.gguf", lora = folder_ + "/lora.gguf";
  ASSERT_TRUE(MakeRandomModel("gemma3", false, other, kSeed));
  ASSERT_TRUE(MakeRandomLora(other, lora, 4, kSeed));
  for (const std::string& path : {lora, model_path_, folder_ + "/none.gguf"}) {
    const auto model = HostModel::Load(model_path_, WithLora(path, 1));
    ASSERT_FALSE(model) << path;
    EXPECT_NE(model.error().message.find(path), std::string::npos) << model.error().message;
  }
}

TEST_F(SlowFiles, ChatTemplates) {
  const ChatMessage message{"user", "Hello"};
  auto none = HostModel::Load(model_path_, {});
  ASSERT_TRUE(none);
  EXPECT_FALSE((*none)->has_chat_template());
  HostModelOptions options;
  options.chat_template = "chatml";
  auto named = HostModel::Load(model_path_, options);
  ASSERT_TRUE(named);
  EXPECT_EQ((*named)->ApplyChatTemplate({&message, 1}, true).value(),
            "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n");
  options.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{{ eos_token is string }}";
  auto written = HostModel::Load(model_path_, options);
  ASSERT_TRUE(written);
  EXPECT_EQ((*written)->ApplyChatTemplate({&message, 1}, true).value(), "<user>HelloTrue");
  options.chat_template = "chatlm";
  const auto unknown = HostModel::Load(model_path_, options);
  ASSERT_FALSE(unknown);
  EXPECT_NE(unknown.error().message.find("libllama knows"), std::string::npos) << unknown.error().message;
  EXPECT_NE(unknown.error().message.find("chatml"), std::string::npos) << unknown.error().message;
  options.chat_template = "{% for m in messages %}";
  EXPECT_FALSE(HostModel::Load(model_path_, options));
}

}  // namespace
}  // namespace pith::testing
