// The reader of saved sessions on bytes: what it accepts comes back as it was, what it must not accept is refused. Its
// fuzz target begins with the same samples; PITH_UPDATE_CORPUS=1 writes them to fuzz/corpus/session_fuzz.
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <limits>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "policy/storage.h"
#include "tests/support/session_sample.h"

namespace pith::testing {
namespace {

using Bytes = std::vector<std::byte>;

// Of a body: fingerprint, two texts with their lengths, then the numbers that the tests change.
constexpr size_t kNextPosition = 8 + (8 + 6) + (8 + 3);
constexpr size_t kEntriesSeen = kNextPosition + 4;
constexpr size_t kNumPinned = kEntriesSeen + 8;

template <typename T>
Bytes With(Bytes body, size_t at, T value) {
  std::memcpy(body.data() + at, &value, sizeof value);
  return body;
}

class SessionFile : public ::testing::Test {
 protected:
  Bytes BodyOf(int num_tokens) {
    const Sequence sequence = sample_.Filled(num_tokens);
    Bytes body = sample_.Body(sequence);
    sample_.cache().Free(sequence.cache_id);
    return body;
  }

  // Of a sequence whose entries are coded, all of them in 16 bits before.
  Bytes CodedBodyOf(int num_tokens) {
    const Sequence sequence = sample_.Filled(num_tokens);
    EXPECT_TRUE(sample_.cache().SetLow(sequence.cache_id, PageFormat()));
    Bytes body = sample_.Body(sequence, CodedForm());
    sample_.cache().Free(sequence.cache_id);
    return body;
  }

  void ExpectRefused(const Bytes& body, const std::string& part) {
    Sequence sequence = sample_.NewSequence();
    SessionNote note;
    const Status read = sample_.Read(body, sequence, note);
    sample_.cache().Free(sequence.cache_id);
    ASSERT_FALSE(read) << part;
    EXPECT_NE(read.error().message.find(part), std::string::npos) << read.error().message;
    EXPECT_EQ(sample_.page_bytes(), 0U) << "pages are lost";
  }

  SessionSample sample_;
};

TEST_F(SessionFile, BodiesComeBackAsTheyWere) {
  for (const int num_tokens : {0, 1, 31, 32, 100}) {
    const Bytes body = BodyOf(num_tokens);
    Sequence sequence = sample_.NewSequence();
    SessionNote note;
    const Status read = sample_.Read(body, sequence, note);
    ASSERT_TRUE(read) << num_tokens << ": " << read.error().message;
    EXPECT_EQ(note.tokens, (std::vector<int32_t>{1, 2, 3}));
    EXPECT_TRUE(sample_.cache().Verify());
    EXPECT_EQ(sample_.Body(sequence), body);
    sample_.cache().Free(sequence.cache_id);
  }
}

// The moments of queries, of a recipe that reads them.
TEST_F(SessionFile, MomentsComeBackOrAreRefused) {
  const auto with_moments = [this](int heads) {
    Sequence sequence = sample_.NewSequence();
    sequence.moments = QueryMoments({.num_layers = 1, .num_heads = heads, .key_dim = 4});
    return sequence;
  };
  Sequence saved = with_moments(2), same = with_moments(2), other = with_moments(3);
  for (size_t i = 0; i < saved.moments.data().size(); ++i) saved.moments.data()[i] = static_cast<float>(i);
  const Bytes body = sample_.Body(saved);
  SessionNote note;
  ASSERT_TRUE(sample_.Read(body, same, note));
  EXPECT_EQ(same.moments.data(), saved.moments.data());
  const Status refused = sample_.Read(body, other, note);
  ASSERT_FALSE(refused);
  EXPECT_NE(refused.error().message.find("moments"), std::string::npos) << refused.error().message;
  for (const int cache_id : {saved.cache_id, same.cache_id, other.cache_id}) sample_.cache().Free(cache_id);
}

// A compression converts pages of a sequence that was made for another format, or for none.
TEST_F(SessionFile, PagesInAnotherFormatThanTheSequencesComeBack) {
  std::vector<PageFormat> formats(kKvFormats.begin(), kKvFormats.end());
  formats.insert(formats.end(), kAutoFormats.begin(), kAutoFormats.end());
  for (const PageFormat format : formats) {
    const Sequence compressed = sample_.Filled(100);
    ASSERT_TRUE(sample_.cache().SetLow(compressed.cache_id, format));
    const Bytes body = sample_.Body(compressed);
    sample_.cache().Free(compressed.cache_id);
    Sequence sequence = sample_.NewSequence();
    SessionNote note;
    const Status read = sample_.Read(body, sequence, note);
    ASSERT_TRUE(read) << format.Name() << ": " << read.error().message;
    EXPECT_EQ(sample_.Body(sequence), body) << format.Name();
    EXPECT_TRUE(sample_.cache().Verify()) << format.Name();
    sample_.cache().Free(sequence.cache_id);
  }
}

// Those of formats that came later must not change it.
TEST(SessionStamp, IsThatOfFilesOfVersion10) { EXPECT_EQ(PageLayoutStamp(), 0x962cbdc5U); }

TEST(SessionStates, ComeBackOrAreRefused) {
  SessionSample sample(3), plain;
  for (const int num_tokens : {0, 40, 100}) {
    const Sequence saved = sample.Filled(num_tokens);
    const Bytes body = sample.Body(saved);
    sample.cache().Free(saved.cache_id);
    Sequence sequence = sample.NewSequence();
    SessionNote note;
    const Status read = sample.Read(body, sequence, note);
    ASSERT_TRUE(read) << read.error().message;
    EXPECT_EQ(sample.Body(sequence), body);
    const EvictedState& state = sample.cache().head(sequence.cache_id, 0, 1).state();
    EXPECT_EQ(state.num_entries(), num_tokens - num_tokens / 2);
    EXPECT_EQ(state.numbers() != nullptr, num_tokens > 0);
    sample.cache().Free(sequence.cache_id);
    Sequence other = plain.NewSequence();
    const Status refused = plain.Read(body, other, note);
    plain.cache().Free(other.cache_id);
    ASSERT_FALSE(refused);
    EXPECT_NE(refused.error().message.find("another shape"), std::string::npos) << refused.error().message;
  }
}

// What comes back is saved exactly; how near it is to what was coded is for CodedEntriesTest.
TEST_F(SessionFile, CodedEntriesComeBackInTheirFormat) {
  const Bytes body = CodedBodyOf(150);
  EXPECT_LT(body.size(), BodyOf(150).size()) << "no shorter than the exact body, most of it in 4 bits";
  Sequence sequence = sample_.NewSequence();
  SessionNote note;
  const Status read = sample_.Read(body, sequence, note);
  ASSERT_TRUE(read) << read.error().message;
  EXPECT_EQ(sequence.next_position, 150);
  EXPECT_EQ(sample_.cache().head(sequence.cache_id, 0, 0).num_entries(), 150);
  EXPECT_EQ(sample_.cache().head(sequence.cache_id, 0, 0).layout_of(0).format, PageFormat());
  EXPECT_TRUE(sample_.cache().Verify());
  const Bytes exact = sample_.Body(sequence);
  Sequence again = sample_.NewSequence();
  ASSERT_TRUE(sample_.Read(exact, again, note));
  EXPECT_EQ(sample_.Body(again), exact);
  for (const int id : {sequence.cache_id, again.cache_id}) sample_.cache().Free(id);
  for (size_t length = 0; length < body.size(); ++length) {
    ExpectRefused(Bytes(body.begin(), body.begin() + static_cast<std::ptrdiff_t>(length)), "");
  }
}

TEST_F(SessionFile, SequencesMadeForAnotherFormatAreRefused) {
  const Bytes body = BodyOf(40);
  sample_.owner().format = KvFormat::kQ8;
  ExpectRefused(body, "another format, q4, not q8");
}

TEST_F(SessionFile, EveryTruncationIsRefused) {
  const Bytes body = BodyOf(40);
  for (size_t length = 0; length < body.size(); ++length) {
    ExpectRefused(Bytes(body.begin(), body.begin() + static_cast<std::ptrdiff_t>(length)), "");
  }
  Bytes longer = body;
  longer.push_back(std::byte{0});
  ExpectRefused(longer, "1 bytes follow");
}

// Statistics add them up.
TEST_F(SessionFile, CountsOfEntriesThatNoSequenceHasAreRefused) {
  const Bytes body = BodyOf(40);
  for (const int64_t seen : {int64_t{79}, int64_t{81}, int64_t{-1}, INT64_MAX}) {
    ExpectRefused(With(body, kEntriesSeen, seen), "entries");
  }
  ExpectRefused(With(body, kNextPosition, int32_t{-1}), "negative");
  ExpectRefused(With(body, kNextPosition, int32_t{201}), "do not fit");
  ExpectRefused(With(body, kNumPinned, uint64_t{1} << 61), "ends too early");
}

TEST_F(SessionFile, OtherLayoutsOfPagesAreRefused) {
  Bytes file = SessionSample::File(BodyOf(3));
  file[12] ^= std::byte{1};
  MemoryReader reader(file);
  const Status status = CheckSession(reader);
  ASSERT_FALSE(status);
  EXPECT_EQ(status.error().code, ErrorCode::kUnsupported);
  EXPECT_NE(status.error().message.find("laid out"), std::string::npos) << status.error().message;
}

// Wherever numbers lie: what is not one there does not come back as if it were.
TEST_F(SessionFile, NumbersThatAreNoneAreRefused) {
  const float nan = std::nanf("");
  const uint16_t nan16 = 0x7e00;
  const Sequence sequence = sample_.Filled(40);
  const HeadCache& head = sample_.cache().head(sequence.cache_id, 2, 0);
  const PageLayout layout = head.layout_of(0);
  const Bytes body = sample_.Body(sequence);
  // As it is written: slots of the page that hold no entry may be anything in memory.
  MemoryWriter saved;
  head.Save(saved);
  const auto page = saved.bytes().begin() + 2 * sizeof(uint32_t);
  const auto at = static_cast<size_t>(
      std::search(body.begin(), body.end(), page, page + static_cast<std::ptrdiff_t>(layout.key_bytes())) -
      body.begin());
  sample_.cache().Free(sequence.cache_id);
  ASSERT_LT(at, body.size()) << "the page is not in the body";
  ExpectRefused(With(body, at + 6, nan16), "not numbers");
  ExpectRefused(With(body, at + layout.value_offset + 2, nan16), "not numbers");
  const std::vector<float> logits(SessionSample::kVocab, 0.5F);
  const auto bytes = std::as_bytes(std::span(logits));
  const auto logits_at =
      static_cast<size_t>(std::search(body.begin(), body.end(), bytes.begin(), bytes.end()) - body.begin());
  ASSERT_LT(logits_at, body.size());
  ExpectRefused(With(body, logits_at + 8, nan), "logits are not numbers");
  ExpectRefused(With(body, logits_at + 8, std::numeric_limits<float>::infinity()), "logits are not numbers");
  const size_t queries_at = logits_at + bytes.size() + 4 + 8;
  ExpectRefused(With(body, queries_at + 4, nan), "queries are not numbers");
}

TEST_F(SessionFile, TheSumCoversEveryByte) {
  const Bytes file = SessionSample::File(BodyOf(3));
  MemoryReader whole(file);
  const Status status = CheckSession(whole);
  ASSERT_TRUE(status) << status.error().message;
  for (size_t at = 0; at < file.size(); ++at) {
    Bytes damaged = file;
    damaged[at] ^= std::byte{4};
    MemoryReader reader(damaged);
    EXPECT_FALSE(CheckSession(reader)) << at;
  }
}

// The corpus is of today's form: each file is taken, and what it holds is written as the same bytes again. (Not
// compared with what is made here: codes of few bits are rounded in another way on processors of another kind.)
TEST_F(SessionFile, TheFuzzTargetBeginsWithSuchFiles) {
  const std::filesystem::path folder = PITH_SOURCE_DIR "/fuzz/corpus/session_fuzz";
  const bool update = std::getenv("PITH_UPDATE_CORPUS") != nullptr;
  const auto header_bytes = static_cast<std::ptrdiff_t>(SessionSample::File({}).size());
  for (const char* name : {"tokens0", "tokens3", "tokens40", "tokens100", "coded80", "coded150"}) {
    const std::filesystem::path path = folder / name;
    const bool coded = name[0] == 'c';
    const int num_tokens = std::atoi(name + (coded ? 5 : 6));
    if (update) {
      const Bytes file = SessionSample::File(coded ? CodedBodyOf(num_tokens) : BodyOf(num_tokens));
      std::filesystem::create_directories(folder);
      std::ofstream(path, std::ios::binary).write(reinterpret_cast<const char*>(file.data()),
                                                  static_cast<std::streamsize>(file.size()));
    }
    std::ifstream stored(path, std::ios::binary);
    const std::string text(std::istreambuf_iterator<char>(stored), {});
    const auto bytes = std::as_bytes(std::span(text));
    const std::string advice = path.string() + ": PITH_UPDATE_CORPUS=1 writes it again";
    MemoryReader whole(bytes);
    const Status status = CheckSession(whole);
    ASSERT_TRUE(status) << advice << ": " << status.error().message;
    const Bytes body(bytes.begin() + header_bytes, bytes.end());
    Sequence sequence = sample_.NewSequence();
    SessionNote note;
    const Status read = sample_.Read(body, sequence, note);
    ASSERT_TRUE(read) << advice << ": " << read.error().message;
    EXPECT_EQ(sequence.next_position, num_tokens) << advice;
    EXPECT_EQ(sample_.Body(sequence) == body, !coded) << advice;
    sample_.cache().Free(sequence.cache_id);
  }
}

}  // namespace
}  // namespace pith::testing
