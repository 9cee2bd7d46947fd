#include "evict/learn/net.h"

#include <array>
#include <cmath>
#include <vector>

#include <gtest/gtest.h>

namespace pith::evict {
namespace {

constexpr uint32_t kWidths[] = {5, 20, 33, 3};

std::vector<float> RandomInputs(size_t count, uint64_t seed) {
  Random random(seed);
  std::vector<float> inputs(count);
  for (float& x : inputs) x = static_cast<float>(2 * random.Uniform() - 1);
  return inputs;
}

// By the definition, in double.
std::vector<double> Naive(const Net& net, const float* input) {
  std::vector<double> in(input, input + net.inputs());
  for (size_t l = 0; l < net.layers().size(); ++l) {
    const Net::Layer& layer = net.layers()[l];
    std::vector<double> out(layer.out);
    for (uint32_t o = 0; o < layer.out; ++o) {
      out[o] = net.parameters()[layer.biases + o];
      for (uint32_t j = 0; j < layer.in; ++j) out[o] += net.parameters()[layer.weights + j * layer.stride + o] * in[j];
      if (l + 1 < net.layers().size()) out[o] = std::max(0.0, out[o]);
    }
    in = out;
  }
  return in;
}

Net RandomNet(uint64_t seed) {
  Net net(kWidths);
  Random random(seed);
  net.Initialize(random);
  for (const Net::Layer& layer : net.layers()) {
    for (uint32_t o = 0; o < layer.out; ++o) {
      net.parameters()[layer.biases + o] = static_cast<float>(random.Uniform() - 0.5);
    }
  }
  return net;
}

TEST(Net, GivesWhatItsDefinitionSaysForAnyNumberOfRows) {
  const Net net = RandomNet(1);
  for (const size_t rows : {1u, 2u, 4u, 7u, 16u}) {
    const std::vector<float> inputs = RandomInputs(rows * net.inputs(), rows);
    NetBuffers buffers(net, rows);
    const float* outputs = Forward(net, inputs.data(), rows, buffers);
    for (size_t r = 0; r < rows; ++r) {
      const std::vector<double> right = Naive(net, inputs.data() + r * net.inputs());
      for (uint32_t o = 0; o < net.outputs(); ++o) {
        EXPECT_NEAR(outputs[r * net.output_stride() + o], right[o], 1e-5) << rows << " " << r;
      }
    }
  }
}

TEST(Net, ColumnsGiveTheBitsOfRows) {
  const Net net = RandomNet(3);
  constexpr size_t kRows = Net::kLanes;
  const std::vector<float> inputs = RandomInputs(kRows * net.inputs(), 5);
  std::vector<float> columns(inputs.size());
  for (size_t r = 0; r < kRows; ++r) {
    for (uint32_t j = 0; j < net.inputs(); ++j) columns[j * kRows + r] = inputs[r * net.inputs() + j];
  }
  NetBuffers of_rows(net, kRows), of_columns(net, kRows);
  const float* const rows = Forward(net, inputs.data(), kRows, of_rows);
  const float* const given = ForwardColumns(net, columns.data(), of_columns);
  for (size_t r = 0; r < kRows; ++r) {
    for (uint32_t o = 0; o < net.outputs(); ++o) {
      EXPECT_EQ(given[o * kRows + r], rows[r * net.output_stride() + o]) << r << " " << o;
    }
  }
}

TEST(Net, SlopesAreThoseOfDifferences) {
  Net net = RandomNet(2);
  constexpr size_t kRows = 6;
  const std::vector<float> inputs = RandomInputs(kRows * net.inputs(), 9);
  NetBuffers buffers(net, kRows);
  // The loss: a fixed combination of all outputs.
  std::vector<float> wanted(kRows * net.output_stride(), 0.0f);
  for (size_t r = 0; r < kRows; ++r) {
    for (uint32_t o = 0; o < net.outputs(); ++o) {
      wanted[r * net.output_stride() + o] = static_cast<float>(r + 1) * (o == 1 ? -0.5f : 0.25f);
    }
  }
  Forward(net, inputs.data(), kRows, buffers);
  std::vector<float> gradient(net.parameters().size(), 0.0f);
  Backward(net, inputs.data(), wanted.data(), kRows, buffers, gradient);
  const auto loss = [&] {
    double sum = 0;
    for (size_t r = 0; r < kRows; ++r) {
      const std::vector<double> out = Naive(net, inputs.data() + r * net.inputs());
      for (uint32_t o = 0; o < net.outputs(); ++o) sum += wanted[r * net.output_stride() + o] * out[o];
    }
    return sum;
  };
  int checked = 0;
  for (size_t p = 0; p < gradient.size(); p += 7) {
    const float was = net.parameters()[p];
    constexpr float kStep = 1.0f / 4096;
    net.parameters()[p] = was + kStep;
    const double above = loss();
    net.parameters()[p] = was - kStep;
    const double below = loss();
    net.parameters()[p] = was;
    // Padding has no slope, and no part in the output.
    EXPECT_NEAR(gradient[p], (above - below) / (2.0 * kStep), 2e-3) << p;
    checked += gradient[p] != 0;
  }
  EXPECT_GT(checked, 50);
}

TEST(Net, AdamFindsAFunction) {
  constexpr uint32_t kSmall[] = {2, 16, 1};
  Net net(kSmall);
  Random random(3);
  net.Initialize(random);
  NetBuffers buffers(net, 32);
  Adam adam(net.parameters().size());
  std::vector<float> gradient(net.parameters().size(), 0.0f);
  std::vector<float> slopes(32 * net.output_stride(), 0.0f);
  std::array<float, 64> inputs;
  double loss = 0;
  for (int step = 0; step < 2000; ++step) {
    for (float& x : inputs) x = static_cast<float>(2 * random.Uniform() - 1);
    const float* outputs = Forward(net, inputs.data(), 32, buffers);
    loss = 0;
    for (size_t r = 0; r < 32; ++r) {
      const float error = outputs[r * net.output_stride()] - std::abs(inputs[2 * r] - inputs[2 * r + 1]);
      loss += error * error / 32;
      slopes[r * net.output_stride()] = 2 * error / 32;
    }
    Backward(net, inputs.data(), slopes.data(), 32, buffers, gradient);
    adam.Step(net.parameters(), gradient, 1e-2f, 0, 1);
  }
  EXPECT_LT(loss, 5e-3);
}

TEST(Net, WidthsAreChecked) {
  const auto valid = [](std::vector<uint32_t> widths) { return Net::ValidWidths(widths); };
  EXPECT_TRUE(valid({1, 1}));
  EXPECT_FALSE(valid({3}));
  EXPECT_FALSE(valid({3, 0, 1}));
  EXPECT_FALSE(valid({3, 257, 1}));
  EXPECT_FALSE(valid({3, 3, 3, 3, 3, 3}));
}

}  // namespace
}  // namespace pith::evict
