#include "store/remote_tier.h"

#include <algorithm>
#include <cstring>
#include <optional>
#include <random>
#include <utility>

#include <fmt/format.h>

#include "base/crc32c.h"

namespace pith::store {
namespace {

using SteadyClock = std::chrono::steady_clock;

constexpr size_t kPartBytes = size_t{1} << 20;
constexpr size_t kMostObjects = 4;  // that a lookup gives
constexpr size_t kFailures = 5;
constexpr auto kFailuresWithin = std::chrono::seconds(10);
constexpr auto kOpen = std::chrono::seconds(5);

std::string HeaderKey(const Key& key) { return fmt::format("pkv:{{{}}}", key.Hex()); }
std::string BlockName(const Key& key) { return fmt::format("pkv:{{{}}}:b", key.Hex()); }

std::vector<std::string> PartKeys(const Key& key, uint64_t number, uint64_t payload_bytes) {
  std::vector<std::string> keys;
  const std::string hex = key.Hex();
  for (uint64_t i = 0; i * kPartBytes < payload_bytes; ++i) {
    keys.push_back(fmt::format("pkv:{{{}.{:016x}.{}}}", hex, number, i));
  }
  return keys;
}

uint64_t DrawNumber() {
  std::random_device device;
  return (uint64_t{device()} << 32) | device();
}

}  // namespace

Status RemoteTier::Breaker::Check() {
  const std::lock_guard lock(mutex_);
  if (SteadyClock::now() >= open_until_) return {};
  return IoError("the store's server has failed too often and is left alone for a while");
}

void RemoteTier::Breaker::Count(const Status& status) {
  if (status || status.error().code != ErrorCode::kIo) return;
  const std::lock_guard lock(mutex_);
  const SteadyClock::time_point now = SteadyClock::now();
  std::erase_if(failures_, [&](SteadyClock::time_point at) { return now - at > kFailuresWithin; });
  failures_.push_back(now);
  if (failures_.size() < kFailures) return;
  open_until_ = now + kOpen;
  failures_.resize(kFailures - 1);  // the next one after that opens it again
}

Result<std::unique_ptr<RemoteTier>> RemoteTier::Open(const RemoteOptions& options) {
  PITH_ASSIGN_OR_RETURN(const RemoteAddress address, ParseRemoteUrl(options.url));
  PITH_ASSIGN_OR_RETURN(std::unique_ptr<RemoteClient> reader, MakeValkeyClient(address, options.read_seconds));
  PITH_ASSIGN_OR_RETURN(std::unique_ptr<RemoteClient> writer, MakeValkeyClient(address, options.write_seconds));
  return std::make_unique<RemoteTier>(options, std::move(reader), std::move(writer));
}

Result<std::vector<RecordHeader>> RemoteTier::LookupNow(const Chain& chain) {
  // The object of all tokens, and what each block leads to.
  std::vector<Key> objects = {chain.whole};
  std::vector<std::string> names;
  for (size_t i = chain.blocks.size(); i-- > 0;) names.push_back(BlockName(chain.blocks[i]));
  PITH_RETURN_IF_ERROR(reader_->Get(names, [&](size_t, std::span<const std::byte> value) {
    Key key;
    if (value.size() != key.bytes.size() || objects.size() > kMostObjects) return;
    std::memcpy(key.bytes.data(), value.data(), value.size());
    if (std::ranges::find(objects, key) == objects.end()) objects.push_back(key);
  }));
  std::vector<std::string> keys;
  for (const Key& key : objects) keys.push_back(HeaderKey(key));
  std::vector<RecordHeader> headers;
  bool damaged = false;
  PITH_RETURN_IF_ERROR(reader_->Get(keys, [&](size_t i, std::span<const std::byte> value) {
    Result<RecordHeader> header = DecodeHeader(value);
    if (!header || header->info.key != objects[i] || header->removed) {
      damaged = true;
      return;
    }
    headers.push_back(std::move(*header));
  }));
  if (damaged && headers.empty()) return Corrupt("the store's server gave a damaged object");
  return headers;
}

Result<std::vector<RecordHeader>> RemoteTier::Lookup(const Chain& chain) {
  PITH_RETURN_IF_ERROR(breaker_.Check());
  const std::lock_guard lock(read_mutex_);
  Result<std::vector<RecordHeader>> headers = LookupNow(chain);
  if (!headers) breaker_.Count(tl::unexpected<Error>(headers.error()));
  return headers;
}

Status RemoteTier::Read(const Key& key, const RemotePlace& place, std::span<std::byte> to) {
  PITH_RETURN_IF_ERROR(breaker_.Check());
  const std::vector<std::string> keys = PartKeys(key, place.number, place.payload_bytes);
  size_t parts = 0;
  Status status;
  {
    const std::lock_guard lock(read_mutex_);
    status = reader_->Get(keys, [&](size_t i, std::span<const std::byte> value) {
      const std::span<std::byte> part = to.subspan(i * kPartBytes, std::min(kPartBytes, to.size() - i * kPartBytes));
      if (value.size() != part.size()) return;
      std::ranges::copy(value, part.begin());
      ++parts;
    });
  }
  breaker_.Count(status);
  PITH_RETURN_IF_ERROR(status);
  if (parts < keys.size()) return NotFound("a part of the object has gone");
  if (Crc32c(to) != place.payload_crc) return Corrupt("the store's server gave other bytes than it was given");
  return {};
}

Result<RemotePlace> RemoteTier::Write(const ObjectInfo& info, std::span<const std::byte> payload) {
  PITH_RETURN_IF_ERROR(breaker_.Check());
  RecordHeader header;
  header.info = info;
  header.number = DrawNumber();
  header.payload_crc = Crc32c(payload);
  const std::vector<std::byte> encoded = EncodeHeader(header);
  std::vector<RemoteItem> items;
  const std::vector<std::string> keys = PartKeys(info.key, header.number, payload.size());
  for (size_t i = 0; i < keys.size(); ++i) {
    items.push_back({keys[i], payload.subspan(i * kPartBytes, std::min(kPartBytes, payload.size() - i * kPartBytes))});
  }
  const std::lock_guard lock(write_mutex_);
  Status status = writer_->Set(items, options_.ttl_seconds);
  // Its header when all of it is there, then the ways to it: what shorter texts have left is not covered, but for the
  // last block.
  const RemoteItem whole{HeaderKey(info.key), encoded};
  if (status) status = writer_->Set(std::span(&whole, 1), options_.ttl_seconds);
  if (status) {
    items.clear();
    const Chain chain = MakeChain(info.root, info.tokens);
    for (const Key& block : chain.blocks) {
      items.push_back({BlockName(block), std::span(info.key.bytes), block != chain.blocks.back()});
    }
    status = writer_->Set(items, options_.ttl_seconds);
  }
  breaker_.Count(status);
  PITH_RETURN_IF_ERROR(status);
  return RemotePlace{header.number, payload.size(), header.payload_crc};
}

Status RemoteTier::Erase(const Key& key) {
  PITH_RETURN_IF_ERROR(breaker_.Check());
  const std::string name = HeaderKey(key);
  const std::lock_guard lock(write_mutex_);
  const Status status = writer_->Delete(std::span(&name, 1));
  breaker_.Count(status);
  return status;
}

}  // namespace pith::store
