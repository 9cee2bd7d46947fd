// SHA-256 and CRC-32C against the published vectors.
#include <string>
#include <vector>

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "base/crc32c.h"
#include "base/sha256.h"

namespace pith {
namespace {

std::string Hex(const Sha256Digest& digest) {
  std::string text;
  for (const std::byte b : digest) text += fmt::format("{:02x}", std::to_integer<int>(b));
  return text;
}

std::string Sha256Of(const std::string& text, size_t piece) {
  Sha256 hash;
  for (size_t at = 0; at < text.size(); at += piece) hash.Add(std::string_view(text).substr(at, piece));
  return Hex(hash.Finish());
}

// FIPS 180-4, NIST's examples.
TEST(Sha256, PublishedVectors) {
  const std::string two = "abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq";
  EXPECT_EQ(Sha256Of("", 1), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  EXPECT_EQ(Sha256Of("abc", 3), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  EXPECT_EQ(Sha256Of(two, 56), "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
  EXPECT_EQ(Sha256Of(std::string(1000000, 'a'), 997),
            "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
}

TEST(Sha256, PiecesDoNotMatter) {
  std::string text;
  for (int i = 0; i < 300; ++i) text += static_cast<char>(i * 7);
  for (size_t length : {55U, 56U, 63U, 64U, 65U, 119U, 120U, 300U}) {
    const std::string whole = Sha256Of(text.substr(0, length), length);
    for (size_t piece : {1U, 3U, 64U, 100U}) EXPECT_EQ(Sha256Of(text.substr(0, length), piece), whole);
  }
}

// RFC 3720, B.4.
TEST(Crc32c, PublishedVectors) {
  std::vector<std::byte> up(32), down(32);
  for (size_t i = 0; i < 32; ++i) up[i] = static_cast<std::byte>(i), down[i] = static_cast<std::byte>(31 - i);
  const std::string digits = "123456789";
  for (const auto crc : {Crc32c, Crc32cByTable}) {
    EXPECT_EQ(crc(std::vector<std::byte>(32), 0), 0x8a9136aaU);
    EXPECT_EQ(crc(std::vector<std::byte>(32, std::byte{0xff}), 0), 0x62a8ab43U);
    EXPECT_EQ(crc(up, 0), 0x46dd794eU);
    EXPECT_EQ(crc(down, 0), 0x113fdb5cU);
    EXPECT_EQ(crc(std::as_bytes(std::span(digits)), 0), 0xe3069283U);
  }
}

TEST(Crc32c, InstructionAndTablesAgreeInPieces) {
  std::vector<std::byte> bytes(1000);
  for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<std::byte>(i * i >> 3);
  for (size_t cut = 0; cut <= 40; ++cut) {
    const std::span<const std::byte> all(bytes);
    EXPECT_EQ(Crc32c(all.subspan(cut), Crc32c(all.first(cut))), Crc32cByTable(all));
  }
}

// Where three pieces pass at once, and around them.
TEST(Crc32c, InstructionAndTablesAgreeOnLongBytes) {
  std::vector<std::byte> bytes(30000);
  for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<std::byte>(i * i >> 5);
  const std::span<const std::byte> all(bytes);
  for (const size_t count : {2047U, 2048U, 6143U, 6144U, 6145U, 12288U, 29999U}) {
    for (const uint32_t before : {0U, 0xdeadbeefU}) {
      EXPECT_EQ(Crc32c(all.subspan(1, count), before), Crc32cByTable(all.subspan(1, count), before)) << count;
    }
  }
}

}  // namespace
}  // namespace pith
