// Redis and Valkey through libvalkey, alone and in clusters.
#include <algorithm>
#include <array>
#include <cmath>
#include <optional>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include "base/escaped.h"
#include "base/parse_number.h"
#include "store/remote_client.h"

#ifdef PITH_VALKEY
#include <sys/time.h>

#include <valkey/cluster.h>
#include <valkey/valkey.h>

#include "store/valkey_reply.h"
#endif

namespace pith::store {
namespace {

constexpr std::string_view kDefaultPort = "6379";

// "host:port" of "host" or "host:port", an address of IPv6 between brackets, which go: libvalkey takes the last colon.
Result<std::string> ParseNode(std::string_view node) {
  const size_t bracket = node.starts_with('[') ? node.find(']') : std::string_view::npos;
  const bool is_v6 = bracket != std::string_view::npos;
  const size_t colon = node.find(':', is_v6 ? bracket : 0);
  const std::string_view host = is_v6 ? node.substr(1, bracket - 1) : node.substr(0, colon);
  const std::string_view port = colon == std::string_view::npos ? kDefaultPort : node.substr(colon + 1);
  const bool is_host = is_v6 ? host.find(':') != std::string_view::npos && (bracket + 1 == std::min(colon, node.size()))
                             : !host.empty() && host.find('[') == std::string_view::npos;
  const int number = ParseNumber<int>(port).value_or(0);
  if (!is_host || number < 1 || number > 65535) {
    return InvalidArgument(fmt::format("\"{}\" is no host and port of a server", Escaped(node)));
  }
  return fmt::format("{}:{}", host, port);
}

}  // namespace

Result<RemoteAddress> ParseRemoteUrl(std::string_view url) {
  const size_t end = url.find("://");
  if (end == std::string_view::npos) return InvalidArgument(fmt::format("\"{}\" is no URL", Escaped(url)));
  const std::string_view scheme = url.substr(0, end);
  std::string_view rest = url.substr(end + 3);
  RemoteAddress address;
  constexpr std::array<std::string_view, 4> kClusters = {"redis-cluster", "redis+cluster", "valkey-cluster",
                                                         "valkey+cluster"};
  address.cluster = std::ranges::find(kClusters, scheme) != kClusters.end();
  if (!address.cluster && scheme != "redis" && scheme != "valkey") {
    return Unsupported(fmt::format("there is no store of the kind {}://; there are redis://, redis-cluster://, "
                                   "valkey:// and valkey-cluster://", Escaped(scheme)));
  }
  if (const size_t at = rest.rfind('@'); at != std::string_view::npos) {
    const std::string_view who = rest.substr(0, at);
    const size_t colon = who.find(':');
    if (colon == std::string_view::npos) return InvalidArgument("a store's URL has user:password before the @");
    address.user = who.substr(0, colon);
    address.password = who.substr(colon + 1);
    rest.remove_prefix(at + 1);
  }
  if (rest.ends_with('/')) rest.remove_suffix(1);
  if (!address.cluster && rest.find(',') != std::string_view::npos) {
    return InvalidArgument("several servers are a cluster: redis-cluster://HOST:PORT,HOST:PORT");
  }
  for (bool more = true; more;) {
    const size_t comma = rest.find(',');
    PITH_ASSIGN_OR_RETURN(const std::string node, ParseNode(rest.substr(0, comma)));
    address.nodes += (address.nodes.empty() ? "" : ",") + node;
    more = comma != std::string_view::npos;
    if (more) rest.remove_prefix(comma + 1);
  }
  return address;
}

#ifdef PITH_VALKEY
namespace {

struct FreeOne {
  void operator()(valkeyContext* context) const { valkeyFree(context); }
};
struct FreeCluster {
  void operator()(valkeyClusterContext* context) const { valkeyClusterFree(context); }
};

// Parts of a command.
using Words = std::vector<std::string_view>;

class ValkeyClient final : public RemoteClient {
 public:
  ValkeyClient(const RemoteAddress& address, double seconds) : address_(address) {
    timeout_.tv_sec = static_cast<time_t>(seconds);
    timeout_.tv_usec = static_cast<suseconds_t>((seconds - std::floor(seconds)) * 1e6);
  }

  Status Get(std::span<const std::string> keys,
             const std::function<void(size_t i, std::span<const std::byte> value)>& visit) override {
    return Run(
        keys.size(),
        [&](size_t i) {
          return Words{"GET", keys[i]};
        },
        [&](size_t i, const valkeyReply& reply) {
          std::optional<std::span<const std::byte>> value;
          if (!IsValue(reply, value)) return false;
          if (value) visit(i, *value);
          return true;
        });
  }

  Status Set(std::span<const RemoteItem> items, uint64_t ttl_seconds) override {
    const std::string ttl = std::to_string(ttl_seconds);
    return Run(
        items.size(),
        [&](size_t i) {
          const std::span<const std::byte> value = items[i].value;
          Words words = {"SET", items[i].key, {reinterpret_cast<const char*>(value.data()), value.size()}, "EX", ttl};
          if (items[i].only_if_absent) words.emplace_back("NX");
          return words;
        },
        [](size_t, const valkeyReply& reply) { return IsStored(reply); });
  }

  Status Delete(std::span<const std::string> keys) override {
    return Run(
        keys.size(), [&](size_t i) { return Words{"DEL", keys[i]}; },
        [](size_t, const valkeyReply& reply) { return reply.type == VALKEY_REPLY_INTEGER; });
  }

 private:
  template <typename Make, typename Take>
  Status Run(size_t count, Make&& make, Take&& take) {
    if (count == 0) return {};
    PITH_RETURN_IF_ERROR(Connect());
    for (size_t first = 0; first < count; first += kMostInFlight) {
      const size_t end = std::min(count, first + kMostInFlight);
      bool sent = true;
      for (size_t i = first; i < end; ++i) sent = sent && Append(make(i));
      for (size_t i = first; i < end; ++i) {
        const Reply reply = sent ? Receive() : nullptr;
        if (reply == nullptr) return Fail("does not answer");
        if (!take(i, *reply)) {
          const bool says_why = reply->type == VALKEY_REPLY_ERROR;
          return Fail(says_why ? std::string_view(reply->str, reply->len) : "says what it should not");
        }
      }
      if (cluster_ != nullptr) valkeyClusterReset(cluster_.get());
    }
    return {};
  }

  // What was on its way is not to be confused with later answers: the connection goes.
  Status Fail(std::string_view why) {
    Error error{ErrorCode::kIo, fmt::format("the store's server {}: {}", address_.nodes, why)};
    one_.reset();
    cluster_.reset();
    return tl::unexpected<Error>(std::move(error));
  }

  Status Connect() {
    if (one_ != nullptr || cluster_ != nullptr) return {};
    if (address_.cluster) {
      valkeyClusterOptions options{};
      options.initial_nodes = address_.nodes.c_str();
      options.connect_timeout = &timeout_;
      options.command_timeout = &timeout_;
      options.max_retry = 5;
      if (!address_.password.empty()) options.password = address_.password.c_str();
      if (!address_.user.empty()) options.username = address_.user.c_str();
      cluster_.reset(valkeyClusterConnectWithOptions(&options));
      if (cluster_ == nullptr) return Fail("no memory");
      return cluster_->err != 0 ? Fail(cluster_->errstr) : Status();
    }
    const size_t colon = address_.nodes.rfind(':');
    const std::string host = address_.nodes.substr(0, colon);
    one_.reset(valkeyConnectWithTimeout(host.c_str(), std::stoi(address_.nodes.substr(colon + 1)), timeout_));
    if (one_ == nullptr) return Fail("no memory");
    if (one_->err != 0) return Fail(one_->errstr);
    ExpectNoLists(*one_->reader);
    (void)valkeySetTimeout(one_.get(), timeout_);
    if (address_.password.empty()) return {};
    Words words = {"AUTH"};
    if (!address_.user.empty()) words.emplace_back(address_.user);
    words.emplace_back(address_.password);
    const Reply reply = Append(words) ? Receive() : nullptr;
    return reply == nullptr || reply->type == VALKEY_REPLY_ERROR ? Fail("it refuses the password") : Status();
  }

  bool Append(const Words& words) {
    std::array<const char*, 8> parts;
    std::array<size_t, 8> lengths;
    for (size_t i = 0; i < words.size(); ++i) {
      parts[i] = words[i].data();
      lengths[i] = words[i].size();
    }
    const int count = static_cast<int>(words.size());
    return cluster_ != nullptr
               ? valkeyClusterAppendCommandArgv(cluster_.get(), count, parts.data(), lengths.data()) == VALKEY_OK
               : valkeyAppendCommandArgv(one_.get(), count, parts.data(), lengths.data()) == VALKEY_OK;
  }

  Reply Receive() {
    void* reply = nullptr;
    const int status = cluster_ != nullptr ? valkeyClusterGetReply(cluster_.get(), &reply)
                                           : valkeyGetReply(one_.get(), &reply);
    Reply owned(static_cast<valkeyReply*>(reply));
    return status == VALKEY_OK ? std::move(owned) : nullptr;
  }

  const RemoteAddress address_;
  timeval timeout_{};
  std::unique_ptr<valkeyContext, FreeOne> one_;
  std::unique_ptr<valkeyClusterContext, FreeCluster> cluster_;
};

}  // namespace

Result<std::unique_ptr<RemoteClient>> MakeValkeyClient(const RemoteAddress& address, double seconds) {
  return std::make_unique<ValkeyClient>(address, seconds);
}
#else
Result<std::unique_ptr<RemoteClient>> MakeValkeyClient(const RemoteAddress&, double) {
  return Unsupported("this build has no client of Redis and Valkey; configure it with -DPITH_VALKEY=ON");
}
#endif

}  // namespace pith::store
