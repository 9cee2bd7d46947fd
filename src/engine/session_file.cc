#include "engine/session_file.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <memory>
#include <utility>

#include "base/escaped.h"

namespace pith {
namespace {

constexpr std::array<char, 8> kMagic = {'P', 'I', 'T', 'H', 'K', 'V', '\r', '\n'};
constexpr uint32_t kVersion = 1;
static_assert(kSessionHeaderBytes == kMagic.size() + 2 * sizeof(uint32_t) + 2 * sizeof(uint64_t));
constexpr size_t kBufferBytes = 64 * 1024;

struct FileCloser {
  void operator()(std::FILE* file) const { std::fclose(file); }
};
using File = std::unique_ptr<std::FILE, FileCloser>;

class FileWriter final : public ByteWriter {
 public:
  explicit FileWriter(std::FILE* file) : file_(file) {}
  void Write(std::span<const std::byte> bytes) override {
    hash_.Add(bytes);
    num_bytes_ += bytes.size();
    // An empty span may have no address, which fwrite must not get.
    ok_ = ok_ && (bytes.empty() || std::fwrite(bytes.data(), 1, bytes.size(), file_) == bytes.size());
  }
  bool ok() const { return ok_; }
  uint64_t num_bytes() const { return num_bytes_; }
  uint64_t hash() const { return hash_.value(); }

 private:
  std::FILE* file_;
  Hash64 hash_;
  uint64_t num_bytes_ = 0;
  bool ok_ = true;
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

template <typename Container>
void WriteArray(ByteWriter& writer, const Container& values) {
  writer.Number(static_cast<uint64_t>(values.size()));
  writer.Array(std::span(values.data(), values.size()));
}

}  // namespace

void WriteSessionBody(ByteWriter& writer, const SessionOwner& owner, const Sequence& sequence, const KvCache& cache,
                      std::span<const std::byte> recurrent, std::span<const float> logits, const SessionNote& note) {
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
  WriteArray(writer, note.tokens);
  WriteArray(writer, note.text);
  WriteArray(writer, logits);
  writer.Number(static_cast<uint32_t>(sequence.queries.window()));
  WriteArray(writer, sequence.queries.data());
  if (!sequence.moments.empty()) WriteArray(writer, sequence.moments.data());
  WriteArray(writer, sequence.merge_thresholds);
  WriteArray(writer, recurrent);
  cache.Save(sequence.cache_id, writer);
}

namespace {

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
  if (fingerprint != owner.fingerprint) {
    return InvalidArgument(
        fmt::format("it was saved with another model ({}) or with other adapters", Escaped(description)));
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

}  // namespace

Status ReadSessionBody(ByteReader& reader, const SessionOwner& owner, KvCache& cache, Sequence& sequence,
                       std::vector<std::byte>& recurrent, SessionNote& note) {
  PITH_RETURN_IF_ERROR(ReadOwner(reader, owner));
  PITH_RETURN_IF_ERROR(ReadPlace(reader, owner, sequence));
  if (!ReadArray(reader, note.tokens) || !ReadArray(reader, note.text) ||
      !ReadArray(reader, sequence.restored_logits)) {
    return Truncated();
  }
  for (const int32_t token : note.tokens) {
    if (token < 0 || token >= owner.num_vocab)
      return Corrupt(fmt::format("it holds the token {}, which the model does not have", token));
  }
  if (!sequence.restored_logits.empty() && sequence.restored_logits.size() != static_cast<size_t>(owner.num_vocab)) {
    return Corrupt("its logits are not as many as the model's vocabulary");
  }
  uint32_t window = 0;
  std::vector<uint16_t> queries;
  if (!reader.Number(window) || !ReadArray(reader, queries)) return Truncated();
  if (window != static_cast<uint32_t>(sequence.queries.window()) || queries.size() != sequence.queries.data().size()) {
    return InvalidArgument("its recipes observe another window of queries");
  }
  std::copy(queries.begin(), queries.end(), sequence.queries.data().begin());
  if (!sequence.moments.empty()) {
    std::vector<float> moments;
    if (!ReadArray(reader, moments)) return Truncated();
    if (moments.size() != sequence.moments.data().size()) return Corrupt("its moments of queries are not the model's");
    std::ranges::copy(moments, sequence.moments.data().begin());
  }
  std::vector<double> thresholds;
  if (!ReadArray(reader, thresholds) || !ReadArray(reader, recurrent)) return Truncated();
  if (thresholds.size() != sequence.merge_thresholds.size())
    return Corrupt("its merge thresholds are not one per layer");
  sequence.merge_thresholds = thresholds;
  PITH_RETURN_IF_ERROR(cache.Restore(sequence.cache_id, reader, sequence.next_position));
  if (reader.left() != 0) return Corrupt(fmt::format("{} bytes follow its end", reader.left()));
  return {};
}

namespace {

Status CannotWrite(const std::string& path) {
  return IoError(fmt::format("the session could not be written to {}: {}", path, std::strerror(errno)));
}

}  // namespace

void WriteSessionHeader(ByteWriter& writer, uint64_t body_bytes, uint64_t body_hash) {
  writer.Array(std::span<const char>(kMagic));
  writer.Number(kVersion);
  writer.Number(uint32_t{0});
  writer.Number(body_bytes);
  writer.Number(body_hash);
}

Status CheckSession(ByteReader& reader) {
  std::array<char, kMagic.size()> magic{};
  if (!reader.Array(std::span<char>(magic)) || magic != kMagic) return Corrupt("it is no saved session");
  uint32_t version = 0, reserved = 0;
  uint64_t body_bytes = 0, sum = 0;
  if (!reader.Number(version) || !reader.Number(reserved) || !reader.Number(body_bytes) || !reader.Number(sum))
    return Truncated();
  if (version != kVersion)
    return Unsupported(fmt::format("it has version {}, and only version {} can be read", version, kVersion));
  if (body_bytes != reader.left()) {
    return Corrupt(fmt::format("it should have {} bytes after its header and has {}", body_bytes, reader.left()));
  }
  Hash64 hash;
  std::vector<std::byte> buffer(static_cast<size_t>(std::min<uint64_t>(kBufferBytes, reader.left())));
  while (reader.left() > 0) {
    const auto count = static_cast<size_t>(std::min<uint64_t>(buffer.size(), reader.left()));
    const std::span<std::byte> part = std::span(buffer).first(count);
    if (!reader.Read(part)) return IoError("it could not be read");
    hash.Add(part);
  }
  if (hash.value() != sum) return Corrupt("it is damaged: its sum is wrong");
  return {};
}

Status SaveSession(const std::string& path, const SessionOwner& owner, const Sequence& sequence, const KvCache& cache,
                   const HostContext& context, std::span<const float> logits, const SessionNote& note) {
  PITH_ASSIGN_OR_RETURN(const std::vector<std::byte> recurrent,
                        context.SaveSlot(sequence.slot, sequence.next_position));
  // Under another name first: an older file stays whole until this one is.
  const std::string fresh = fmt::format("{}.{}", path, ::getpid());
  File file(std::fopen(fresh.c_str(), "wb"));
  if (file == nullptr) return CannotWrite(path);
  const std::array<std::byte, kSessionHeaderBytes> room{};
  FileWriter writer(file.get());
  bool ok = std::fwrite(room.data(), 1, room.size(), file.get()) == room.size();
  WriteSessionBody(writer, owner, sequence, cache, recurrent, logits, note);
  ok = ok && writer.ok() && std::fseek(file.get(), 0, SEEK_SET) == 0;
  FileWriter header(file.get());
  WriteSessionHeader(header, writer.num_bytes(), writer.hash());
  ok = ok && header.ok() && std::fflush(file.get()) == 0;
  file.reset();
  if (ok && std::rename(fresh.c_str(), path.c_str()) == 0) return {};
  const Status failed = CannotWrite(path);
  std::remove(fresh.c_str());
  return failed;
}

Status RestoreSession(const std::string& path, const SessionOwner& owner, KvCache& cache, HostContext& context,
                      Sequence& sequence, SessionNote& note) {
  const auto named = [&path](const Status& status) -> Status {
    if (status) return {};
    return MakeError(status.error().code,
                     fmt::format("the session {} cannot be used: {}", path, status.error().message));
  };
  File file(std::fopen(path.c_str(), "rb"));
  if (file == nullptr) {
    return errno == ENOENT ? Status(NotFound("there is no session " + path)) : named(IoError(std::strerror(errno)));
  }
  if (std::fseek(file.get(), 0, SEEK_END) != 0) return named(IoError("it could not be read"));
  const long file_bytes = std::ftell(file.get());
  if (file_bytes < 0 || std::fseek(file.get(), 0, SEEK_SET) != 0) return named(IoError("it could not be read"));
  FileReader whole(file.get(), static_cast<uint64_t>(file_bytes));
  PITH_RETURN_IF_ERROR(named(CheckSession(whole)));
  if (std::fseek(file.get(), static_cast<long>(kSessionHeaderBytes), SEEK_SET) != 0) {
    return named(IoError("it could not be read"));
  }
  FileReader reader(file.get(), static_cast<uint64_t>(file_bytes) - kSessionHeaderBytes);
  std::vector<std::byte> recurrent;
  PITH_RETURN_IF_ERROR(named(ReadSessionBody(reader, owner, cache, sequence, recurrent, note)));
  return named(context.RestoreSlot(sequence.slot, sequence.next_position, recurrent));
}

}  // namespace pith
