#include "evict/learn/model_file.h"

#include <array>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "base/byte_io.h"
#include "evict/learn/checkpoint.h"
#include "evict/learn/coldrl.h"
#include "evict/learn/one_bit_model.h"
#include "evict/learn/survival.h"

namespace pith::evict {
namespace {

Model SomeModel() {
  Model model;
  model.kind = ModelKind::kColdRl;
  model.net = Net(std::array<uint32_t, 3>{ColdRl::kInputs, 9, ColdRl::kOutputs});
  Random random(5);
  model.net.Initialize(random);
  for (size_t i = 0; i < ColdRl::kInputs; ++i) {
    model.mean.push_back(static_cast<float>(i));
    model.deviation.push_back(1 + static_cast<float>(i));
  }
  return model;
}

std::string Message(std::string_view bytes, ModelKind kind = ModelKind::kColdRl) {
  const Result<Model> model = ParseModel(bytes, kind, "x");
  return model ? "" : model.error().message;
}

// The bytes with a right checksum.
std::string Sealed(std::string bytes) {
  bytes.resize(bytes.size() - 8);
  Hash64 hash;
  hash.Add(bytes);
  const uint64_t sum = hash.value();
  bytes.append(reinterpret_cast<const char*>(&sum), sizeof(sum));
  return bytes;
}

TEST(ModelFile, ComesBackAsItWas) {
  const Model model = SomeModel();
  const std::string bytes = SerializeModel(model);
  const Result<Model> read = ParseModel(bytes, ModelKind::kColdRl, "x");
  ASSERT_TRUE(read) << read.error().message;
  EXPECT_EQ(read->net.parameters(), model.net.parameters());
  EXPECT_EQ(read->mean, model.mean);
  EXPECT_EQ(read->deviation, model.deviation);
  EXPECT_EQ(SerializeModel(*read), bytes);
}

TEST(ModelFile, EveryDamagedBitAndEveryCutIsFound) {
  const std::string bytes = SerializeModel(SomeModel());
  for (size_t at = 0; at < bytes.size(); ++at) {
    std::string damaged = bytes;
    damaged[at] = static_cast<char>(damaged[at] ^ (1 << (at % 8)));
    ASSERT_NE(Message(damaged), "") << at;
    ASSERT_NE(Message(std::string_view(bytes).substr(0, at)), "") << at;
  }
  EXPECT_NE(Message(bytes + "x"), "");
}

TEST(ModelFile, SaysWhatIsWrong) {
  const std::string bytes = SerializeModel(SomeModel());
  EXPECT_EQ(Message("something"), "x: no model of an evictor");
  EXPECT_EQ(Message(bytes, ModelKind::kSurvival), "x: the model is for coldrl, not for learned");
  std::string other = bytes;
  other[8] = 9;  // kind
  EXPECT_EQ(Message(Sealed(other)), "x: a model for an evictor that is not known here");
  other = bytes;
  other[12] = 77;  // number of widths
  EXPECT_EQ(Message(Sealed(other)), "x: it has no header that makes sense");
  // The answer of its own test, which stands before the checksum.
  other = bytes;
  other[bytes.size() - 9] = static_cast<char>(other[bytes.size() - 9] ^ 0x40);
  EXPECT_NE(Message(Sealed(other)), "");
  Model model = SomeModel();
  model.deviation[3] = 0;
  EXPECT_EQ(Message(SerializeModel(model)), "x: a deviation is not above 0");
  model = SomeModel();
  model.net.parameters()[4] = std::numeric_limits<float>::infinity();
  EXPECT_NE(Message(SerializeModel(model)).find("no finite numbers"), std::string::npos);
  model = SomeModel();
  model.net = Net(std::array<uint32_t, 2>{ColdRl::kInputs, 4});
  EXPECT_NE(Message(SerializeModel(model)).find("inputs and outputs"), std::string::npos);
}

TEST(ModelFile, UnknownInputsAreTheMean) {
  const Model model = SomeModel();
  std::vector<float> features(ColdRl::kInputs, 1e9f);
  features[0] = -1e9f;
  features[1] = std::nanf("");
  features[2] = 2 + 1.5f * 3;
  std::vector<float> inputs(ColdRl::kInputs);
  model.Normalize(features.data(), inputs.data());
  EXPECT_EQ(inputs[0], -5);
  EXPECT_EQ(inputs[1], 0);
  EXPECT_EQ(inputs[2], 1.5f);
  EXPECT_EQ(inputs[3], 5);
}

TEST(ModelFile, TheBuiltInModelsAreWhole) {
  using enum ModelKind;
  for (const ModelKind kind : {kColdRl, kSurvival, kDiscardBit, kPhaseBit}) {
    const Result<Model> model = LoadModel("", kind);
    EXPECT_TRUE(model) << model.error().message;
  }
}

TEST(Checkpoint, ComesBackAndDamageIsFound) {
  const Checkpoint state{7, {1, 2, 3}, {{1.5f, 2.5f}, {}, {3.5f}}};
  const std::string bytes = SerializeCheckpoint(state);
  const Result<Checkpoint> read = ParseCheckpoint(bytes, "x");
  ASSERT_TRUE(read) << read.error().message;
  EXPECT_EQ(read->fingerprint, 7u);
  EXPECT_EQ(read->counters, state.counters);
  EXPECT_EQ(read->arrays, state.arrays);
  for (size_t at = 0; at < bytes.size(); ++at) {
    std::string damaged = bytes;
    damaged[at] = static_cast<char>(damaged[at] ^ 1);
    EXPECT_FALSE(ParseCheckpoint(damaged, "x"));
    EXPECT_FALSE(ParseCheckpoint(std::string_view(bytes).substr(0, at), "x"));
    EXPECT_FALSE(ParseCheckpoint(Sealed(damaged), "x") && at < 8);
  }
}

}  // namespace
}  // namespace pith::evict
