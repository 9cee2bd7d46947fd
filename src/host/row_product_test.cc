#include "host/row_product.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "base/turn_test_util.h"
#include "host/product_test_util.h"

namespace pith {
namespace {

using kernels::RoundedRows;

constexpr ggml_type kTypes[] = {GGML_TYPE_Q4_0, GGML_TYPE_Q4_1, GGML_TYPE_Q5_0,
                                GGML_TYPE_Q5_1, GGML_TYPE_Q8_0, GGML_TYPE_Q6_K};

class RowProductTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!kernels::ByteProductsAreFast()) GTEST_SKIP() << "no instructions for them on this machine";
  }
};

// Both round the input to 8 bits in blocks of 32.
TEST_F(RowProductTest, IsAsExactAsLibllama) {
  for (const ggml_type type : kTypes) {
    for (const int64_t num_rows : {1, 2, 7, 40}) {
      SCOPED_TRACE(std::string(ggml_type_name(type)) + " " + std::to_string(num_rows));
      Product product(type, 512, 100, num_rows);
      ASSERT_TRUE(RowProduct::Suits(product.node()));
      RowProduct way;
      const double error = product.Error(product.Run<RoundedRows>(way, 2));
      const double plain = product.Error(product.Plain());
      EXPECT_LT(error, 1.1 * plain);
      EXPECT_GT(error, plain / 10) << "the control: rounding can be seen";
    }
  }
}

TEST_F(RowProductTest, AnyShape) {
  for (const uint32_t seed : MyTurnOf(32)) {
    std::mt19937 random(seed);
    const auto draw = [&](int64_t from, int64_t to) {
      return std::uniform_int_distribution<int64_t>(from, to)(random);
    };
    const ggml_type type = kTypes[static_cast<size_t>(draw(0, 5))];
    const int64_t width = ggml_blck_size(type) * draw(1, 9600 / ggml_blck_size(type)), num_outputs = draw(1, 700),
                  num_rows = draw(1, 40);
    SCOPED_TRACE(std::string(ggml_type_name(type)) + " " + std::to_string(width) + " x " + std::to_string(num_outputs) +
                 " x " + std::to_string(num_rows));
    Product product(type, width, num_outputs, num_rows);
    RowProduct way;
    EXPECT_LT(product.Error(product.Run<RoundedRows>(way, static_cast<int>(draw(1, 4)))), 0.06);
  }
}

TEST_F(RowProductTest, TheSameBitsOnAnyNumberOfThreadsAndAgain) {
  Product product(GGML_TYPE_Q4_1, 576, 1537, 3);
  RowProduct way;
  const std::vector<float> expected = product.Run<RoundedRows>(way, 1);
  for (const int num_threads : {1, 2, 5, 33}) {
    product.Spoil();
    EXPECT_EQ(product.Run<RoundedRows>(way, num_threads), expected) << num_threads << " threads";
  }
}

TEST_F(RowProductTest, LeavesTheRestToOthers) {
  EXPECT_FALSE(RowProduct::Suits(Product(GGML_TYPE_Q4_1, 64, 64, 41).node())) << "too many rows";
  EXPECT_FALSE(RowProduct::Suits(Product(GGML_TYPE_F16, 64, 64, 1).node())) << "not in blocks of bytes";
  EXPECT_FALSE(RowProduct::Suits(Product(GGML_TYPE_IQ4_NL, 64, 64, 1).node())) << "codes of a table";
  Product product(GGML_TYPE_Q4_1, 64, 64, 1);
  EXPECT_TRUE(RowProduct::Suits(product.node()));
  product.weights()->extra = &product;
  EXPECT_FALSE(RowProduct::Suits(product.node())) << "packed again for libllama's kernels";
}

}  // namespace
}  // namespace pith
