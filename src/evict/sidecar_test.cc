#include "evict/sidecar.h"

#include <gtest/gtest.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <limits>
#include <thread>
#include <vector>

#include "evict/naive_cache_test_util.h"
#include "evict/registry.h"
#include "evict/sidecar_server.h"

namespace pith::evict {
namespace {

constexpr size_t kCount = 3;
constexpr uint32_t kPatient = 1'000'000;  // us

std::string SocketPath() {
  const std::string name = ::testing::UnitTest::GetInstance()->current_test_info()->name();
  return ::testing::TempDir() + "pith_sidecar_" + std::to_string(::getpid()) + name;
}

// A process that answers, as a thread.
class Answering {
 public:
  explicit Answering(const std::string& path) {
    auto server = SidecarServer::Listen(path, *LoadModel("", ModelKind::kColdRl));
    EXPECT_TRUE(server) << server.error().message;
    server_ = std::move(*server);
    thread_ = std::thread([this] { EXPECT_TRUE(server_->Run([this] { return !stops_.load(); })); });
  }
  ~Answering() {
    stops_ = true;
    thread_.join();
  }

 private:
  std::unique_ptr<SidecarServer> server_;
  std::atomic<bool> stops_ = false;
  std::thread thread_;
};

// The other end of a client's connections, which does what a test says.
class Opposite {
 public:
  explicit Opposite(const std::string& path) : path_(path) {
    listener_ = ::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    const sockaddr_un address = *SidecarAddress(path);
    ::unlink(path.c_str());
    EXPECT_EQ(::bind(listener_, reinterpret_cast<const sockaddr*>(&address), sizeof address), 0);
    EXPECT_EQ(::listen(listener_, 4), 0);
  }
  ~Opposite() {
    Hang();
    ::close(listener_);
    ::unlink(path_.c_str());
  }

  SidecarQuestion Read() {
    if (connection_ < 0) connection_ = ::accept(listener_, nullptr, nullptr);
    SidecarQuestion question{};
    EXPECT_EQ(::recv(connection_, &question, sizeof question, 0), static_cast<ssize_t>(SidecarQuestion::Bytes(kCount)));
    return question;
  }
  void Send(const SidecarAnswer& answer, size_t bytes = SidecarAnswer::Bytes(kCount)) {
    EXPECT_EQ(::send(connection_, &answer, bytes, MSG_NOSIGNAL), static_cast<ssize_t>(bytes));
  }
  void Hang() {
    if (connection_ >= 0) ::close(connection_);
    connection_ = -1;
  }

 private:
  const std::string path_;
  int listener_;
  int connection_ = -1;
};

SidecarAnswer AnswerTo(const SidecarQuestion& question, float first) {
  SidecarAnswer answer{};
  answer.version = kSidecarVersion;
  answer.sequence = question.sequence;
  answer.margins[0] = first;
  answer.margins[1] = -1;
  answer.margins[2] = 2;
  answer.mask = SidecarAnswer::MaskOf(answer.margins, kCount);
  return answer;
}

std::vector<float> Ask(SidecarClient& client) {
  static constexpr float kFeatures[kCount * ColdRl::kFeatures] = {1, 2, 3};
  const float* const margins = client.Margins(kFeatures, kCount);
  return margins == nullptr ? std::vector<float>() : std::vector<float>(margins, margins + kCount);
}

std::vector<uint32_t> Victims(const std::string& policy, const Trace& trace, SidecarCounters* counters = nullptr) {
  auto evictor = MakeEvictor(policy, {3000, trace.num_objects(), &trace});
  EXPECT_TRUE(evictor) << evictor.error().message;
  std::vector<uint32_t> victims;
  (*evictor)->RecordVictims(&victims);
  Tally tally;
  (*evictor)->Replay(trace, false, tally);
  if (counters != nullptr) *counters = *(*evictor)->sidecar();
  return victims;
}

TEST(Sidecar, DecidesWhatTheNetworkInTheProcessDecides) {
  const std::string path = SocketPath();
  const Trace trace = RandomTrace(3, 4000, 300, 100);
  const std::vector<uint32_t> own = Victims("coldrl", trace), oldest = Victims("lru", trace);
  const std::string policy = "coldrl:sidecar=" + path + ",deadline=1000000";
  ASSERT_NE(own, oldest);
  SidecarCounters counters;
  {
    const Answering sidecar(path);
    EXPECT_EQ(Victims(policy, trace, &counters), own);
    EXPECT_GT(counters.answered, 100u);
    EXPECT_EQ(counters.late + counters.wrong + counters.absent + counters.rested, 0u);
  }
  // Nobody is there: those go that are least recently used, and nobody waits.
  EXPECT_FALSE(std::filesystem::exists(path));
  EXPECT_EQ(Victims(policy, trace, &counters), oldest);
  EXPECT_EQ(counters.answered, 0u);
  EXPECT_GT(counters.absent, 100u);
}

TEST(Sidecar, WhatIsGivenTwiceIsTold) {
  const Trace trace = RandomTrace(3, 40, 30, 10);
  const auto both = MakeEvictor("coldrl:sidecar=/x,model=/y", {3000, trace.num_objects(), &trace});
  ASSERT_FALSE(both);
  EXPECT_EQ(both.error().message, "coldrl: the sidecar has the model; give it there");
  const auto far = MakeEvictor("coldrl:sidecar=" + std::string(200, 'x'), {3000, trace.num_objects(), &trace});
  ASSERT_FALSE(far);
  EXPECT_EQ(far.error().message, "a socket's path has 1 to 107 bytes");
  EXPECT_FALSE(MakeEvictor("coldrl:deadline=5", {3000, trace.num_objects(), &trace}));
}

TEST(Sidecar, ALateAnswerAnswersNoLaterQuestion) {
  const std::string path = SocketPath();
  Opposite opposite(path);
  SidecarClient impatient(*SidecarAddress(path), 20'000);
  EXPECT_TRUE(Ask(impatient).empty());
  EXPECT_EQ(impatient.counters().late, 1u);
  const SidecarQuestion first = opposite.Read();
  std::thread answers([&] {
    const SidecarQuestion second = opposite.Read();
    EXPECT_NE(second.sequence, first.sequence);
    opposite.Send(AnswerTo(first, 77));
    opposite.Send(AnswerTo(second, 5));
  });
  const std::vector<float> margins = Ask(impatient);
  answers.join();
  // On a machine that is too busy the second may be late, too; it is never the first one's.
  const bool in_time = impatient.counters().late == 1;
  EXPECT_EQ(margins, in_time ? std::vector<float>({5, -1, 2}) : std::vector<float>());
}

TEST(Sidecar, WhatIsNoAnswerIsWrong) {
  const std::vector<std::function<void(SidecarAnswer&, size_t&)>> lies = {
      [](SidecarAnswer& a, size_t&) { a.version = 7; },
      [](SidecarAnswer& a, size_t&) { a.sequence += 1; },         // to a question that comes next
      [](SidecarAnswer& a, size_t&) { a.mask |= 1u << kCount; },  // a candidate that there is not
      [](SidecarAnswer& a, size_t&) { a.mask ^= 2; },
      [](SidecarAnswer& a, size_t&) { a.margins[1] = std::nanf(""); },
      [](SidecarAnswer& a, size_t&) { a.margins[2] = std::numeric_limits<float>::infinity(); },
      [](SidecarAnswer&, size_t& bytes) { bytes -= 4; },
      [](SidecarAnswer&, size_t& bytes) { bytes = sizeof(SidecarAnswer); },
      [](SidecarAnswer&, size_t& bytes) { bytes = 3; },
  };
  const std::string path = SocketPath();
  for (size_t i = 0; i <= lies.size(); ++i) {
    Opposite opposite(path);
    SidecarClient client(*SidecarAddress(path), kPatient);
    std::thread answers([&] {
      SidecarAnswer answer = AnswerTo(opposite.Read(), 5);
      size_t bytes = SidecarAnswer::Bytes(kCount);
      if (i < lies.size()) lies[i](answer, bytes);  // the last one is true
      opposite.Send(answer, bytes);
    });
    const std::vector<float> margins = Ask(client);
    answers.join();
    EXPECT_EQ(margins.empty(), i < lies.size()) << i;
    EXPECT_EQ(client.counters().wrong, i < lies.size() ? 1u : 0u) << i;
    EXPECT_EQ(client.counters().answered, i < lies.size() ? 0u : 1u) << i;
  }
}

TEST(Sidecar, AfterItsEndAnotherOneIsFound) {
  const std::string path = SocketPath();
  SidecarClient client(*SidecarAddress(path), kPatient);
  EXPECT_TRUE(Ask(client).empty());
  {
    const Answering sidecar(path);
    EXPECT_TRUE(Ask(client).empty()) << "it is not asked for each decision while it is away";
    std::this_thread::sleep_for(std::chrono::milliseconds(150));
    EXPECT_EQ(Ask(client).size(), kCount);
  }
  EXPECT_TRUE(Ask(client).empty());
  EXPECT_EQ(client.counters().absent, 3u);
  const Answering sidecar(path);
  std::this_thread::sleep_for(std::chrono::milliseconds(150));
  EXPECT_EQ(Ask(client).size(), kCount);
  EXPECT_EQ(client.counters().answered, 2u);
}

TEST(Sidecar, AStoppedOneIsAskedForFiveTimesASecond) {
  const std::string path = SocketPath();
  Opposite opposite(path);  // which neither accepts nor reads
  SidecarClient client(*SidecarAddress(path), 1000);
  const auto began = std::chrono::steady_clock::now();
  for (int i = 0; i < 1000; ++i) EXPECT_TRUE(Ask(client).empty());
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count();
  const SidecarCounters after = client.counters();
  EXPECT_GE(after.late, 5u);
  EXPECT_LE(static_cast<double>(after.late), 5 * (1 + seconds));
  EXPECT_EQ(after.late + after.rested, 1000u);
  std::this_thread::sleep_for(std::chrono::milliseconds(1050));
  EXPECT_TRUE(Ask(client).empty());
  EXPECT_EQ(client.counters().late, after.late + 1);
}

TEST(Sidecar, AnswersWhoeverAsksWell) {
  const std::string path = SocketPath();
  const Answering sidecar(path);
  const sockaddr_un address = *SidecarAddress(path);
  SidecarClient client(address, kPatient);
  EXPECT_EQ(Ask(client).size(), kCount);
  for (int i = 0; i < 5; ++i) {
    const int bad = ::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    ASSERT_EQ(::connect(bad, reinterpret_cast<const sockaddr*>(&address), sizeof address), 0);
    SidecarQuestion question{};
    question.version = i == 0 ? 9 : kSidecarVersion;
    question.candidates = i == 1 ? 33 : i == 2 ? 0 : kCount;
    question.features = i == 3 ? 5 : ColdRl::kFeatures;
    const size_t bytes = i == 4 ? 2 : SidecarQuestion::Bytes(question.candidates);
    ASSERT_EQ(::send(bad, &question, std::min(bytes, sizeof question), 0),
              static_cast<ssize_t>(std::min(bytes, sizeof question)));
    char byte = 0;
    EXPECT_EQ(::recv(bad, &byte, 1, 0), 0) << "the connection ends: " << i;
    ::close(bad);
  }
  EXPECT_EQ(Ask(client).size(), kCount);
}

TEST(Sidecar, TakesThePlaceOfOneThatIsGone) {
  const std::string path = SocketPath();
  const auto listen = [&] { return SidecarServer::Listen(path, *LoadModel("", ModelKind::kColdRl)); };
  {
    // What a process leaves behind that was killed.
    const int killed = ::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    const sockaddr_un address = *SidecarAddress(path);
    ASSERT_EQ(::bind(killed, reinterpret_cast<const sockaddr*>(&address), sizeof address), 0);
    ::close(killed);
  }
  ASSERT_TRUE(std::filesystem::exists(path));
  {
    const auto first = listen();
    ASSERT_TRUE(first) << first.error().message;
    const auto second = listen();
    ASSERT_FALSE(second);
    EXPECT_EQ(second.error().code, ErrorCode::kBusy);
  }
  std::ofstream(path) << "a file";
  EXPECT_FALSE(listen());
  EXPECT_TRUE(std::filesystem::is_regular_file(path));
  std::filesystem::remove(path);
  EXPECT_EQ(SidecarServer::Listen("/nowhere/at/all", *LoadModel("", ModelKind::kColdRl)).error().code, ErrorCode::kIo);
}

}  // namespace
}  // namespace pith::evict
