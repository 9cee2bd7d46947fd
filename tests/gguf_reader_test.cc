// GGUF containers that are read here must not be believed; what is written is what is read.
#include "tests/support/gguf_reader.h"

#include <gtest/gtest.h>

#include <cstring>

#include "tests/support/golden.h"

namespace pith::testing {
namespace {

class Writer {
 public:
  template <typename T>
  Writer& Put(T value) {
    const auto* bytes = reinterpret_cast<const uint8_t*>(&value);
    bytes_.insert(bytes_.end(), bytes, bytes + sizeof(T));
    return *this;
  }
  Writer& Text(const std::string& text) {
    Put<uint64_t>(text.size());
    bytes_.insert(bytes_.end(), text.begin(), text.end());
    return *this;
  }
  Writer& Align() {
    while (bytes_.size() % 32 != 0) bytes_.push_back(0);
    return *this;
  }
  const std::vector<uint8_t>& bytes() const { return bytes_; }

 private:
  std::vector<uint8_t> bytes_;
};

std::vector<uint8_t> SmallFile() {
  Writer out;
  out.Put<uint32_t>(0x46554747).Put<uint32_t>(3).Put<uint64_t>(2).Put<uint64_t>(2);
  out.Text("pith.param.n").Put<uint32_t>(4).Put<uint32_t>(7);
  out.Text("pith.methods").Put<uint32_t>(9).Put<uint32_t>(8).Put<uint64_t>(2).Text("h2o").Text("tova");
  out.Text("a").Put<uint32_t>(2).Put<uint64_t>(3).Put<uint64_t>(2).Put<uint32_t>(0).Put<uint64_t>(0);
  out.Text("b").Put<uint32_t>(1).Put<uint64_t>(2).Put<uint32_t>(26).Put<uint64_t>(32);
  out.Align();
  for (int i = 0; i < 6; ++i) out.Put<float>(static_cast<float>(i));
  out.Align().Put<int32_t>(-1).Put<int32_t>(5);
  return out.bytes();
}

TEST(GgufReader, ReadsNumbersTextsAndTensors) {
  const Result<GgufFile> file = GgufFile::Parse(SmallFile());
  ASSERT_TRUE(file.has_value()) << file.error().message;
  EXPECT_EQ(file->param("n"), 7);
  EXPECT_EQ(file->texts("pith.methods"), (std::vector<std::string>{"h2o", "tova"}));
  EXPECT_EQ(file->tensor("a").shape, (std::vector<size_t>{2, 3}));
  EXPECT_EQ(file->tensor("a").f32[5], 5.0F);
  EXPECT_EQ(file->tensor("b").i64, (std::vector<int64_t>{-1, 5}));
}

TEST(GgufReader, EveryTruncationIsAnError) {
  const std::vector<uint8_t> whole = SmallFile();
  for (size_t length = 0; length < whole.size(); ++length) {
    EXPECT_FALSE(GgufFile::Parse({whole.data(), length}).has_value()) << length;
  }
}

TEST(GgufReader, ChangedBytesNeverCrash) {
  const std::vector<uint8_t> whole = SmallFile();
  for (size_t i = 0; i < whole.size(); ++i) {
    for (int value : {0, 1, 127, 255}) {
      std::vector<uint8_t> changed = whole;
      changed[i] = static_cast<uint8_t>(value);
      (void)GgufFile::Parse(changed).has_value();
    }
  }
}

TEST(GgufReader, ReadsWhatWasWritten) {
  pith::GgufWriter writer;
  writer.Add("pith.param.n", uint32_t{7});
  writer.Add("general.architecture", "pith-test");
  const std::vector<float> a = {1, -2, 3.5F, 4, 5, 6}, b = {-0.25F};
  writer.Add("a", {2, 3}, a);
  writer.Add("b", {1}, b);
  writer.Add("empty", {0, 4}, {});
  const std::string bytes = writer.Bytes();
  const Result<GgufFile> file = GgufFile::Parse({reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()});
  ASSERT_TRUE(file.has_value()) << file.error().message;
  EXPECT_EQ(file->param("n"), 7);
  EXPECT_EQ(file->texts("general.architecture"), std::vector<std::string>{"pith-test"});
  EXPECT_EQ(file->tensor("a").shape, (std::vector<size_t>{2, 3}));
  EXPECT_EQ(file->tensor("a").f32, a);
  EXPECT_EQ(file->tensor("b").f32, b);
  EXPECT_EQ(file->tensor("empty").size(), 0U);
}

TEST(CompareGolden, SeesWhatDiffers) {
  EXPECT_EQ(CompareNumbers({1, 2}, {1, 2.0001F}), "");
  EXPECT_NE(CompareNumbers({1, 2}, {1, 2.001F}), "");
  EXPECT_NE(CompareNumbers({1}, {1, 2}), "");
  EXPECT_NE(CompareExactly({1, 2}, {1, 3}), "");
  EXPECT_EQ(CompareKept({1, 0, 1}, {1, 0, 1}, {3, 2, 1}), "");
  EXPECT_EQ(CompareKept({1, 0, 1}, {1, 1, 0}, {3, 1, 1}), "");  // equal scores stand in for one another
  EXPECT_NE(CompareKept({1, 0, 1}, {1, 1, 0}, {3, 2, 1}), "");
  EXPECT_NE(CompareKept({1, 1, 1}, {1, 1, 0}, {1, 1, 1}), "");  // but their number counts
}

}  // namespace
}  // namespace pith::testing
