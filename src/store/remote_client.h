// A server of keys and values, or a cluster of them: what the remote tier needs of one.
//
// Threads: one at a time.
#ifndef PITH_STORE_REMOTE_CLIENT_H_
#define PITH_STORE_REMOTE_CLIENT_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "pith/types.h"

namespace pith::store {

struct RemoteAddress {
  bool cluster = false;
  std::string nodes;  // "host:port", several with commas between them where it is a cluster; IPv6 without brackets
  std::string user, password;
};

// "redis://[[user]:password@]host[:port]", an address of IPv6 between brackets; with redis-cluster: or redis+cluster:
// several hosts; valkey likewise.
// kInvalidArgument: it is none; kUnsupported: of another kind.
Result<RemoteAddress> ParseRemoteUrl(std::string_view url);

struct RemoteItem {
  std::string key;
  std::span<const std::byte> value;
  bool only_if_absent = false;
};

class RemoteClient {
 public:
  // Answers that may be on their way at a time: more than that come too late for a limit of time, once the server has
  // other things to do.
  static constexpr size_t kMostInFlight = 8;

  virtual ~RemoteClient() = default;

  // visit(i, value) for each key that is there, in their order. The first error; what came before it has been visited.
  virtual Status Get(std::span<const std::string> keys,
                     const std::function<void(size_t i, std::span<const std::byte> value)>& visit) = 0;
  virtual Status Set(std::span<const RemoteItem> items, uint64_t ttl_seconds) = 0;
  virtual Status Delete(std::span<const std::string> keys) = 0;
};

// Connects when it is first needed, and again after a failure. seconds: for connecting, and for each answer.
// kUnsupported: this build has none.
Result<std::unique_ptr<RemoteClient>> MakeValkeyClient(const RemoteAddress& address, double seconds);

}  // namespace pith::store

#endif  // PITH_STORE_REMOTE_CLIENT_H_
