// Against a real server: Debian's redis-server where it is installed, else the one that scripts/fetch_valkey_server.sh
// has fetched; PITH_VALKEY_SERVER_DIR names a folder of valkey-server and valkey-cli.
#include "store/remote_tier.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "base/paths.h"
#include "base/stopwatch.h"
#include "store/store_test_util.h"

namespace pith::store {
namespace {

constexpr size_t kMiB = size_t{1} << 20;

// Below the ports that the system gives away: ten thousand more, where a cluster's servers meet, are ports, too.
int FreePort() {
  static std::mt19937 random(std::random_device{}());
  for (;;) {
    const int port = 20000 + static_cast<int>(random() % 10000);
    const int fd = ::socket(AF_INET, SOCK_STREAM, 0);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    address.sin_port = htons(static_cast<uint16_t>(port));
    const bool is_free = ::bind(fd, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0;
    ::close(fd);
    if (is_free) return port;
  }
}

// Whether something listens there, at an address of IPv6.
bool IsOpen(const char* host, int port) {
  sockaddr_in6 address{};
  address.sin6_family = AF_INET6;
  address.sin6_port = htons(static_cast<uint16_t>(port));
  if (::inet_pton(AF_INET6, host, &address.sin6_addr) != 1) return false;
  const int fd = ::socket(AF_INET6, SOCK_STREAM, 0);
  const bool open = fd >= 0 && ::connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0;
  if (fd >= 0) ::close(fd);
  return open;
}

std::string OutputOf(const std::string& command) {
  std::string output;
  FILE* const pipe = ::popen((command + " 2>/dev/null").c_str(), "r");
  if (pipe == nullptr) return output;
  std::array<char, 4096> some;
  while (const size_t count = std::fread(some.data(), 1, some.size(), pipe)) output.append(some.data(), count);
  ::pclose(pipe);
  return output;
}

template <typename What>
bool WaitFor(What&& what, double seconds = 20) {
  for (const Stopwatch watch; watch.seconds() < seconds;) {
    if (what()) return true;
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
  return false;
}

struct Programs {
  std::string server;
  std::string cli;
};

const Programs& TheirPrograms() {
  static const Programs programs = []() -> Programs {
    const char* given = std::getenv("PITH_VALKEY_SERVER_DIR");
    if (given == nullptr && !OutputOf("redis-server --version").empty()) return {"redis-server", "redis-cli"};
    std::string folder = given == nullptr ? "" : given;
    if (given == nullptr) {
      std::error_code error;
      for (const auto& entry : std::filesystem::directory_iterator(CacheDir() + "/valkey-server", error)) {
        if (std::filesystem::exists(entry.path() / "valkey-server")) folder = entry.path();
      }
    }
    return {folder + "/valkey-server", folder + "/valkey-cli"};
  }();
  return programs;
}

class RedisServer {
 public:
  explicit RedisServer(const std::vector<std::string>& more = {}) : port_(FreePort()) {
    std::vector<std::string> words = {TheirPrograms().server,
                                      "--port",
                                      std::to_string(port_),
                                      "--bind",
                                      "127.0.0.1",
                                      "--dir",
                                      folder_.path(),
                                      "--save",
                                      "",
                                      "--appendonly",
                                      "no"};
    words.insert(words.end(), more.begin(), more.end());
    std::vector<char*> arguments;
    for (std::string& word : words) arguments.push_back(word.data());
    arguments.push_back(nullptr);
    pid_ = ::fork();
    if (pid_ == 0) {
      const int null = ::open("/dev/null", O_RDWR);
      ::dup2(null, 1);
      ::dup2(null, 2);
      ::execvp(arguments[0], arguments.data());
      ::_exit(127);
    }
    EXPECT_TRUE(WaitFor([this] { return !Ask("ping").empty(); }));
  }
  ~RedisServer() { Kill(); }
  RedisServer(const RedisServer&) = delete;
  RedisServer& operator=(const RedisServer&) = delete;

  void Signal(int signal) const { ::kill(pid_, signal); }
  void Kill() {
    if (pid_ <= 0) return;
    Signal(SIGKILL);
    ::waitpid(pid_, nullptr, 0);
    pid_ = 0;
  }
  int port() const { return port_; }
  std::string node() const { return "127.0.0.1:" + std::to_string(port_); }
  std::string url() const { return "redis://" + node(); }
  std::string Ask(const std::string& what) const {
    return OutputOf(TheirPrograms().cli + " -p " + std::to_string(port_) + " " + what);
  }

 private:
  TestFolder folder_;
  int port_;
  pid_t pid_ = 0;
};

bool CanRun() {
  static const bool can = MakeValkeyClient({.nodes = "127.0.0.1:1", .user = "", .password = ""}, 1).has_value() &&
                          !OutputOf(TheirPrograms().server + " --version").empty();
  return can;
}
#define PITH_NEEDS_REDIS() \
  if (!CanRun())           \
  GTEST_SKIP() << "no server (scripts/fetch_valkey_server.sh fetches one), or a build without PITH_VALKEY"

std::shared_ptr<Store> OpenStore(const std::string& url, size_t ram = 64 * kMiB) {
  auto store = Store::Open({.ram_bytes = ram, .folder = "", .remote = url});
  EXPECT_TRUE(store) << store.error().message;
  return store.value_or(nullptr);
}

// What a request does.
std::optional<Loaded> Ask(Store& store, const std::vector<int32_t>& tokens) {
  const Query query{.roots = std::span(&kTestRoot, 1), .tokens = tokens};
  store.Refresh(query);
  for (const Match& match : store.Find(query).matches) {
    if (auto loaded = store.Load(match.info->key)) return loaded;
  }
  return std::nullopt;
}

TEST(RemoteUrl, IsReadOrRefused) {
  const auto one = ParseRemoteUrl("redis://host");
  ASSERT_TRUE(one);
  EXPECT_EQ(one->nodes, "host:6379");
  EXPECT_FALSE(one->cluster);
  const auto many = ParseRemoteUrl("valkey+cluster://me:pa:ss@a:1,b:2/");
  ASSERT_TRUE(many);
  EXPECT_EQ(many->nodes, "a:1,b:2");
  EXPECT_EQ(many->user, "me");
  EXPECT_EQ(many->password, "pa:ss");
  EXPECT_TRUE(many->cluster);
  const auto sixth = ParseRemoteUrl("redis-cluster://[::1]:7,[fe80::2]/");
  ASSERT_TRUE(sixth);
  EXPECT_EQ(sixth->nodes, "::1:7,fe80::2:6379");
  for (const char* bad :
       {"redis://", "redis:///", "redis://a:0", "redis://a:65536", "redis://a:x", "redis://a,b", "rediss://a", "a:1",
        "redis-cluster://a,,b", "redis://secret@a", "redis://::1", "redis://[::1", "redis://[a]:1", "redis://[]:1",
        "redis://[::1]x:1", "redis://[::1]1", "redis://a:1:2", "redis://[::1]:"}) {
    const auto refused = ParseRemoteUrl(bad);
    EXPECT_FALSE(refused) << bad;
    // Passwords are not said again.
    EXPECT_TRUE(refused || refused.error().message.find("secret") == std::string::npos);
  }
}

TEST(RemoteTier, AnotherStoreFindsWhatOneHasPut) {
  PITH_NEEDS_REDIS();
  const RedisServer server;
  const std::vector<int32_t> tokens = TestTokens(1, 1000);
  {
    const auto store = OpenStore(server.url());
    ObjectInfo info = TestInfo(tokens);
    info.rewind_most = 1000;
    EXPECT_TRUE(store->Put(info, TestPayload(tokens, 5 * kMiB + 123)));
    EXPECT_TRUE(PutTest(*store, 2, 70, 999));
    EXPECT_TRUE(store->Sync());
    EXPECT_EQ(store->stats().tiers[2].puts, 2U);
  }
  const auto store = OpenStore(server.url());
  std::vector<int32_t> longer = tokens;
  longer.push_back(7);
  auto loaded = Ask(*store, longer);
  ASSERT_TRUE(loaded);
  EXPECT_EQ(loaded->tier, Tier::kRemote);
  EXPECT_TRUE(IsWhole(*loaded));
  loaded = Ask(*store, longer);
  ASSERT_TRUE(loaded);
  EXPECT_EQ(loaded->tier, Tier::kRam);  // where it is now
  // Through the blocks: a text that parts from it.
  const auto third = OpenStore(server.url());
  std::vector<int32_t> parting(tokens.begin(), tokens.begin() + 500);
  parting.resize(900, 3);
  loaded = Ask(*third, parting);
  ASSERT_TRUE(loaded);
  EXPECT_EQ(loaded->info->tokens, tokens);
  EXPECT_TRUE(IsWhole(*loaded));
  EXPECT_FALSE(Ask(*third, TestTokens(9, 500)));
  EXPECT_TRUE(third->Remove(TestKey(1, 1000)));
  EXPECT_FALSE(Ask(*OpenStore(server.url()), longer));
  EXPECT_TRUE(third->stats().errors.empty());
}

TEST(RemoteTier, AServerMayHaveAnAddressOfIpv6) {
  PITH_NEEDS_REDIS();
  const RedisServer server({"--bind", "127.0.0.1", "-::1"});
  if (!IsOpen("::1", server.port())) GTEST_SKIP() << "no IPv6 here";
  const std::string url = fmt::format("redis://[::1]:{}", server.port());
  {
    const auto store = OpenStore(url);
    EXPECT_TRUE(PutTest(*store, 1, 200, 1000));
    EXPECT_TRUE(store->Sync());
  }
  const auto store = OpenStore(url);
  std::vector<int32_t> longer = TestTokens(1, 200);
  longer.push_back(7);
  const auto loaded = Ask(*store, longer);
  ASSERT_TRUE(loaded);
  EXPECT_EQ(loaded->tier, Tier::kRemote);
}

TEST(RemoteTier, WhatIsDamagedOrHalfGoneIsAMiss) {
  PITH_NEEDS_REDIS();
  const RedisServer server;
  const std::vector<int32_t> tokens = TestTokens(1, 200);
  const auto put = [&] {
    const auto store = OpenStore(server.url());
    EXPECT_TRUE(PutTest(*store, 1, 200, 3 * kMiB));
    EXPECT_TRUE(store->Sync());
  };
  const auto errors = [&](const char* kind) {
    const auto store = OpenStore(server.url());
    std::vector<int32_t> longer = tokens;
    longer.push_back(7);
    const auto loaded = Ask(*store, longer);
    EXPECT_TRUE(!loaded || IsWhole(*loaded));
    EXPECT_EQ(loaded.has_value(), kind == nullptr);
    return kind == nullptr ? store->stats().errors.size() : store->stats().errors[kind];
  };
  const std::string parts = "--scan --pattern 'pkv:*.2}'";
  put();
  EXPECT_EQ(errors(nullptr), 0U);
  std::string part = server.Ask(parts);
  ASSERT_FALSE(part.empty());
  part.pop_back();
  (void)server.Ask("setrange '" + part + "' 1000 damage");
  EXPECT_EQ(errors("remote_corrupt"), 1U);
  (void)server.Ask("append '" + part + "' x");
  EXPECT_EQ(errors("remote_gone"), 1U);
  (void)server.Ask("del '" + part + "'");
  EXPECT_EQ(errors("remote_gone"), 1U);
  (void)server.Ask("flushall");
  put();
  EXPECT_EQ(errors(nullptr), 0U);
  const std::string header = "pkv:{" + TestKey(1, 200).Hex() + "}";
  (void)server.Ask("setrange '" + header + "' 200 damage");
  EXPECT_EQ(errors("remote_corrupt"), 1U);
  (void)server.Ask("del '" + header + "'");
  (void)server.Ask("lpush '" + header + "' x");
  EXPECT_EQ(errors("remote_io"), 1U);
}

TEST(RemoteTier, AServerThatIsSilentOrGoneHoldsNobodyUp) {
  PITH_NEEDS_REDIS();
  RedisServer server;
  {
    const auto store = OpenStore(server.url());
    EXPECT_TRUE(PutTest(*store, 1, 200, kMiB));
    EXPECT_TRUE(store->Sync());
  }
  const auto store = OpenStore(server.url());
  std::vector<int32_t> tokens = TestTokens(1, 200);
  tokens.push_back(1);
  server.Signal(SIGSTOP);
  for (int i = 0; i < 5; ++i) {
    const Stopwatch watch;
    EXPECT_FALSE(Ask(*store, tokens));
    EXPECT_LT(watch.seconds(), 1.0);
  }
  const Stopwatch watch;
  for (int i = 0; i < 100; ++i) EXPECT_FALSE(Ask(*store, tokens));
  EXPECT_LT(watch.seconds(), 0.5);  // nobody waits any more
  EXPECT_GE(store->stats().errors["remote_io"], 105U);
  server.Signal(SIGCONT);
  EXPECT_TRUE(WaitFor([&] { return Ask(*store, tokens).has_value(); }, 10));
  server.Kill();
  const auto other = OpenStore(server.url());
  EXPECT_FALSE(Ask(*other, tokens));
  EXPECT_TRUE(PutTest(*other, 3, 100, 1000));  // stays in memory
  (void)other->Sync();
  EXPECT_TRUE(other->Load(TestKey(3, 100)));
  EXPECT_GE(other->stats().errors["remote_io"], 2U);
}

TEST(RemoteTier, APasswordIsGiven) {
  PITH_NEEDS_REDIS();
  const RedisServer server({"--requirepass", "secret"});
  EXPECT_FALSE(server.Ask("-a secret ping").empty());
  const auto put = [&](const std::string& url) {
    const auto store = OpenStore(url);
    EXPECT_TRUE(PutTest(*store, 1, 200, 1000));
    (void)store->Sync();
    return store->stats().tiers[2].puts;
  };
  EXPECT_EQ(put(server.url()), 0U);
  EXPECT_EQ(put("redis://:wrong@" + server.node()), 0U);
  EXPECT_EQ(put("redis://:secret@" + server.node()), 1U);
}

// Three masters with a replica each: slots move and a master is killed under load. What is found is whole.
TEST(SlowRemoteCluster, MovesAndFailuresAreMissesAtMost) {
  PITH_NEEDS_REDIS();
  std::vector<std::unique_ptr<RedisServer>> servers;
  std::string nodes, list;
  for (int i = 0; i < 6; ++i) {
    servers.push_back(std::make_unique<RedisServer>(std::vector<std::string>{
        "--cluster-enabled", "yes", "--cluster-node-timeout", "1500", "--repl-diskless-sync-delay", "0",
        "--cluster-require-full-coverage", "no"}));
    nodes += " " + servers.back()->node();
    list += (i == 0 ? "" : ",") + servers.back()->node();
  }
  (void)OutputOf(TheirPrograms().cli + " --cluster create" + nodes + " --cluster-replicas 1 --cluster-yes");
  for (const auto& server : servers) {
    ASSERT_TRUE(WaitFor([&] { return server->Ask("cluster info").find("cluster_state:ok") != std::string::npos; }));
    ASSERT_TRUE(WaitFor([&] {
      const std::string state = server->Ask("info replication");
      return state.find("role:master") != std::string::npos || state.find("master_link_status:up") != std::string::npos;
    }));
  }
  const std::string url = "redis-cluster://" + list;
  // On a busy machine an answer may come too late; what is not stored is stored again.
  const auto put = [&](uint32_t first, uint32_t count) {
    for (uint32_t i = first; i < first + count; ++i) {
      EXPECT_TRUE(WaitFor([&] {
        const auto store = OpenStore(url);
        EXPECT_TRUE(PutTest(*store, i, 100, 2 * kMiB + i));
        (void)store->Sync();
        return store->stats().tiers[2].puts == 1;
      }));
    }
  };
  const auto hits = [&](uint32_t count) {
    const auto store = OpenStore(url);
    uint32_t found = 0;
    for (uint32_t i = 0; i < count; ++i) {
      std::vector<int32_t> tokens = TestTokens(i, 100);
      tokens.push_back(1);
      const Stopwatch watch;
      const auto loaded = Ask(*store, tokens);
      EXPECT_LT(watch.seconds(), 3.0);
      if (!loaded) continue;
      ++found;
      EXPECT_TRUE(IsWhole(*loaded));
    }
    return found;
  };
  put(0, 12);
  EXPECT_TRUE(WaitFor([&] { return hits(12) == 12; }));
  const std::string target = servers[1]->Ask("cluster myid");
  std::thread mover([&] {
    (void)OutputOf(TheirPrograms().cli + " --cluster reshard " + servers[0]->node() +
                   " --cluster-from all --cluster-to " + target.substr(0, 40) + " --cluster-slots 600 --cluster-yes");
  });
  uint32_t found = 0;
  for (int round = 0; round < 3; ++round) found += hits(12);
  EXPECT_GE(found, 24U);  // all, but where an answer came too late
  mover.join();
  EXPECT_TRUE(WaitFor([&] { return hits(12) == 12; }));
  servers[0]->Kill();
  (void)hits(12);  // whole, whatever is found
  EXPECT_TRUE(WaitFor([&] { return servers[1]->Ask("cluster info").find("cluster_state:ok") != std::string::npos; }));
  put(20, 4);
  EXPECT_TRUE(WaitFor([&] { return hits(12) == 12; }, 30));
}

}  // namespace
}  // namespace pith::store
