// Overrides of what a model's file says: metadata and RoPE. The reference is libllama's own context with its own
// parameters, not those that pith makes.
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "engine/engine.h"
#include "host/llama_util.h"
#include "host/model.h"
#include "host/sampler.h"
#include "session/stored_prefixes.h"
#include "session/token_sequence.h"
#include "tests/support/model_parity.h"
#include "tests/support/random_model.h"

namespace pith {
namespace {

using testing::MakeRandomModel;

std::vector<int32_t> Tokens(size_t count, uint32_t seed) {
  std::mt19937 random(seed);  // NOLINT: a fixed seed is meant
  std::vector<int32_t> tokens(count);
  for (int32_t& token : tokens) token = static_cast<int32_t>(random() % 100);
  return tokens;
}

ModelOverrides Overrides(const std::string& rope, const std::string& metadata = {}) {
  ModelOverrides all;
  auto parsed = ParseRope(rope);
  EXPECT_TRUE(parsed) << parsed.error().message;
  if (parsed) all.rope = *parsed;
  if (metadata.empty()) return all;
  auto values = ParseMetadataOverrides(metadata);
  EXPECT_TRUE(values) << values.error().message;
  if (values) all.metadata = *values;
  return all;
}

double MeanSquare(const std::vector<float>& a, const std::vector<float>& b) {
  EXPECT_EQ(a.size(), b.size());
  double sum = 0;
  for (size_t i = 0; i < std::min(a.size(), b.size()); ++i) sum += std::pow(static_cast<double>(a[i] - b[i]), 2);
  return sum / static_cast<double>(a.size());
}

double Farthest(const std::vector<float>& a, const std::vector<float>& b) {
  EXPECT_EQ(a.size(), b.size());
  double most = 0;
  for (size_t i = 0; i < std::min(a.size(), b.size()); ++i) most = std::max<double>(most, std::abs(a[i] - b[i]));
  return most;
}

class ModelOverriding : public ::testing::Test {
 protected:
  void SetUp() override { Use("llama", false); }
  void TearDown() override { std::filesystem::remove(path_); }

  void Use(const std::string& architecture, bool moe) {
    path_ = ::testing::TempDir() + fmt::format("pith_overrides_{}.gguf", getpid());
    const Status made = MakeRandomModel(architecture, moe, path_, 3);
    ASSERT_TRUE(made) << made.error().message;
  }

  Result<std::shared_ptr<HostModel>> TryLoad(const ModelOverrides& overrides) const {
    HostModelOptions options;
    options.overrides = overrides;
    return HostModel::Load(path_, options);
  }
  std::shared_ptr<HostModel> Load(const std::string& rope, const std::string& metadata = {}) const {
    auto model = TryLoad(Overrides(rope, metadata));
    EXPECT_TRUE(model) << model.error().message;
    return model ? *model : nullptr;
  }
  void ExpectRefused(const std::string& metadata, const std::string& message) const {
    const auto model = TryLoad(Overrides("", metadata));
    ASSERT_FALSE(model) << metadata;
    EXPECT_EQ(model.error().code, ErrorCode::kInvalidArgument);
    EXPECT_EQ(model.error().message, message);
  }

  std::string path_;
};

std::unique_ptr<Engine> MakeEngine(const std::shared_ptr<HostModel>& model, const std::string& recipe, int keep = 0) {
  EngineOptions options;
  options.num_ctx = 600;
  options.block_tokens = 48;
  options.num_threads = 2;
  options.max_sequences = 4;
  options.keep_entries = keep;
  options.recipe = *ParseRecipe(recipe);
  auto engine = Engine::Create(model, options);
  EXPECT_TRUE(engine) << engine.error().message;
  return engine ? std::move(*engine) : nullptr;
}

// Of every token.
std::vector<float> PithLogits(const std::shared_ptr<HostModel>& model, const std::string& recipe,
                              const std::vector<int32_t>& tokens, int keep = 0) {
  const auto engine = MakeEngine(model, recipe, keep);
  std::vector<float> logits;
  const Status read = engine->Prefill(*engine->NewSequence(), tokens, false, &logits);
  EXPECT_TRUE(read) << read.error().message;
  return logits;
}

// libllama alone, in a model that it has loaded alone.
std::vector<float> PlainLogits(const std::string& path, llama_context_params params,
                               const std::vector<llama_model_kv_override>& overrides,
                               const std::vector<int32_t>& tokens) {
  InitLlamaOnce();
  llama_model_params model_params = llama_model_default_params();
  model_params.n_gpu_layers = 0;
  model_params.use_extra_bufts = false;
  model_params.kv_overrides = overrides.empty() ? nullptr : overrides.data();
  const std::unique_ptr<llama_model, LlamaDeleter> model(llama_model_load_from_file(path.c_str(), model_params));
  params.n_ctx = params.n_batch = params.n_ubatch = 512;
  params.n_threads = params.n_threads_batch = 2;
  params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_DISABLED;
  params.type_k = params.type_v = GGML_TYPE_F16;
  const LlamaContextPtr context(llama_init_from_model(model.get(), params));
  Batch batch(512);
  for (size_t i = 0; i < tokens.size(); ++i) batch.Add(tokens[i], static_cast<int32_t>(i), 0, true);
  EXPECT_EQ(llama_decode(context.get(), batch.get()), 0);
  const auto vocab = static_cast<size_t>(llama_vocab_n_tokens(llama_model_get_vocab(model.get())));
  std::vector<float> rows;
  for (size_t i = 0; i < tokens.size(); ++i) {
    const float* row = llama_get_logits_ith(context.get(), static_cast<int32_t>(i));
    rows.insert(rows.end(), row, row + vocab);
  }
  return rows;
}

struct RopeCase {
  const char* name;
  const char* architecture;
  const char* rope;
  llama_context_params (*params)();
};

llama_context_params Linear() {
  llama_context_params params = llama_context_default_params();
  params.rope_scaling_type = LLAMA_ROPE_SCALING_TYPE_LINEAR;
  params.rope_freq_scale = 0.25f;
  return params;
}
llama_context_params Yarn() {
  llama_context_params params = llama_context_default_params();
  params.rope_scaling_type = LLAMA_ROPE_SCALING_TYPE_YARN;
  params.rope_freq_scale = 0.25f;
  params.yarn_orig_ctx = 64;
  return params;
}
llama_context_params YarnInFull() {
  llama_context_params params = Yarn();
  params.yarn_ext_factor = 0.5f;
  params.yarn_attn_factor = 1.5f;
  params.yarn_beta_slow = 2;
  params.yarn_beta_fast = 16;
  return params;
}
llama_context_params Base() {
  llama_context_params params = llama_context_default_params();
  params.rope_freq_base = 500;
  return params;
}

constexpr const char* kLinear = "rope-scaling=linear,rope-scale=4";
constexpr const char* kYarn = "rope-scaling=yarn,rope-scale=4,yarn-orig-ctx=64";
constexpr const char* kYarnInFull =
    "rope-scaling=yarn,rope-freq-scale=0.25,yarn-orig-ctx=64,yarn-ext-factor=0.5,yarn-attn-factor=1.5,yarn-beta-slow=2,"
    "yarn-beta-fast=16";
constexpr const char* kBase = "rope-freq-base=500";

class ModelRope : public ModelOverriding, public ::testing::WithParamInterface<RopeCase> {
 protected:
  void SetUp() override { Use(GetParam().architecture, testing::NeedsExperts(GetParam().architecture)); }
};

TEST_P(ModelRope, TheFullCacheGivesLibllamasLogits) {
  const auto model = Load(GetParam().rope), without = Load("");
  ASSERT_TRUE(model && without);
  const std::vector<int32_t> tokens = Tokens(200, 1);
  const std::vector<float> expected = PlainLogits(path_, GetParam().params(), {}, tokens);
  const double off = MeanSquare(PithLogits(model, "full", tokens), expected);
  const double control = MeanSquare(PithLogits(without, "full", tokens), expected);
  EXPECT_GT(control, 100 * off) << "the control: without the options";
  // Against PlainContext, as `pith parity` does it, in uneven blocks and token by token.
  const auto parity = testing::CompareReaders(model, testing::UnevenBlocks(200, 64), 2, 5);
  ASSERT_TRUE(parity) << parity.error().message;
  EXPECT_TRUE(parity->exact() && parity->telling()) << parity->ToString();
}

// What is taken over from elsewhere in another sequence has its keys turned by pith.
using ModelRopeKeys = ModelRope;
TEST_P(ModelRopeKeys, KeysThatPithTurnsStandAsLibllamaWouldTurnThem) {
  const auto model = Load(GetParam().rope);
  ASSERT_NE(model, nullptr);
  const auto engine = MakeEngine(model, "full");
  const std::vector<int32_t> before = Tokens(60, 1), edited = Tokens(93, 2), text = Tokens(100, 3);
  const auto reader = [&](const std::vector<int32_t>& begin, bool with_text) {
    const SequenceId id = *engine->NewSequence();
    EXPECT_TRUE(engine->Prefill(id, begin));
    EXPECT_TRUE(!with_text || engine->Prefill(id, text));
    return id;
  };
  const SequenceId source = reader(before, true), target = reader(edited, false), fresh = reader(edited, true);
  const Status status = engine->Splice(target, source, 60, 160, false);
  ASSERT_TRUE(status) << status.error().message;
  const std::vector<float> is = engine->EntryRows(target, 0, false), read = engine->EntryRows(fresh, 0, false),
                           was = engine->EntryRows(source, 0, false);
  const LayerShape& shape = model->info().layers[0];
  const auto dim = static_cast<size_t>(shape.key_dim);
  double most = 0, off = 0, unturned = 0;
  for (size_t h = 0; h < static_cast<size_t>(shape.num_kv_heads); ++h) {
    for (size_t i = 0; i < 100 * dim; ++i) {
      const double expected = read[(h * 193 + 93) * dim + i];
      most = std::max(most, std::abs(expected));
      off = std::max(off, std::abs(is[(h * 193 + 93) * dim + i] - expected));
      unturned = std::max(unturned, std::abs(was[(h * 160 + 60) * dim + i] - expected));
    }
  }
  EXPECT_LT(off, 2e-3 * most);
  EXPECT_GT(unturned, 0.05 * most) << "the control";
}

constexpr RopeCase kCases[] = {{"Linear", "llama", kLinear, Linear},
                               {"Yarn", "llama", kYarn, Yarn},
                               {"YarnInFull", "llama", kYarnInFull, YarnInFull},
                               {"Base", "llama", kBase, Base},
                               {"YarnOfHalves", "qwen3", kYarn, Yarn},  // halves are pairs, behind a norm
                               {"YarnOfExperts", "qwen3moe", kYarn, Yarn}};
INSTANTIATE_TEST_SUITE_P(Every, ModelRope, ::testing::ValuesIn(kCases),
                         [](const auto& test) { return std::string(test.param.name); });
INSTANTIATE_TEST_SUITE_P(Every, ModelRopeKeys, ::testing::ValuesIn(kCases),
                         [](const auto& test) { return std::string(test.param.name); });
// Layers that slide keep their own rotation; of latents pith turns none.
INSTANTIATE_TEST_SUITE_P(Others, ModelRope,
                         ::testing::Values(RopeCase{"YarnBesideWindows", "gemma3", kYarn, Yarn},
                                           RopeCase{"YarnOfLatents", "deepseek2", kYarn, Yarn}),
                         [](const auto& test) { return std::string(test.param.name); });

using ModelRotations = ModelOverriding;
TEST_F(ModelRotations, FollowTheOptions) {
  const auto plain = Load(""), linear = Load(kLinear), yarn = Load(kYarn),
             none = Load("rope-scaling=none,rope-scale=4");
  ASSERT_TRUE(plain && linear && yarn && none);
  const auto pairs = [](const auto& model) { return model->info().layers[0].rotation->pairs; };
  ASSERT_GE(pairs(plain).size(), 2U);
  for (size_t i = 0; i < pairs(plain).size(); ++i) {
    EXPECT_NEAR(pairs(linear)[i].angle, pairs(plain)[i].angle / 4, 1e-6);
    EXPECT_EQ(pairs(linear)[i].magnitude, 1);
    EXPECT_NEAR(pairs(yarn)[i].magnitude, 1 + 0.1 * std::log(4), 1e-5);
  }
  EXPECT_NEAR(pairs(yarn).front().angle, pairs(plain).front().angle, 1e-6) << "extrapolated";
  EXPECT_NEAR(pairs(yarn).back().angle, pairs(plain).back().angle / 4, 1e-6) << "interpolated";
  EXPECT_EQ(pairs(none), pairs(plain));
}

// The same numbers by the file's own keys: whatever a recipe does with the rotation is the same.
TEST_F(ModelRotations, AreTheSameByMetadata) {
  const auto by_options = Load(kYarn), without = Load("");
  const auto by_metadata = Load("",
                                "llama.rope.scaling.type=str:yarn,llama.rope.scaling.factor=float:4,"
                                "llama.rope.scaling.original_context_length=int:64");
  ASSERT_TRUE(by_options && by_metadata && without);
  const std::vector<int32_t> tokens = Tokens(300, 4);
  for (const char* recipe :
       {"full", "score=kvzip:read=echo alloc=global", "score=kvzip:read=echo alloc=global act=residue",
        "score=expectedattention alloc=global", "keydiff"}) {
    SCOPED_TRACE(recipe);
    const int keep = std::string(recipe) == "full" ? 0 : 96;
    const std::vector<float> ours = PithLogits(by_options, recipe, tokens, keep);
    EXPECT_EQ(ours, PithLogits(by_metadata, recipe, tokens, keep));
    EXPECT_GT(Farthest(ours, PithLogits(without, recipe, tokens, keep)), 1e-3) << "the control";
  }
}

TEST_F(ModelRotations, ExtendTheTrainedContextAsLibllamaDoes) {
  const int trained = Load("")->info().trained_ctx;
  EXPECT_EQ(Load("rope-scaling=yarn,rope-scale=4")->info().trained_ctx, 4 * trained);
  EXPECT_EQ(Load(kYarn)->info().trained_ctx, 256);
  EXPECT_EQ(Load(kLinear)->info().trained_ctx, trained) << "libllama leaves it where it only scales";
  const auto refused = TryLoad(Overrides("rope-scaling=yarn,rope-scale=10000,yarn-orig-ctx=1000000"));
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().message, "rope-scale extends a context of 1000000 tokens to more than libllama counts");
}

using ModelIdentity = ModelOverriding;
TEST_F(ModelIdentity, IsAnotherOneWhereSomethingElseIsComputed) {
  const uint64_t plain = Load("")->fingerprint(), yarn = Load(kYarn)->fingerprint();
  EXPECT_NE(plain, yarn);
  EXPECT_EQ(yarn, Load("yarn-orig-ctx=64,rope-freq-scale=0.25,rope-scaling=yarn")->fingerprint());
  EXPECT_NE(yarn, Load(kLinear)->fingerprint());
  EXPECT_NE(plain, Load("", "llama.rope.freq_base=float:500")->fingerprint());
  EXPECT_EQ(Load("", "llama.rope.freq_base=float:500,llama.context_length=int:400")->fingerprint(),
            Load("", "llama.context_length=int:400,llama.rope.freq_base=float:500,llama.context_length=int:4")
                ->fingerprint());
  EXPECT_EQ(plain, Load("", "general.name=str:x,tokenizer.ggml.add_bos_token=bool:true")->fingerprint());
}

TEST_F(ModelIdentity, SavedSequencesOfAnotherOneAreRefused) {
  const auto plain = Load(""), yarn = Load(kYarn), same = Load(kYarn, "general.name=str:x");
  ASSERT_TRUE(plain && yarn && same);
  const std::string file = path_ + ".session";
  const auto from = MakeEngine(yarn, "full");
  const SequenceId id = *from->NewSequence();
  ASSERT_TRUE(from->Prefill(id, Tokens(80, 1)));
  ASSERT_TRUE(from->Save(id, file, {}));
  const auto saved = from->SaveToMemory(id, {});
  ASSERT_TRUE(saved);
  const auto other = MakeEngine(plain, "full");
  for (const auto& refused : {other->Restore(file), other->RestoreFromMemory(*saved, {})}) {
    ASSERT_FALSE(refused);
    EXPECT_NE(refused.error().message.find("or with other --rope-..., --yarn-... or --override-kv"), std::string::npos)
        << refused.error().message;
  }
  const auto again = MakeEngine(same, "full");
  EXPECT_TRUE(again->Restore(file));
  std::filesystem::remove(file);
}

TEST_F(ModelIdentity, StoredPrefixesOfAnotherOneAreNotFound) {
  store::StoreOptions memory;
  memory.ram_bytes = size_t{16} << 20;
  auto store = store::Store::Open(memory);
  ASSERT_TRUE(store);
  const std::vector<int32_t> text = Tokens(300, 1);
  const auto taken = [&](const std::shared_ptr<HostModel>& model, bool keeps) {
    const std::shared_ptr<Engine> engine = MakeEngine(model, "full");
    StoredPrefixes prefixes(*store, *model);
    const auto sequence = *EngineSequence::Create(engine);
    const auto found = prefixes.TakeInto(*sequence, KeyOfEngine(*engine), text, 0);
    if (!keeps) return found ? found->tokens : 0;
    EXPECT_TRUE(sequence->Feed(text, false, {}));
    EXPECT_TRUE(prefixes.Keep(*engine, sequence->id(), KeyOfEngine(*engine), text, 0, 100));
    return size_t{0};
  };
  (void)taken(Load(kYarn), true);
  EXPECT_EQ(taken(Load(""), false), 0U);
  EXPECT_EQ(taken(Load(kLinear), false), 0U);
  EXPECT_GT(taken(Load(kYarn), false), 0U) << "the control";
}

using ModelMetadata = ModelOverriding;
TEST_F(ModelMetadata, IsOverriddenForAllThatReadIt) {
  const auto plain = Load("");
  const auto model =
      Load("",
           "llama.context_length=int:777,general.name=str:other,general.sampling.temp=float:0.31,"
           "\"tokenizer.chat_template=str:{{ messages[0].content }}, twice\",tokenizer.ggml.pre=str:default,"
           "tokenizer.ggml.eos_token_id=int:7");
  ASSERT_TRUE(plain && model);
  EXPECT_EQ(model->info().trained_ctx, 777);
  EXPECT_NE(plain->info().trained_ctx, 777);
  EXPECT_EQ(SamplingDefaults(*model).temperature, 0.31f);
  EXPECT_NE(SamplingDefaults(*plain).temperature, 0.31f);
  const ChatMessage message{"user", "x"};
  EXPECT_EQ(model->ApplyChatTemplate({&message, 1}, true).value_or(""), "x, twice");
  EXPECT_EQ(model->eos_token(), 7);
  const auto listed = model->ListMetadata();
  EXPECT_EQ(std::ranges::count(listed, std::pair<std::string, std::string>("general.name", "other")), 1);
  EXPECT_EQ(std::ranges::count(listed, std::pair<std::string, std::string>("llama.context_length", "777")), 1);
}

TEST_F(ModelMetadata, OfAnotherTypeIsRefused) {
  ExpectRefused("llama.context_length=str:many",
                "the override of llama.context_length has the type str, and " + path_ + " has int there");
  ExpectRefused("llama.context_length=float:5",
                "the override of llama.context_length has the type float, and " + path_ + " has int there");
  ExpectRefused("tokenizer.ggml.tokens=str:x", "the override of tokenizer.ggml.tokens has the type str, and " + path_ +
                                                   " has a list, which none can replace there");
  ExpectRefused("llama.rope.scaling.attn_factor=int:1",
                "an override has the wrong type: key 'llama.rope.scaling.attn_factor', expected float but got int");
}

TEST_F(ModelMetadata, NumbersOfExpertsAreAsInLibllama) {
  Use("qwen3moe", true);
  const auto model = Load("", "qwen3moe.expert_used_count=int:1"), plain = Load("");
  ASSERT_TRUE(model && plain);
  const std::vector<int32_t> tokens = Tokens(150, 1);
  std::vector<llama_model_kv_override> overrides(2);
  overrides[0].tag = LLAMA_KV_OVERRIDE_TYPE_INT;
  std::strcpy(overrides[0].key, "qwen3moe.expert_used_count");  // NOLINT: it fits
  overrides[0].val_i64 = 1;
  const std::vector<float> expected = PlainLogits(path_, llama_context_default_params(), overrides, tokens);
  const double off = MeanSquare(PithLogits(model, "full", tokens), expected);
  EXPECT_GT(MeanSquare(PithLogits(plain, "full", tokens), expected), 100 * off) << "the control";
  // A number that libllama aborts on ends the child that tries it.
  const auto refused = TryLoad(Overrides("", "qwen3moe.expert_used_count=int:1000"));
  ASSERT_FALSE(refused);
}

}  // namespace
}  // namespace pith
