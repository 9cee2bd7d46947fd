#include "store/segment.h"

#include <random>

#include <gtest/gtest.h>

#include "store/store_test_util.h"

namespace pith::store {
namespace {

RecordHeader TestHeader(uint32_t seed, size_t num_tokens, uint64_t payload_bytes) {
  RecordHeader header;
  header.info = TestInfo(TestTokens(seed, num_tokens));
  header.info.key = MakeChain(kTestRoot, header.info.tokens).whole;
  header.info.payload_bytes = payload_bytes;
  header.info.num_pinned = 3;
  header.info.rewind_least = 1;
  header.info.rewind_most = static_cast<int32_t>(num_tokens);
  header.info.has_logits = true;
  header.info.compute_seconds = 1.5;
  header.info.config = "keydiff@0.5";
  header.number = seed;
  header.payload_crc = 77;
  return header;
}

TEST(StoreSegment, HeaderRoundTrip) {
  for (const size_t num_tokens : {0U, 5U, 1000U, 5000U}) {
    const RecordHeader header = TestHeader(9, std::max<size_t>(num_tokens, 4), 12345);
    const std::vector<std::byte> bytes = EncodeHeader(header);
    EXPECT_EQ(bytes.size() % kRecordAlignment, 0U);
    EXPECT_EQ(HeaderBytes(std::span(bytes).first(kRecordAlignment)), bytes.size());
    const Result<RecordHeader> read = DecodeHeader(bytes);
    ASSERT_TRUE(read) << read.error().message;
    EXPECT_EQ(read->info.tokens, header.info.tokens);
    EXPECT_EQ(read->info.key, header.info.key);
    EXPECT_EQ(read->info.root, header.info.root);
    EXPECT_EQ(read->info.config, header.info.config);
    EXPECT_EQ(read->info.label, header.info.label);
    EXPECT_EQ(read->info.num_pinned, 3);
    EXPECT_EQ(read->info.rewind_least, 1);
    EXPECT_EQ(read->info.rewind_most, header.info.rewind_most);
    EXPECT_TRUE(read->info.has_logits);
    EXPECT_DOUBLE_EQ(read->info.compute_seconds, 1.5);
    EXPECT_EQ(read->number, 9U);
    EXPECT_EQ(read->payload_crc, 77U);
    EXPECT_FALSE(read->removed);
  }
}

TEST(StoreSegment, EveryFlippedBitOfAHeaderIsFound) {
  const std::vector<std::byte> whole = EncodeHeader(TestHeader(1, 40, 100));
  for (size_t bit = 0; bit < 8 * whole.size(); ++bit) {
    std::vector<std::byte> bytes = whole;
    bytes[bit / 8] ^= static_cast<std::byte>(1U << bit % 8);
    EXPECT_FALSE(DecodeHeader(bytes)) << bit;
  }
}

// The sum is right, and yet it is not what it says.
TEST(StoreSegment, ForeignKeyIsRefused) {
  RecordHeader header = TestHeader(1, 40, 100);
  header.info.key.bytes[3] ^= std::byte{1};
  EXPECT_FALSE(DecodeHeader(EncodeHeader(header)));
  header = TestHeader(1, 40, 100);
  header.info.num_pinned = 41;
  EXPECT_FALSE(DecodeHeader(EncodeHeader(header)));
}

class Segment {
 public:
  void Append(const RecordHeader& header) {
    const std::vector<std::byte> encoded = EncodeHeader(header);
    offsets_.push_back(bytes_.size());
    bytes_.insert(bytes_.end(), encoded.begin(), encoded.end());
    bytes_.resize(bytes_.size() + AlignRecord(header.info.payload_bytes));
  }
  uint64_t Scan(uint64_t size, std::vector<uint64_t>& offsets) const {
    const auto read = [&](uint64_t offset, std::span<std::byte> to) -> Status {
      if (offset + to.size() > size) return Corrupt("it ends too early");
      std::copy_n(bytes_.begin() + static_cast<std::ptrdiff_t>(offset), to.size(), to.begin());
      return {};
    };
    return ScanSegment(read, 0, size, [&](uint64_t offset, RecordHeader) { offsets.push_back(offset); });
  }
  std::vector<std::byte>& bytes() { return bytes_; }
  const std::vector<uint64_t>& offsets() const { return offsets_; }

 private:
  std::vector<std::byte> bytes_;
  std::vector<uint64_t> offsets_;
};

TEST(StoreSegment, CutAnywhereOnlyWholeRecordsAreThere) {
  Segment segment;
  for (uint32_t i = 1; i <= 4; ++i) segment.Append(TestHeader(i, 1500 * i, 5000 * i));
  for (uint64_t size = 0; size <= segment.bytes().size(); size += 512) {
    std::vector<uint64_t> offsets;
    const uint64_t end = segment.Scan(size, offsets);
    EXPECT_LE(end, size);
    for (size_t i = 0; i < offsets.size(); ++i) EXPECT_EQ(offsets[i], segment.offsets()[i]);
    const uint64_t next = offsets.size() < 4 ? (offsets.size() < 3 ? segment.offsets()[offsets.size() + 1]
                                                                  : segment.bytes().size())
                                             : size + 1;
    EXPECT_LT(size, next);
  }
}

TEST(StoreSegment, NothingBehindADamagedHeader) {
  Segment segment;
  for (uint32_t i = 1; i <= 3; ++i) segment.Append(TestHeader(i, 100, 100));
  segment.bytes()[segment.offsets()[1] + 100] ^= std::byte{4};
  std::vector<uint64_t> offsets;
  EXPECT_EQ(segment.Scan(segment.bytes().size(), offsets), segment.offsets()[1]);
  EXPECT_EQ(offsets.size(), 1U);
}

}  // namespace
}  // namespace pith::store
