#include "kernels/huffman.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <span>
#include <vector>

namespace pith::kernels {
namespace {

std::vector<int32_t> RandomSymbols(std::span<const int64_t> counts, size_t count, std::mt19937& random) {
  std::discrete_distribution<int32_t> draw(counts.begin(), counts.end());
  std::vector<int32_t> symbols(count);
  for (int32_t& symbol : symbols) symbol = draw(random);
  return symbols;
}

// Of the specification's block of 8 codes.
TEST(HuffmanTest, WorkedExample) {
  const std::vector<int32_t> symbols = {1, 2, 2, 0, 4, 1, 2, 2};
  const HuffmanCode code(std::vector<int64_t>{2, 3, 5, 1, 2, 1});
  EXPECT_EQ(code.lengths(), (std::vector<int32_t>{3, 3, 1, 4, 3, 4}));
  EXPECT_EQ(code.codewords(), (std::vector<int32_t>{0b100, 0b101, 0, 0b1110, 0b110, 0b1111}));
  EXPECT_EQ(code.BitsOf(symbols), 16);
  std::vector<uint8_t> bytes;
  code.Write(symbols, bytes);
  EXPECT_EQ(bytes, (std::vector<uint8_t>{0b10100100, 0b11010100}));
  EXPECT_EQ(HuffmanCode(std::vector<int64_t>{1, 2, 4, 1}).lengths(), (std::vector<int32_t>{3, 2, 1, 3}));
  EXPECT_EQ(HuffmanCode(std::vector<int64_t>{7}).lengths(), (std::vector<int32_t>{1}));
}

// Vectors one after another, each read from its own first byte; codes longer than one look included.
TEST(HuffmanTest, VectorsComeBackWhateverTheirCodes) {
  std::mt19937 random(1);
  for (const size_t alphabet : {1, 2, 3, 19, 42, 256}) {
    for (const double ratio : {1.0, 0.8, 0.5}) {
      std::vector<int64_t> counts;
      for (size_t s = 0; s < alphabet; ++s) {
        counts.push_back(1 + static_cast<int64_t>(1e6 * std::pow(ratio, static_cast<double>(s))));
      }
      const HuffmanCode code(counts);
      EXPECT_LE(*std::ranges::max_element(code.lengths()), HuffmanCode::kMaxLength);
      std::vector<std::vector<int32_t>> vectors;
      std::vector<uint8_t> bytes;
      for (const size_t size : {1, 7, 64, 129}) {
        vectors.push_back(RandomSymbols(counts, size, random));
        vectors.back()[0] = static_cast<int32_t>(alphabet - 1);  // the rarest one
        code.Write(vectors.back(), bytes);
      }
      std::span<const uint8_t> rest = bytes;
      for (const std::vector<int32_t>& symbols : vectors) {
        std::vector<int32_t> read(symbols.size());
        const auto used = code.Read(rest, read);
        ASSERT_TRUE(used) << alphabet << " " << ratio;
        EXPECT_EQ(read, symbols) << alphabet << " " << ratio;
        EXPECT_EQ(*used, static_cast<size_t>(code.BitsOf(symbols) + 7) / 8);
        EXPECT_FALSE(code.Read(rest.first(*used - 1), read)) << "it ends too early";
        rest = rest.subspan(*used);
      }
      EXPECT_TRUE(rest.empty());
    }
  }
}

// An optimal code of Fibonacci numbers would have one bit more for each symbol.
TEST(HuffmanTest, CodesHaveAtMostSixteenBits) {
  std::vector<int64_t> counts = {1, 1};
  while (counts.size() < 60) counts.push_back(counts.back() + counts[counts.size() - 2]);
  const HuffmanCode code(counts);
  EXPECT_EQ(*std::ranges::max_element(code.lengths()), HuffmanCode::kMaxLength);
  std::mt19937 random(2);
  std::vector<int32_t> symbols(1000), read(1000);
  for (int32_t& symbol : symbols) symbol = static_cast<int32_t>(random() % counts.size());
  std::vector<uint8_t> bytes;
  code.Write(symbols, bytes);
  ASSERT_TRUE(code.Read(bytes, read));
  EXPECT_EQ(read, symbols);
}

TEST(HuffmanTest, BitsAreNearTheEntropy) {
  std::mt19937 random(3);
  const std::vector<int64_t> weights = {1, 4, 20, 60, 100, 55, 22, 5, 2, 1};
  const std::vector<int32_t> symbols = RandomSymbols(weights, 20000, random);
  std::vector<int64_t> counts(weights.size(), 1);
  for (const int32_t symbol : symbols) ++counts[static_cast<size_t>(symbol)];
  const double total = static_cast<double>(symbols.size() + weights.size());
  double entropy = 0;
  for (const int64_t count : counts)
    entropy -= static_cast<double>(count) / total * std::log2(static_cast<double>(count) / total);
  const double bits = static_cast<double>(HuffmanCode(counts).BitsOf(symbols)) / static_cast<double>(symbols.size());
  EXPECT_GE(bits, entropy - 0.01);
  EXPECT_LE(bits, entropy + 0.1);
}

TEST(HuffmanTest, LengthsThatAreNoCodeAreRefused) {
  const HuffmanCode code(std::vector<int64_t>{2, 3, 5, 1, 2, 1});
  const std::vector<uint8_t> lengths(code.lengths().begin(), code.lengths().end());
  const auto same = HuffmanCode::FromLengths(lengths);
  ASSERT_TRUE(same);
  EXPECT_EQ(same->codewords(), code.codewords());
  EXPECT_TRUE(HuffmanCode::FromLengths(std::vector<uint8_t>{1}));
  for (const std::vector<uint8_t>& none :
       {std::vector<uint8_t>{}, {2}, {1, 2}, {1, 1, 1}, {1, 0}, {17, 1}, {1, 2, 2, 16}, std::vector<uint8_t>(257, 8)}) {
    EXPECT_FALSE(HuffmanCode::FromLengths(none)) << none.size();
  }
  // Of an alphabet of one symbol the other bit says nothing.
  std::vector<int32_t> read(3);
  EXPECT_FALSE(HuffmanCode(std::vector<int64_t>{7}).Read(std::vector<uint8_t>{0xff, 0xff, 0xff, 0xff}, read));
}

}  // namespace
}  // namespace pith::kernels
