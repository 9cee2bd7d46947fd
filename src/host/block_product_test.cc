#include "host/block_product.h"

#include <gtest/gtest.h>
#include <pthread.h>
#include <signal.h>

#include <atomic>
#include <chrono>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "host/product_test_util.h"

namespace pith {
namespace {

using Floats = std::vector<float>;

class BlockProductTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!BlockProduct::IsBuilt()) GTEST_SKIP() << "built without oneDNN";
  }
};

TEST_F(BlockProductTest, IsExactForEveryType) {
  for (const ggml_type type :
       {GGML_TYPE_Q4_0, GGML_TYPE_Q4_1, GGML_TYPE_Q5_0, GGML_TYPE_Q5_1, GGML_TYPE_Q8_0, GGML_TYPE_Q2_K, GGML_TYPE_Q3_K,
        GGML_TYPE_Q4_K, GGML_TYPE_Q5_K, GGML_TYPE_Q6_K, GGML_TYPE_IQ4_NL, GGML_TYPE_IQ4_XS, GGML_TYPE_IQ2_XXS,
        GGML_TYPE_IQ3_S, GGML_TYPE_MXFP4}) {
    SCOPED_TRACE(ggml_type_name(type));
    Product product(type, 512, 100, 37);
    ASSERT_TRUE(BlockProduct::Suits(product.node()));
    BlockProduct block;
    EXPECT_LT(product.Error(product.Run<Floats>(block, 2)), 1e-5);
    EXPECT_GT(product.Error(product.Plain()), 1e-3);  // the control: what rounding to 8 bits costs
  }
}

TEST_F(BlockProductTest, AnyShape) {
  std::mt19937 random(7);
  const auto draw = [&](int64_t from, int64_t to) { return std::uniform_int_distribution<int64_t>(from, to)(random); };
  for (int i = 0; i < 20; ++i) {
    const int64_t width = 32 * draw(1, 60), num_outputs = draw(1, 700), num_rows = draw(32, 200);
    SCOPED_TRACE(std::to_string(width) + " x " + std::to_string(num_outputs) + " x " + std::to_string(num_rows));
    Product product(GGML_TYPE_Q4_1, width, num_outputs, num_rows);
    BlockProduct block;
    EXPECT_LT(product.Error(product.Run<Floats>(block, static_cast<int>(draw(1, 4)))), 1e-5);
  }
}

TEST_F(BlockProductTest, TheSameBitsOnAnyNumberOfThreadsAndAgain) {
  Product product(GGML_TYPE_Q5_0, 576, 1537, 65);
  BlockProduct block;
  const std::vector<float> expected = product.Run<Floats>(block, 1);
  for (const int num_threads : {1, 2, 5, 33}) {
    product.Spoil();
    EXPECT_EQ(product.Run<Floats>(block, num_threads), expected) << num_threads << " threads";
  }
}

TEST_F(BlockProductTest, LeavesTheRestToLibllama) {
  EXPECT_FALSE(BlockProduct::Suits(Product(GGML_TYPE_Q4_1, 64, 64, 31).node())) << "too few rows";
  EXPECT_FALSE(BlockProduct::Suits(Product(GGML_TYPE_F16, 64, 64, 64).node())) << "nothing to unpack";
  Product product(GGML_TYPE_Q4_1, 64, 64, 64);
  EXPECT_TRUE(BlockProduct::Suits(product.node()));
  product.weights()->extra = &product;
  EXPECT_FALSE(BlockProduct::Suits(product.node())) << "packed again for libllama's kernels";
}

std::atomic<int> g_signals{0};

// What a handler of Ctrl-C meets: kernels of oneDNN that have their stack on the heap, below which a signal's frame
// would be written.
TEST_F(BlockProductTest, SignalsWaitUntilItIsDone) {
  struct sigaction action {
  }, before{};
  action.sa_handler = [](int) { g_signals.fetch_add(1); };
  action.sa_flags = SA_RESTART;
  ASSERT_EQ(::sigaction(SIGUSR1, &action, &before), 0);
  g_signals = 0;
  Product product(GGML_TYPE_Q4_1, 576, 1536, 256);
  BlockProduct block;
  const std::vector<float> expected = product.Run<Floats>(block, 1);
  for (int i = 0; i < 20; ++i) {
    std::atomic<bool> done{false};
    std::thread other([&, target = ::pthread_self()] {
      while (!done) {
        ::pthread_kill(target, SIGUSR1);
        std::this_thread::sleep_for(std::chrono::microseconds(20));
      }
    });
    product.Spoil();
    Floats scratch;
    block.Run(product.node(), 1, scratch);
    done = true;
    other.join();
    const auto* output = static_cast<const float*>(product.node()->data);
    EXPECT_EQ(std::vector<float>(output, output + expected.size()), expected);
  }
  EXPECT_GT(g_signals, 0);  // the control: they came
  ::sigaction(SIGUSR1, &before, nullptr);
}

}  // namespace
}  // namespace pith
