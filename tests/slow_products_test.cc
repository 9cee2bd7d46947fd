// A prompt read with products in float32 is nearer to the model whose weights are float32 than one read as libllama
// does it, in 8 bits.
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include "base/paths.h"
#include "engine/engine.h"
#include "host/block_product.h"
#include "host/model.h"
#include "lab/measure.h"
#include "llama.h"

namespace pith::testing {
namespace {

constexpr int kThreads = 2;
constexpr int kPrompts = 12;

// The last rows' logits of some prompts, [kPrompts, vocab].
std::vector<float> Logits(const std::string& path, bool own_products) {
  HostModelOptions model_options;
  model_options.num_threads = kThreads;
  model_options.own_products = own_products;
  auto model = HostModel::Load(path, model_options);
  EXPECT_TRUE(model) << model.error().message;
  if (!model) return {};
  EngineOptions options;
  options.num_ctx = 200;
  options.num_threads = kThreads;
  options.recipe = *ParseRecipe("full");
  auto engine = Engine::Create(*model, options);
  EXPECT_TRUE(engine) << engine.error().message;
  if (!engine) return {};
  std::vector<float> all;
  for (int prompt = 0; prompt < kPrompts; ++prompt) {
    std::vector<int32_t> tokens;
    for (int i = 0; i < 80 + prompt; ++i) tokens.push_back((i * i + 37 * prompt) % 20000);
    const auto sequence = *(*engine)->NewSequence();
    std::vector<float> logits;
    const Status read = (*engine)->Prefill(sequence, tokens, false, &logits);
    EXPECT_TRUE(read) << read.error().message;
    all.insert(all.end(), logits.begin(), logits.end());
    (*engine)->Free(sequence);
  }
  return all;
}

TEST(SlowProducts, PromptsAreNearerToTheModelInFloat32) {
  if (!BlockProduct::IsBuilt()) GTEST_SKIP() << "built without oneDNN";
  const std::vector<float> in_float = Logits(DefaultModelPath(), true), in_bytes = Logits(DefaultModelPath(), false);
  const std::string exact_path = ::testing::TempDir() + fmt::format("pith_f32_{}.gguf", getpid());
  llama_model_quantize_params params = llama_model_quantize_default_params();
  params.ftype = LLAMA_FTYPE_ALL_F32;
  params.allow_requantize = true;
  ASSERT_EQ(llama_model_quantize(DefaultModelPath().c_str(), exact_path.c_str(), &params), 0);
  const std::vector<float> exact = Logits(exact_path, true);
  std::filesystem::remove(exact_path);
  ASSERT_EQ(exact.size(), in_float.size());
  ASSERT_EQ(exact.size(), in_bytes.size());
  const size_t vocab = exact.size() / kPrompts;
  const double kl_float = MeanKl(exact, in_float, vocab), kl_bytes = MeanKl(exact, in_bytes, vocab);
  // Logits themselves, of one row, are still made in 8 bits.
  EXPECT_LT(kl_float, kl_bytes / 2) << kl_bytes;
}

}  // namespace
}  // namespace pith::testing
