// A saved and restored sequence, and a fork, go on with the same bits: on models with global, sliding, latent and
// recurrent layers, under recipes with columns, with a window of queries, and with ragged heads.
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/paths.h"
#include "engine/engine.h"
#include "host/model.h"
#include "policy/policy.h"
#include "tests/support/random_model.h"

namespace pith::testing {
namespace {

constexpr int kThreads = 1;  // small models: a second one would mostly wait
constexpr int kPrompt = 130;
constexpr int kDecoded = 3;
constexpr uint32_t kSeed = 5;

std::string Folder() {
  static const std::string folder = ::testing::TempDir() + fmt::format("pith_sessions_{}", getpid());
  std::filesystem::create_directories(folder);
  return folder;
}

// A random model, or the default model where the name is empty. Kept for the next test.
std::shared_ptr<HostModel> Model(const std::string& architecture) {
  static std::string loaded_name;
  static std::shared_ptr<HostModel> loaded;
  if (loaded != nullptr && loaded_name == architecture) return loaded;
  loaded.reset();
  std::string path = Folder() + "/" + architecture + ".gguf";
  if (architecture.empty()) {
    path = DefaultModelPath();
  } else {
    const Status made = MakeRandomModel(architecture, NeedsExperts(architecture), path, kSeed);
    EXPECT_TRUE(made) << made.error().message;
  }
  auto model = HostModel::Load(path, HostModelOptions{});
  EXPECT_TRUE(model) << model.error().message;
  if (model) loaded = *model, loaded_name = architecture;
  return loaded;
}

EngineOptions Options(const std::string& recipe) {
  EngineOptions options;
  options.num_ctx = 300;
  options.block_tokens = 48;
  options.num_threads = kThreads;
  options.max_sequences = 2;
  options.recipe = *ParseRecipe(recipe);
  options.keep_entries = 40;
  return options;
}

std::vector<int32_t> Tokens(int from, int count) {
  std::vector<int32_t> tokens;
  for (int i = from; i < from + count; ++i) tokens.push_back(static_cast<int32_t>((i * 37 + i / 7 * 11) % 97 + 3));
  return tokens;
}

std::vector<float> Copy(std::span<const float> row) { return {row.begin(), row.end()}; }

// A sequence that has read the prompt and a few tokens more.
SequenceId Begun(Engine& engine) {
  const auto sequence = engine.NewSequence();
  EXPECT_TRUE(sequence);
  const Status read = engine.Prefill(*sequence, Tokens(0, kPrompt));
  EXPECT_TRUE(read) << read.error().message;
  for (const int32_t token : Tokens(kPrompt, kDecoded)) EXPECT_TRUE(engine.Decode(*sequence, token));
  return *sequence;
}

// Logits of a block and of single tokens after it.
std::vector<std::vector<float>> Continue(Engine& engine, SequenceId sequence) {
  std::vector<std::vector<float>> rows;
  rows.emplace_back();
  EXPECT_TRUE(engine.Prefill(sequence, Tokens(kPrompt + kDecoded, 21), false, &rows.back()));
  for (const int32_t token : Tokens(400, 20)) {
    EXPECT_TRUE(engine.Decode(sequence, token));
    rows.push_back(Copy(engine.logits(sequence)));
  }
  return rows;
}

void ExpectSameBits(const std::vector<std::vector<float>>& a, const std::vector<std::vector<float>>& b) {
  ASSERT_EQ(a.size(), b.size());
  for (size_t i = 0; i < a.size(); ++i) {
    ASSERT_EQ(a[i].size(), b[i].size());
    ASSERT_EQ(0, std::memcmp(a[i].data(), b[i].data(), a[i].size() * sizeof(float))) << "row " << i;
  }
}

std::unique_ptr<Engine> Make(const std::shared_ptr<HostModel>& model, const EngineOptions& options) {
  auto engine = Engine::Create(model, options);
  EXPECT_TRUE(engine) << engine.error().message;
  return engine ? std::move(*engine) : nullptr;
}

class SlowSessions : public ::testing::TestWithParam<std::pair<const char*, const char*>> {
 protected:
  void SetUp() override {
    model_ = Model(GetParam().first);
    ASSERT_NE(model_, nullptr);
    options_ = Options(GetParam().second);
  }
  std::shared_ptr<HostModel> model_;
  EngineOptions options_;
};

TEST_P(SlowSessions, ARestoredSequenceGoesOnWithTheSameBits) {
  const std::string path = Folder() + "/session";
  const SessionNote note{.tokens = Tokens(0, 5), .text = "a note\n"};
  auto engine = Make(model_, options_);
  const SequenceId sequence = Begun(*engine);
  const std::vector<float> last = Copy(engine->logits(sequence));
  const KvStats stats = engine->stats();
  const Status saved = engine->Save(sequence, path, note);
  ASSERT_TRUE(saved) << saved.error().message;
  const auto expected = Continue(*engine, sequence);

  auto other = Make(model_, options_);
  // Restored beside another sequence, so that it gets another slot.
  ASSERT_TRUE(other->Prefill(*other->NewSequence(), Tokens(50, 20)));
  const auto restored = other->Restore(path);
  ASSERT_TRUE(restored) << restored.error().message;
  EXPECT_EQ(restored->note.tokens, note.tokens);
  EXPECT_EQ(restored->note.text, note.text);
  EXPECT_EQ(other->num_tokens(restored->sequence), kPrompt + kDecoded);
  ExpectSameBits({last}, {Copy(other->logits(restored->sequence))});
  ExpectSameBits(expected, Continue(*other, restored->sequence));
  EXPECT_LE(other->stats().peak_bytes, other->stats().budget_bytes);
  EXPECT_GE(other->stats().entries, stats.entries);

  // The control: another past gives other logits.
  auto control = Make(model_, options_);
  const auto fresh = control->NewSequence();
  ASSERT_TRUE(control->Prefill(*fresh, Tokens(1, kPrompt + kDecoded)));
  EXPECT_NE(expected.front(), Continue(*control, *fresh).front());
}

TEST_P(SlowSessions, AForkGoesOnWithTheSameBits) {
  auto engine = Make(model_, options_);
  const SequenceId sequence = Begun(*engine);
  const auto fork = engine->Fork(sequence);
  ASSERT_TRUE(fork) << fork.error().message;
  const auto expected = Continue(*engine, sequence);
  ExpectSameBits(expected, Continue(*engine, *fork));
}

INSTANTIATE_TEST_SUITE_P(Families, SlowSessions,
                         ::testing::Values(std::pair("", "snapkv"), std::pair("", "h2o"), std::pair("llama", "adakv"),
                                           std::pair("llama", "expectedattention"), std::pair("llama", "d2o"),
                                           std::pair("llama", "snapkv format=q4"),
                                           std::pair("gemma3", "full format=q2"), std::pair("gemma3", "snapkv"),
                                           std::pair("gemma4", "keydiff"), std::pair("deepseek2", "h2o"),
                                           std::pair("qwen35", "snapkv"), std::pair("falcon-h1", "tova"),
                                           std::pair("granitehybrid", "streamingllm"), std::pair("lfm2", "keydiff"),
                                           std::pair("mamba2", "full"), std::pair("mamba", "snapkv")),
                         [](const auto& test) {
                           std::string name = std::string(test.param.first) + "_" + test.param.second;
                           std::erase_if(name, [](char c) { return c != '_' && std::isalnum(c) == 0; });
                           return name.starts_with('_') ? "default" + name : name;
                         });

class SlowSessionFiles : public ::testing::Test {
 protected:
  void SetUp() override {
    model_ = Model("qwen35");
    ASSERT_NE(model_, nullptr);
    path_ = Folder() + "/damaged";
    auto engine = Make(model_, Options("snapkv"));
    ASSERT_TRUE(engine->Save(Begun(*engine), path_, SessionNote()));
    std::ifstream file(path_, std::ios::binary);
    bytes_.assign(std::istreambuf_iterator<char>(file), {});
    ASSERT_GT(bytes_.size(), 1000u);
  }

  void ExpectRefused(const std::string& bytes, ErrorCode code, const std::string& part) {
    std::ofstream(path_, std::ios::binary | std::ios::trunc) << bytes;
    auto engine = Make(model_, Options("snapkv"));
    ExpectRefused(*engine, code, part);
  }
  void ExpectRefused(Engine& engine, ErrorCode code, const std::string& part) const {
    const size_t used = engine.stats().page_bytes;
    const auto restored = engine.Restore(path_);
    ASSERT_FALSE(restored) << part;
    EXPECT_EQ(restored.error().code, code) << restored.error().message;
    EXPECT_NE(restored.error().message.find(part), std::string::npos) << restored.error().message;
    EXPECT_EQ(restored.error().message.find('\n'), std::string::npos);
    EXPECT_EQ(engine.stats().page_bytes, used) << "pages are lost";
  }

  std::shared_ptr<HostModel> model_;
  std::string path_, bytes_;
};

TEST_F(SlowSessionFiles, DamageIsRefused) {
  ExpectRefused("", ErrorCode::kNotFound, "there is no session yet");
  ExpectRefused("GGUF and more than forty bytes of something else", ErrorCode::kCorrupt, "no saved session");
  for (const size_t length : {20ul, 40ul, bytes_.size() / 2, bytes_.size() - 1}) {
    ExpectRefused(bytes_.substr(0, length), ErrorCode::kCorrupt, path_);
  }
  ExpectRefused(bytes_ + "x", ErrorCode::kCorrupt, "it should have");
  for (const size_t at : {41ul, bytes_.size() / 3, bytes_.size() - 2}) {
    std::string broken = bytes_;
    broken[at] = static_cast<char>(broken[at] ^ 1);
    ExpectRefused(broken, ErrorCode::kCorrupt, "its sum is wrong");
  }
  for (const char version : {'\x09', '\x63'}) {
    std::string other = bytes_;
    other[8] = version;
    ExpectRefused(other, ErrorCode::kUnsupported, fmt::format("by another version of pith (version {}", int{version}));
  }
  std::filesystem::remove(path_);
  auto engine = Make(model_, Options("snapkv"));
  ExpectRefused(*engine, ErrorCode::kNotFound, "there is no session");
}

TEST_F(SlowSessionFiles, OtherOwnersAreRefused) {
  auto recipe = Make(model_, Options("h2o"));
  ExpectRefused(*recipe, ErrorCode::kInvalidArgument, "with the recipe snapkv");
  EngineOptions options = Options("snapkv");
  options.format = KvFormat::kQ8;
  auto format = Make(model_, options);
  ExpectRefused(*format, ErrorCode::kInvalidArgument, "another format");
  options = Options("snapkv");
  options.num_ctx = 100;
  auto context = Make(model_, options);
  ExpectRefused(*context, ErrorCode::kInvalidArgument, "do not fit into a context of 100");
  auto model = Make(Model("llama"), Options("snapkv"));
  ExpectRefused(*model, ErrorCode::kInvalidArgument, "another model");
}

TEST_F(SlowSessionFiles, WhatCannotBeWrittenSaysSo) {
  auto engine = Make(model_, Options("snapkv"));
  const Status saved = engine->Save(Begun(*engine), Folder() + "/no/such/folder", SessionNote());
  ASSERT_FALSE(saved);
  EXPECT_EQ(saved.error().code, ErrorCode::kIo);
}

}  // namespace
}  // namespace pith::testing
