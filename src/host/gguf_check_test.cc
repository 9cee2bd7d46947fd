#include "host/gguf_check.h"

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <unistd.h>

#include <gtest/gtest.h>

namespace pith {
namespace {

// Writes GGUF bytes piece by piece, right or wrong.
class Gguf {
 public:
  template <typename T>
  Gguf& Num(T value) {
    const auto* p = reinterpret_cast<const char*>(&value);
    bytes_.append(p, sizeof value);
    return *this;
  }
  Gguf& Text(std::string_view text) {
    Num<uint64_t>(text.size());
    bytes_.append(text);
    return *this;
  }
  Gguf& Header(uint64_t tensors, uint64_t pairs, uint32_t version = 3) {
    bytes_.append("GGUF");
    return Num(version).Num(tensors).Num(pairs);
  }
  Gguf& StringPair(std::string_view key, std::string_view value) {
    return Text(key).Num<uint32_t>(8).Text(value);
  }
  Gguf& Architecture() { return StringPair("general.architecture", "llama"); }
  Gguf& Tensor(std::string_view name, std::vector<int64_t> dims, uint32_t type, uint64_t offset) {
    Text(name).Num(static_cast<uint32_t>(dims.size()));
    for (const int64_t dim : dims) Num(dim);
    return Num(type).Num(offset);
  }
  Gguf& Data(size_t bytes) {
    bytes_.resize((bytes_.size() + 31) / 32 * 32 + bytes);
    return *this;
  }
  const std::string& bytes() const { return bytes_; }

 private:
  std::string bytes_;
};

constexpr uint32_t kF32 = 0;
constexpr uint32_t kQ4_0 = 2;

Result<GgufFacts> Check(std::string_view bytes) { return CheckGgufBytes(std::as_bytes(std::span(bytes)), "m.gguf"); }

void ExpectCorrupt(const Gguf& gguf, std::string_view part) {
  const auto status = Check(gguf.bytes());
  ASSERT_FALSE(status) << "expected: " << part;
  EXPECT_EQ(status.error().code, ErrorCode::kCorrupt);
  EXPECT_NE(status.error().message.find(part), std::string::npos) << status.error().message;
  EXPECT_TRUE(status.error().message.starts_with("m.gguf ")) << status.error().message;
  EXPECT_EQ(status.error().message.find('\n'), std::string::npos);
}

Gguf Valid() {
  Gguf gguf;
  gguf.Header(2, 3).Architecture();
  gguf.Text("tokenizer.ggml.tokens").Num<uint32_t>(9).Num<uint32_t>(8).Num<uint64_t>(2).Text("a").Text("b");
  gguf.Text("llama.block_count").Num<uint32_t>(4).Num<uint32_t>(1);
  gguf.Tensor("a.weight", {32, 3}, kQ4_0, 0).Tensor("b.weight", {5}, kF32, 64);
  return gguf.Data(64 + 20);
}

TEST(GgufCheck, AcceptsAValidFileAndItsOldVersion) {
  EXPECT_TRUE(Check(Valid().bytes())) << Check(Valid().bytes()).error().message;
  std::string old = Valid().bytes();
  old[4] = 2;
  EXPECT_TRUE(Check(old));
}

TEST(GgufCheck, EveryTruncationGivesASentence) {
  const std::string bytes = Valid().bytes();
  for (size_t length = 0; length < bytes.size(); ++length) {
    const auto status = Check(std::string_view(bytes).substr(0, length));
    ASSERT_FALSE(status) << "cut at " << length;
    EXPECT_EQ(status.error().code, ErrorCode::kCorrupt);
    EXPECT_GT(status.error().message.size(), 20u);
  }
}

TEST(GgufCheck, EveryFlippedByteIsSurvived) {
  const std::string bytes = Valid().bytes();
  for (size_t at = 0; at < bytes.size(); ++at) {
    for (const int flip : {0x01, 0x80, 0xff}) {
      std::string broken = bytes;
      broken[at] = static_cast<char>(broken[at] ^ flip);
      const auto status = Check(broken);
      EXPECT_TRUE(status || !status.error().message.empty());
    }
  }
}

TEST(GgufCheck, NotAGguf) {
  EXPECT_EQ(Check("").error().message, "m.gguf is empty (0 bytes), not a GGUF file");
  EXPECT_EQ(Check("PK\x03\x04 and so on").error().message,
            "m.gguf is not a GGUF file (it begins with \"PK\\x03\\x04 and\", not with \"GGUF\")");
  EXPECT_NE(Check("version https://git-lfs.github.com/spec/v1").error().message.find("Git LFS"), std::string::npos);
}

TEST(GgufCheck, Headers) {
  ExpectCorrupt(Gguf().Header(0, 1, 1).Architecture(), "version 1");
  ExpectCorrupt(Gguf().Header(0, 1, 4).Architecture(), "version 4");
  ExpectCorrupt(Gguf().Header(0, 1, 0x03000000).Architecture(), "big-endian");
  ExpectCorrupt(Gguf().Header(0, uint64_t{1} << 60).Architecture(), "key-value pairs");
  ExpectCorrupt(Gguf().Header(uint64_t{1} << 63, 1).Architecture(), "tensors");
  ExpectCorrupt(Gguf().Header(~uint64_t{0}, ~uint64_t{0}), "key-value pairs");
}

TEST(GgufCheck, KeysAndValues) {
  ExpectCorrupt(Gguf().Header(0, 0), "lacks general.architecture");
  ExpectCorrupt(Gguf().Header(0, 1).StringPair("general.name", "x"), "lacks general.architecture");
  ExpectCorrupt(Gguf().Header(0, 1).Text("general.architecture").Num<uint32_t>(4).Num<uint32_t>(7), "not a string");
  ExpectCorrupt(Gguf().Header(0, 1).StringPair("general.architecture", ""), "is empty");
  ExpectCorrupt(Gguf().Header(0, 2).Architecture().Architecture(), "appears twice");
  ExpectCorrupt(Gguf().Header(0, 1).StringPair("", "long enough to pass"), "empty key");
  ExpectCorrupt(Gguf().Header(0, 1).Text("some.key").Num<uint32_t>(13).Num<uint64_t>(0), "unknown value type 13");
  ExpectCorrupt(Gguf().Header(0, 1).Num(~uint64_t{0}).Num<uint64_t>(0), "a key has 18446744073709551615 bytes");
  ExpectCorrupt(Gguf().Header(0, 1).Text("some.key").Num<uint32_t>(8).Num(~uint64_t{0}), "some.key");
}

TEST(GgufCheck, Alignment) {
  for (const uint32_t bad : {0u, 3u, 48u, 1u << 31}) {
    ExpectCorrupt(Gguf().Header(0, 2).Architecture().Text("general.alignment").Num<uint32_t>(4).Num(bad),
                  "not a power of two");
  }
  ExpectCorrupt(Gguf().Header(0, 2).Architecture().Text("general.alignment").Num<uint32_t>(10).Num<uint64_t>(32),
                "not a 32-bit number");
  EXPECT_TRUE(Check(Gguf().Header(0, 2).Architecture().Text("general.alignment").Num<uint32_t>(4).Num(64u).bytes()));
}

TEST(GgufCheck, Arrays) {
  const auto array = [](uint32_t type, uint64_t count) {
    Gguf gguf;
    gguf.Header(0, 2).Architecture().Text("some.array").Num<uint32_t>(9).Num(type).Num(count);
    return gguf.Num<uint64_t>(0).Num<uint64_t>(0);
  };
  ExpectCorrupt(array(9, 1), "arrays of arrays");
  ExpectCorrupt(array(13, 1), "unknown element type 13");
  ExpectCorrupt(array(10, 3), "announces 3 elements");
  ExpectCorrupt(array(10, (uint64_t{1} << 61) + 2), "announces");  // 8 * count wraps to 16
  ExpectCorrupt(array(8, 3), "announces 3 elements");
  EXPECT_TRUE(Check(array(10, 2).bytes()));
  EXPECT_TRUE(Check(array(8, 2).bytes()));
}

TEST(GgufCheck, VocabularyWithADuplicate) {
  Gguf gguf;
  gguf.Header(0, 2).Architecture().Text("tokenizer.ggml.tokens").Num<uint32_t>(9).Num<uint32_t>(8).Num<uint64_t>(3);
  ExpectCorrupt(gguf.Text("a").Text("b").Text("a"), "holds the piece \"a\" twice");
}

TEST(GgufCheck, TensorShapes) {
  const auto tensor = [](std::vector<int64_t> dims, uint32_t type, uint64_t offset = 0) {
    Gguf gguf;
    gguf.Header(1, 1).Architecture().Tensor("t", dims, type, offset);
    return gguf.Data(64);
  };
  ExpectCorrupt(tensor({1, 1, 1, 1, 1}, kF32), "5 dimensions");
  ExpectCorrupt(tensor({0}, kF32), "dimension 0 of tensor t is 0");
  ExpectCorrupt(tensor({4, -1}, kF32), "dimension 1 of tensor t is -1");
  ExpectCorrupt(tensor({int64_t{1} << 32, int64_t{1} << 32}, kF32), "multiply to more than");
  ExpectCorrupt(tensor({int64_t{1} << 62}, kF32), "more than 2^62 bytes");
  ExpectCorrupt(tensor({33}, kQ4_0), "no multiple of the 32 of a q4_0 block");
  ExpectCorrupt(tensor({4}, 4), "type 4");        // removed from ggml
  ExpectCorrupt(tensor({4}, 100000), "type 100000");
  ExpectCorrupt(tensor({4}, kF32, 8), "not aligned");
  ExpectCorrupt(tensor({4}, kF32, 32), "where 0 was expected");
  ExpectCorrupt(tensor({4}, kF32, uint64_t{1} << 63), "begins at offset");
  ExpectCorrupt(tensor({17}, kF32), "is truncated: tensor t ends at byte");
  EXPECT_TRUE(Check(tensor({16}, kF32).bytes()));
}

TEST(GgufCheck, TensorNames) {
  Gguf twice;
  ExpectCorrupt(twice.Header(2, 1).Architecture().Tensor("t", {8}, kF32, 0).Tensor("t", {8}, kF32, 32).Data(64),
                "tensor t appears twice");
  Gguf unknown;
  ExpectCorrupt(unknown.Header(1, 1).Architecture().Tensor(std::string(64, 'n'), {8}, kF32, 0).Data(32),
                "has 64 bytes, more than the 63 allowed");
  Gguf overlap;
  ExpectCorrupt(overlap.Header(2, 1).Architecture().Tensor("t", {8}, kF32, 0).Tensor("u", {8}, kF32, 0).Data(64),
                "tensor u begins at offset 0");
}

TEST(GgufCheck, LaterPartsOfASplitModelHaveNoArchitecture) {
  const auto part = [](uint16_t index, uint16_t count) {
    Gguf gguf;
    gguf.Header(1, 2).Text("split.no").Num<uint32_t>(2).Num(index).Text("split.count").Num<uint32_t>(2).Num(count);
    return gguf.Tensor("t", {8}, kF32, 0).Data(32);
  };
  const auto second = Check(part(1, 3).bytes());
  ASSERT_TRUE(second) << second.error().message;
  EXPECT_EQ(second->part, 1);
  EXPECT_EQ(second->num_parts, 3);
  ExpectCorrupt(part(3, 3), "part 4 of 3");
  ExpectCorrupt(part(0, 3), "lacks general.architecture");
}

TEST(GgufCheck, Files) {
  namespace fs = std::filesystem;
  const fs::path folder = fs::temp_directory_path() / ("pith_gguf_check_" + std::to_string(::getpid()));
  fs::create_directories(folder);
  const std::string good = (folder / "good.gguf").string();
  std::ofstream(good, std::ios::binary) << Valid().bytes();
  const std::string cut = (folder / "cut.gguf").string();
  std::ofstream(cut, std::ios::binary) << Valid().bytes().substr(0, Valid().bytes().size() - 1);

  EXPECT_TRUE(CheckGguf(good));
  const auto truncated = CheckGguf(cut);
  ASSERT_FALSE(truncated);
  EXPECT_NE(truncated.error().message.find("tensor b.weight ends at byte"), std::string::npos);
  EXPECT_EQ(CheckGguf((folder / "none.gguf").string()).error().code, ErrorCode::kNotFound);
  EXPECT_NE(CheckGguf(folder.string()).error().message.find("is a folder"), std::string::npos);
  fs::remove_all(folder);
}

}  // namespace
}  // namespace pith
