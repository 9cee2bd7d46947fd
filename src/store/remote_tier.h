// Objects on a server of keys and values, which many processes and hosts share.
//
//   pkv:{KEY}            an object's header (store/segment.h); its last key to be written, so that it is there whole
//   pkv:{KEY.NUMBER.I}   MiB I of its payload, as the writer that drew NUMBER wrote it
//   pkv:{KEY}:b          of a block's key: the key of an object that begins with this block and those before it
//
// KEY is 32 hexadecimal digits, hashes, so that the parts of an object are spread over a cluster. All keys expire. What
// is read is compared with its sums, and its tokens with the text's.
//
// Threads: any; Lookup and Read wait for each other, and so do Write and Erase.
#ifndef PITH_STORE_REMOTE_TIER_H_
#define PITH_STORE_REMOTE_TIER_H_

#include <chrono>
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "store/remote_client.h"
#include "store/segment.h"

namespace pith::store {

struct RemotePlace {
  uint64_t number = 0;
  uint64_t payload_bytes = 0;
  uint32_t payload_crc = 0;
};

struct RemoteOptions {
  std::string url;
  double read_seconds = 0.2;   // for each answer that a request waits for
  double write_seconds = 2;
  uint64_t ttl_seconds = 24 * 3600;
};

class RemoteTier {
 public:
  // Connects to nobody yet. kInvalidArgument, kUnsupported: the URL.
  static Result<std::unique_ptr<RemoteTier>> Open(const RemoteOptions& options);
  // Over connections that there are: one for what a request waits for, one for writing.
  RemoteTier(const RemoteOptions& options, std::unique_ptr<RemoteClient> reader, std::unique_ptr<RemoteClient> writer)
      : options_(options), reader_(std::move(reader)), writer_(std::move(writer)) {}

  // Some objects that begin as a text does, those that share most first. kIo, kCorrupt.
  Result<std::vector<RecordHeader>> Lookup(const Chain& chain);
  // Compared with its sum. kNotFound: a part of it has gone; kCorrupt, kIo.
  Status Read(const Key& key, const RemotePlace& place, std::span<std::byte> to);
  Result<RemotePlace> Write(const ObjectInfo& info, std::span<const std::byte> payload);
  Status Erase(const Key& key);

 private:
  // Five failures in ten seconds: for five seconds nobody waits for the server.
  class Breaker {
   public:
    Status Check();
    void Count(const Status& status);

   private:
    std::mutex mutex_;
    std::vector<std::chrono::steady_clock::time_point> failures_;
    std::chrono::steady_clock::time_point open_until_{};
  };

  Result<std::vector<RecordHeader>> LookupNow(const Chain& chain);

  const RemoteOptions options_;
  Breaker breaker_;
  std::mutex read_mutex_, write_mutex_;
  std::unique_ptr<RemoteClient> reader_, writer_;
};

}  // namespace pith::store

#endif  // PITH_STORE_REMOTE_TIER_H_
