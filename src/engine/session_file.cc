#include "engine/session_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <memory>
#include <type_traits>
#include <utility>

#include "base/atomic_file.h"
#include "base/crc32c.h"
#include "base/escaped.h"
#include "base/logits.h"

namespace pith {
namespace {

constexpr std::array<char, 8> kMagic = {'P', 'I', 'T', 'H', 'K', 'V', '\r', '\n'};
constexpr uint32_t kVersion = 10;
static_assert(kSessionHeaderBytes == kMagic.size() + 2 * sizeof(uint32_t) + 2 * sizeof(uint64_t));
constexpr uint32_t kNoFormat = ~0u;
constexpr size_t kBufferBytes = 64 * 1024;

struct FileCloser {
  void operator()(std::FILE* file) const { std::fclose(file); }
};
using File = std::unique_ptr<std::FILE, FileCloser>;

// Errors stay with the stream.
class StreamWriter final : public ByteWriter {
 public:
  explicit StreamWriter(std::FILE* stream) : stream_(stream) {}  // nullptr: the sum alone
  void Write(std::span<const std::byte> bytes) override {
    sum_ = SessionSum(bytes, sum_);
    num_bytes_ += bytes.size();
    // An empty span may have no address, which fwrite must not get.
    if (stream_ != nullptr && !bytes.empty()) std::fwrite(bytes.data(), 1, bytes.size(), stream_);
  }
  uint64_t num_bytes() const { return num_bytes_; }
  uint64_t sum() const { return sum_; }

 private:
  std::FILE* stream_;
  uint64_t sum_ = 0;
  uint64_t num_bytes_ = 0;
};

class FileReader final : public ByteReader {
 public:
  FileReader(std::FILE* file, uint64_t left) : file_(file), left_(left) {}
  uint64_t left() const override { return left_; }
  bool Read(std::span<std::byte> to) override {
    if (to.size() > left_) return false;
    left_ -= to.size();
    return to.empty() || std::fread(to.data(), 1, to.size(), file_) == to.size();
  }

 private:
  std::FILE* file_;
  uint64_t left_;
};

// Of the maps whose states a sequence has, 0: it has none.
uint64_t MapsOf(const Sequence& sequence) {
  const LessMaps* const maps = sequence.setup != nullptr ? sequence.setup->maps : nullptr;
  return maps != nullptr ? maps->fingerprint() : 0;
}

bool KeepsText(const Sequence& sequence) {
  return sequence.setup != nullptr && sequence.setup->compresses_as_it_goes();
}

template <typename Container>
void WriteArray(ByteWriter& writer, const Container& values) {
  writer.Number(static_cast<uint64_t>(values.size()));
  writer.Array(std::span(values.data(), values.size()));
}

}  // namespace

void WriteSessionBody(ByteWriter& writer, const SessionOwner& owner, const Sequence& sequence, const KvCache& cache,
                      const SessionParts& parts) {
  writer.Number(owner.fingerprint);
  WriteArray(writer, owner.description);
  WriteArray(writer, owner.recipe);
  writer.Number(sequence.next_position);
  writer.Number(sequence.entries_seen);
  writer.Number(static_cast<uint64_t>(sequence.pinned.size()));
  for (const auto& [from, to] : sequence.pinned) {
    writer.Number(from);
    writer.Number(to);
  }
  WriteArray(writer, parts.note.tokens);
  WriteArray(writer, parts.note.text);
  WriteArray(writer, parts.logits);
  writer.Number(static_cast<uint32_t>(sequence.queries.window()));
  WriteArray(writer, sequence.queries.data());
  writer.Number(sequence.queries_from);
  if (!sequence.moments.empty()) WriteArray(writer, sequence.moments.data());
  if (KeepsText(sequence)) {
    const bool converted = cache.layout(sequence.cache_id).low.has_value();
    std::vector<int32_t> turns = {sequence.turn_start, sequence.exact_from, converted ? 1 : 0};
    for (const FrozenTurn& turn : sequence.turns) turns.insert(turns.end(), {turn.from, turn.to});
    WriteArray(writer, turns);
    WriteArray(writer, sequence.tokens);
  }
  WriteArray(writer, sequence.merge_thresholds);
  WriteArray(writer, parts.recurrent);
  writer.Number(MapsOf(sequence));
  writer.Number(owner.format.number());
  const std::optional<PageFormat> low = cache.layout(sequence.cache_id).low;
  writer.Number(low ? low->number() : kNoFormat);
  const std::optional<PageFormat> lower = cache.layout(sequence.cache_id).lower;
  writer.Number(lower ? lower->number() : kNoFormat);
  const PrunedKeys pruned = cache.layout(sequence.cache_id).pruned;
  writer.Number(pruned.share);
  writer.Number(static_cast<int32_t>(pruned.recent));
  writer.Number(static_cast<uint8_t>(parts.coded ? 1 : 0));
  if (parts.coded) parts.coded->Save(writer);
  cache.Save(sequence.cache_id, writer, parts.coded);
}

namespace {

tl::unexpected<Error> NamelessOwner() { return IoError("the model's files can no longer be read to compare them"); }
tl::unexpected<Error> Truncated() { return Corrupt("it ends too early"); }

template <typename Container>
bool ReadArray(ByteReader& reader, Container& values) {
  uint64_t count = 0;
  return reader.Number(count) && reader.Fill(count, values);
}

Status ReadOwner(ByteReader& reader, const SessionOwner& owner) {
  uint64_t fingerprint = 0;
  std::string description, recipe;
  if (!reader.Number(fingerprint) || !ReadArray(reader, description) || !ReadArray(reader, recipe)) return Truncated();
  if (owner.fingerprint == 0) return NamelessOwner();
  if (fingerprint != owner.fingerprint) {
    return InvalidArgument(
        fmt::format("it was saved with another model ({}), other weights or other adapters, or with other --rope-..., "
                    "--yarn-... or --override-kv",
                    Escaped(description)));
  }
  if (recipe != owner.recipe) {
    return InvalidArgument(fmt::format("it was saved with the recipe {}, not {}", Escaped(recipe, 200), owner.recipe));
  }
  return {};
}

Status ReadPlace(ByteReader& reader, const SessionOwner& owner, Sequence& sequence) {
  uint64_t num_pinned = 0;
  if (!reader.Number(sequence.next_position) || !reader.Number(sequence.entries_seen) || !reader.Number(num_pinned)) {
    return Truncated();
  }
  if (sequence.next_position < 0) return Corrupt("its count of tokens is negative");
  if (sequence.next_position > owner.num_ctx) {
    return InvalidArgument(fmt::format("its {} tokens do not fit into a context of {}: raise it with -c",
                                       sequence.next_position, owner.num_ctx));
  }
  if (sequence.entries_seen != sequence.next_position * owner.num_global_heads) {
    return Corrupt("its count of entries is not that of its tokens");
  }
  if (num_pinned > reader.left() / (2 * sizeof(int32_t))) return Truncated();
  int32_t end = 0;
  for (uint64_t i = 0; i < num_pinned; ++i) {
    int32_t from = 0, to = 0;
    if (!reader.Number(from) || !reader.Number(to)) return Truncated();
    if (from < end || to <= from || to > sequence.next_position) return Corrupt("its pinned ranges are out of order");
    sequence.pinned.emplace_back(from, to);
    end = to;
  }
  return {};
}

// Where the text is kept: which parts are over, and the tokens that a second reading wants.
Status ReadTurns(ByteReader& reader, const SessionOwner& owner, KvCache& cache, Sequence& sequence) {
  std::vector<int32_t> turns;
  if (!ReadArray(reader, turns) || !ReadArray(reader, sequence.tokens)) return Truncated();
  if (turns.size() < 3 || turns.size() % 2 != 1) return Corrupt("its turns are not pairs of positions");
  sequence.turn_start = turns[0];
  sequence.exact_from = turns[1];
  if (turns[2] != 0 && sequence.setup->converts_turns()) {
    PITH_RETURN_IF_ERROR(cache.SetLow(sequence.cache_id, sequence.setup->turn_format));
  }
  int32_t end = 0;
  for (size_t i = 3; i < turns.size(); i += 2) {
    const FrozenTurn turn{turns[i], turns[i + 1]};
    if (turn.from < end || turn.to <= turn.from) return Corrupt("its turns are out of order");
    sequence.turns.push_back(turn);
    end = turn.to;
  }
  const auto inside = [&](int32_t position) { return position >= 0 && position <= sequence.next_position; };
  if (sequence.turn_start < end || !inside(sequence.turn_start) || !inside(sequence.exact_from)) {
    return Corrupt("its turns end behind what it has read");
  }
  if (!sequence.tokens.empty() && sequence.tokens.size() != static_cast<size_t>(sequence.next_position)) {
    return Corrupt("its tokens are not as many as it has read");
  }
  for (const int32_t token : sequence.tokens) {
    if (token < 0 || token >= owner.num_vocab)
      return Corrupt(fmt::format("it holds the token {}, which the model does not have", token));
  }
  return {};
}

// Neither NaN nor infinite: float32, or bits of f16.
template <typename T>
bool AreNumbers(const std::vector<T>& values) {
  return std::all_of(values.begin(), values.end(), [](T value) {
    if constexpr (std::is_same_v<T, uint16_t>) return (value & 0x7c00) != 0x7c00;
    else return std::isfinite(value);
  });
}

template <typename T>
bool AnyNan(const std::byte* part, size_t bytes, T infinity) {
  bool any = false;
  for (size_t at = 0; at + sizeof(T) <= bytes; at += sizeof(T)) {
    T bits;
    std::memcpy(&bits, part + at, sizeof bits);
    any |= static_cast<T>(bits & (std::numeric_limits<T>::max() >> 1)) > infinity;
  }
  return any;
}

// Slots that no entry fills yet are zero. An infinity may be what a key is in 16 bits, or a score of what must stay.
bool PageHasNan(const PageLayout& layout, const std::byte* page) {
  const auto has = [page](KvFormat format, size_t offset, size_t bytes) {
    if (BitsOf(format) < 16) return false;
    return AnyNan<uint16_t>(page + offset, bytes, InfoOf(format).element == KvElement::kBfloat ? 0x7f80 : 0x7c00);
  };
  constexpr uint32_t kInfinity = 0x7f800000;
  return (!layout.is_latent() && has(layout.format.key, layout.key_offset, layout.key_bytes())) ||
         has(layout.format.value, layout.value_offset, layout.value_row_bytes() * kPageEntries) ||
         (HasEntryScales(layout.format.key) &&
          AnyNan(page + layout.key_scale_offset, layout.key_scale_bytes(), kInfinity)) ||
         (HasEntryScales(layout.format.value) &&
          AnyNan(page + layout.value_scale_offset, layout.value_scale_bytes(), kInfinity)) ||
         AnyNan(page + layout.column_offset, layout.state_end() - layout.column_offset, kInfinity);
}

// Full pages of a sequence that was compressed may be in another format than those of one that is made anew.
Status ReadFormats(ByteReader& reader, const SessionOwner& owner, KvCache& cache, int sequence) {
  uint32_t made_for = 0, low = 0, lower = 0;
  PrunedKeys pruned;
  int32_t recent = 0;
  if (!reader.Number(made_for) || !reader.Number(low) || !reader.Number(lower) || !reader.Number(pruned.share) ||
      !reader.Number(recent)) {
    return Truncated();
  }
  pruned.recent = recent;
  const std::optional<PageFormat> format = PageFormat::FromNumber(made_for), low_format = PageFormat::FromNumber(low),
                                  lower_format = PageFormat::FromNumber(lower);
  if (!format || (!low_format && low != kNoFormat) || (!lower_format && lower != kNoFormat)) {
    return Corrupt("its format is none");
  }
  if (!(pruned.share >= 0 && pruned.share < 1) || recent < 0 || (!lower_format && !(pruned == PrunedKeys()))) {
    return Corrupt("its share of channels is none");
  }
  if (!(*format == owner.format)) {
    return InvalidArgument(
        fmt::format("it was saved in another format, {}, not {}", format->Name(), owner.format.Name()));
  }
  PITH_RETURN_IF_ERROR(cache.SetLower(sequence, lower_format, pruned));
  const SequenceLayout& layout = cache.layout(sequence);
  if (low_format == layout.low) return {};
  return cache.SetLow(sequence, low_format.value_or(layout.entry));
}

Status CheckPages(KvCache& cache, int sequence) {
  for (const HeadCache& head : cache.heads(sequence)) {
    for (int at = 0; at < head.num_entries(); at += kPageEntries) {
      if (PageHasNan(head.layout_of(at), head.page_of(at))) {
        return Corrupt("keys or values in its cache are not numbers");
      }
    }
  }
  return {};
}

}  // namespace

Status ReadSessionBody(ByteReader& reader, const SessionOwner& owner, KvCache& cache, Sequence& sequence,
                       std::vector<std::byte>& recurrent, SessionNote& note) {
  PITH_RETURN_IF_ERROR(ReadOwner(reader, owner));
  PITH_RETURN_IF_ERROR(ReadPlace(reader, owner, sequence));
  if (!ReadArray(reader, note.tokens) || !ReadArray(reader, note.text) || !ReadArray(reader, sequence.kept_logits)) {
    return Truncated();
  }
  for (const int32_t token : note.tokens) {
    if (token < 0 || token >= owner.num_vocab)
      return Corrupt(fmt::format("it holds the token {}, which the model does not have", token));
  }
  if (!sequence.kept_logits.empty() && sequence.kept_logits.size() != static_cast<size_t>(owner.num_vocab)) {
    return Corrupt("its logits are not as many as the model's vocabulary");
  }
  if (!sequence.kept_logits.empty() && !CheckLogits(sequence.kept_logits)) {
    return Corrupt("its logits are not numbers");
  }
  uint32_t window = 0;
  std::vector<uint16_t> queries;
  if (!reader.Number(window) || !ReadArray(reader, queries)) return Truncated();
  if (window != static_cast<uint32_t>(sequence.queries.window()) || queries.size() != sequence.queries.data().size()) {
    return InvalidArgument("its recipes observe another window of queries");
  }
  if (!AreNumbers(queries)) return Corrupt("its queries are not numbers");
  std::copy(queries.begin(), queries.end(), sequence.queries.data().begin());
  if (!reader.Number(sequence.queries_from)) return Truncated();
  if (sequence.queries_from < 0 || sequence.queries_from > sequence.next_position) {
    return Corrupt("its queries begin where it has read nothing");
  }
  if (!sequence.moments.empty()) {
    std::vector<float> moments;
    if (!ReadArray(reader, moments)) return Truncated();
    if (moments.size() != sequence.moments.data().size()) return Corrupt("its moments of queries are not the model's");
    if (!AreNumbers(moments)) return Corrupt("its moments of queries are not numbers");
    std::ranges::copy(moments, sequence.moments.data().begin());
  }
  if (KeepsText(sequence)) PITH_RETURN_IF_ERROR(ReadTurns(reader, owner, cache, sequence));
  std::vector<double> thresholds;
  if (!ReadArray(reader, thresholds) || !ReadArray(reader, recurrent)) return Truncated();
  if (thresholds.size() != sequence.merge_thresholds.size())
    return Corrupt("its merge thresholds are not one per layer");
  sequence.merge_thresholds = thresholds;
  uint64_t maps = 0;
  if (!reader.Number(maps)) return Truncated();
  if (maps != MapsOf(sequence)) return InvalidArgument("its recipes have other maps of act=less, or none");
  PITH_RETURN_IF_ERROR(ReadFormats(reader, owner, cache, sequence.cache_id));
  uint8_t is_coded = 0;
  if (!reader.Number(is_coded)) return Truncated();
  if (is_coded > 1) return Corrupt("the form of its entries is none");
  std::optional<CodedForm> coded;
  if (is_coded == 1) {
    PITH_ASSIGN_OR_RETURN(coded, CodedForm::Read(reader));
  }
  PITH_RETURN_IF_ERROR(cache.Restore(sequence.cache_id, reader, sequence.next_position, coded));
  PITH_RETURN_IF_ERROR(CheckPages(cache, sequence.cache_id));
  if (reader.left() != 0) return Corrupt(fmt::format("{} bytes follow its end", reader.left()));
  return {};
}

uint32_t PageLayoutStamp() {
  // To be raised where bytes of a page change their meaning but not their place.
  constexpr uint64_t kMeaning = 1;
  Hash64 hash;
  const auto add = [&hash](size_t number) {
    const auto wide = static_cast<uint64_t>(number);
    hash.Add(std::as_bytes(std::span(&wide, 1)));
  };
  for (const size_t number : {size_t{kMeaning}, size_t{kPageEntries}, size_t{kGroupElements}, kSessionHeaderBytes}) {
    add(number);
  }
  // Formats that came later are not in it, so that files of before stay valid.
  constexpr int kFirstFormats = 5;
  for (int key = 0; key < kFirstFormats; ++key) {
    for (int value = 0; value < kFirstFormats; ++value) {
      const PageFormat format(static_cast<KvFormat>(key), static_cast<KvFormat>(value));
      // Sizes that no two parts share, and that fill no part's last 64 bytes.
      const PageLayout layout = PageLayout::Make(format, 72, 40, 3);
      for (const size_t number :
           {layout.key_offset, layout.value_offset, layout.key_scale_offset, layout.value_scale_offset,
            layout.position_offset, layout.column_offset, layout.page_bytes, layout.key_bytes(),
            layout.value_row_bytes()}) {
        add(number);
      }
    }
  }
  return static_cast<uint32_t>(hash.value() ^ hash.value() >> 32);
}

// An instruction takes eight bytes; FNV, a byte at a time, took as long as all the rest of a restoration.
uint64_t SessionSum(std::span<const std::byte> bytes, uint64_t before) {
  return Crc32c(bytes, static_cast<uint32_t>(before));
}

void WriteSessionHeader(ByteWriter& writer, uint64_t body_bytes, uint64_t body_sum) {
  writer.Array(std::span<const char>(kMagic));
  writer.Number(kVersion);
  writer.Number(PageLayoutStamp());
  writer.Number(body_bytes);
  writer.Number(body_sum);
}

Status CheckSession(ByteReader& reader) {
  std::array<char, kMagic.size()> magic{};
  if (!reader.Array(std::span<char>(magic)) || magic != kMagic) return Corrupt("it is no saved session");
  uint32_t version = 0, stamp = 0;
  uint64_t body_bytes = 0, told = 0, sum = 0;
  if (!reader.Number(version) || !reader.Number(stamp) || !reader.Number(body_bytes) || !reader.Number(told))
    return Truncated();
  if (version != kVersion) {
    return Unsupported(
        fmt::format("it was written by another version of pith (version {}, only {} can be read)", version, kVersion));
  }
  if (stamp != PageLayoutStamp()) {
    return Unsupported("its pages are laid out as another version of pith has them");
  }
  if (body_bytes != reader.left()) {
    return Corrupt(fmt::format("it should have {} bytes after its header and has {}", body_bytes, reader.left()));
  }
  std::vector<std::byte> buffer(static_cast<size_t>(std::min<uint64_t>(kBufferBytes, reader.left())));
  while (reader.left() > 0) {
    const auto count = static_cast<size_t>(std::min<uint64_t>(buffer.size(), reader.left()));
    const std::span<std::byte> part = std::span(buffer).first(count);
    if (!reader.Read(part)) return IoError("it could not be read");
    sum = SessionSum(part, sum);
  }
  if (sum != told) return Corrupt("it is damaged: its sum is wrong");
  return {};
}

Status SaveSession(const std::string& path, const SessionOwner& owner, const Sequence& sequence, const KvCache& cache,
                   const SessionParts& parts) {
  if (owner.fingerprint == 0) return NamelessOwner();
  const auto write_body = [&](ByteWriter& writer) { WriteSessionBody(writer, owner, sequence, cache, parts); };
  PITH_ASSIGN_OR_RETURN(AtomicFile file, AtomicFile::Open(path));
  StreamWriter body(file.stream());
  if (file.replaces()) {
    const std::array<std::byte, kSessionHeaderBytes> room{};
    std::fwrite(room.data(), 1, room.size(), file.stream());
    write_body(body);
    if (std::fseek(file.stream(), 0, SEEK_SET) != 0) {
      return IoError(fmt::format("the session could not be written to {}: {}", path, std::strerror(errno)));
    }
    StreamWriter header(file.stream());
    WriteSessionHeader(header, body.num_bytes(), body.sum());
  } else {  // what cannot be gone back in
    StreamWriter sum(nullptr);
    write_body(sum);
    WriteSessionHeader(body, sum.num_bytes(), sum.sum());
    write_body(body);
  }
  return file.Commit();
}

Status RestoreSession(const std::string& path, const SessionOwner& owner, KvCache& cache, HostContext& context,
                      Sequence& sequence, SessionNote& note) {
  const auto named = [&path](const Status& status) -> Status {
    if (status) return {};
    return MakeError(status.error().code,
                     fmt::format("the session {} cannot be used: {}", path, status.error().message));
  };
  // Not to wait at a named pipe.
  const int fd = ::open(path.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC);
  File file(fd < 0 ? nullptr : ::fdopen(fd, "rb"));
  if (file == nullptr) {
    return errno == ENOENT ? Status(NotFound("there is no session " + path)) : named(IoError(std::strerror(errno)));
  }
  struct stat info {};
  if (::fstat(::fileno(file.get()), &info) != 0) return named(IoError(std::strerror(errno)));
  if (S_ISDIR(info.st_mode)) return named(InvalidArgument("it is a folder"));
  // As `touch` and `mktemp` leave it, or a device that keeps nothing: a place to write to.
  const auto file_bytes = static_cast<uint64_t>(S_ISREG(info.st_mode) ? info.st_size : 0);
  if (file_bytes == 0) return NotFound("there is no session yet in " + path);
  FileReader whole(file.get(), file_bytes);
  PITH_RETURN_IF_ERROR(named(CheckSession(whole)));
  if (std::fseek(file.get(), static_cast<long>(kSessionHeaderBytes), SEEK_SET) != 0) {
    return named(IoError("it could not be read"));
  }
  FileReader reader(file.get(), file_bytes - kSessionHeaderBytes);
  std::vector<std::byte> recurrent;
  PITH_RETURN_IF_ERROR(named(ReadSessionBody(reader, owner, cache, sequence, recurrent, note)));
  return named(context.RestoreSlot(sequence.slot, sequence.next_position, recurrent));
}

}  // namespace pith
