#include "evict/sidecar.h"

#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <ctime>

#include "base/check.h"

namespace pith::evict {
namespace {

constexpr uint64_t kSpinNs = 70'000;  // a timer wakes so late
constexpr uint64_t kFirstBackoffNs = 100'000'000;
constexpr uint64_t kMostBackoffNs = 10'000'000'000;
constexpr uint32_t kBreakerOf = 100;    // of so many questions ...
constexpr uint32_t kBreakerFailed = 5;  // ... so many had no answer
constexpr uint64_t kRestNs = 1'000'000'000;

uint64_t Now() {
  timespec now{};
  ::clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<uint64_t>(now.tv_sec) * 1'000'000'000 + static_cast<uint64_t>(now.tv_nsec);
}

// Until there is something to read, or the time is all but over.
void WaitFor(int socket, uint64_t deadline_ns) {
  const uint64_t now = Now();
  if (now + kSpinNs >= deadline_ns) return;
  const uint64_t rest = deadline_ns - kSpinNs - now;
  const timespec timeout{static_cast<time_t>(rest / 1'000'000'000), static_cast<long>(rest % 1'000'000'000)};
  pollfd waits{socket, POLLIN, 0};
  (void)::ppoll(&waits, 1, &timeout, nullptr);  // poll() knows whole milliseconds only
}

}  // namespace

size_t SidecarQuestion::Bytes(size_t candidates) {
  return offsetof(SidecarQuestion, values) + candidates * ColdRl::kFeatures * sizeof(float);
}

size_t SidecarAnswer::Bytes(size_t candidates) { return offsetof(SidecarAnswer, margins) + candidates * sizeof(float); }

uint32_t SidecarAnswer::MaskOf(const float* margins, size_t count) {
  uint32_t mask = 0;
  for (size_t c = 0; c < count; ++c) mask |= (margins[c] > 0 ? 1u : 0u) << c;
  return mask;
}

bool SidecarQuestion::IsOne(size_t bytes) const {
  return bytes >= Bytes(0) && version == kSidecarVersion && features == ColdRl::kFeatures && candidates >= 1 &&
         candidates <= ColdRl::kMostCandidates && bytes == Bytes(candidates);
}

SidecarAnswer::To SidecarAnswer::Answers(size_t bytes, uint32_t asked, size_t count) const {
  if (bytes < Bytes(0) || version != kSidecarVersion) return To::kNothing;
  if (const uint32_t behind = asked - sequence; behind != 0) {
    return behind < UINT32_MAX / 2 ? To::kEarlier : To::kNothing;
  }
  if (bytes != Bytes(count)) return To::kNothing;
  const bool finite = std::all_of(margins, margins + count, [](float margin) { return std::isfinite(margin); });
  return finite && mask == MaskOf(margins, count) ? To::kThis : To::kNothing;
}

Result<sockaddr_un> SidecarAddress(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.empty() || path.size() >= sizeof address.sun_path) {
    return InvalidArgument("a socket's path has 1 to 107 bytes");
  }
  std::memcpy(address.sun_path, path.c_str(), path.size() + 1);
  return address;
}

SidecarClient::~SidecarClient() {
  if (socket_ >= 0) ::close(socket_);
}

bool SidecarClient::Connect(uint64_t now_ns) {
  if (socket_ >= 0) return true;
  if (now_ns < connect_at_ns_) return false;
  socket_ = ::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (socket_ < 0 || ::connect(socket_, reinterpret_cast<const sockaddr*>(&address_), sizeof address_) != 0) {
    Disconnect(now_ns);
    return false;
  }
  return true;
}

void SidecarClient::Disconnect(uint64_t now_ns) {
  if (socket_ >= 0) ::close(socket_);
  socket_ = -1;
  backoff_ns_ = std::clamp(2 * backoff_ns_, kFirstBackoffNs, kMostBackoffNs);
  connect_at_ns_ = now_ns + backoff_ns_;
}

SidecarClient::Outcome SidecarClient::Await(size_t count, uint64_t deadline_ns) {
  for (;;) {
    // Longer messages are cut off here, and told by their length.
    const ssize_t bytes = ::recv(socket_, &answer_, sizeof answer_, MSG_DONTWAIT | MSG_TRUNC);
    if (bytes == 0 || (bytes < 0 && errno != EAGAIN && errno != EINTR)) return Outcome::kAbsent;
    if (bytes < 0) {
      if (Now() >= deadline_ns) return Outcome::kLate;
      WaitFor(socket_, deadline_ns);
      continue;
    }
    const SidecarAnswer::To to = answer_.Answers(static_cast<size_t>(bytes), sequence_, count);
    if (to == SidecarAnswer::To::kEarlier) continue;
    return to == SidecarAnswer::To::kThis ? Outcome::kAnswered : Outcome::kWrong;
  }
}

SidecarClient::Outcome SidecarClient::Ask(const float* features, size_t count) {
  const uint64_t began = Now();
  if (!Connect(began)) return Outcome::kAbsent;
  question_.version = kSidecarVersion;
  question_.sequence = ++sequence_;
  question_.candidates = static_cast<uint16_t>(count);
  question_.features = ColdRl::kFeatures;
  std::copy_n(features, count * ColdRl::kFeatures, question_.values);
  if (::send(socket_, &question_, SidecarQuestion::Bytes(count), MSG_DONTWAIT | MSG_NOSIGNAL) < 0) {
    return errno == EAGAIN || errno == ENOBUFS ? Outcome::kLate : Outcome::kAbsent;  // it reads no more, or is gone
  }
  return Await(count, began + uint64_t{deadline_us_} * 1000);
}

void SidecarClient::Judge(bool failed, uint64_t now_ns) {
  failed_ += failed ? 1 : 0;
  if (failed_ >= kBreakerFailed) rest_until_ns_ = now_ns + kRestNs;
  if (failed_ >= kBreakerFailed || ++recent_ == kBreakerOf) recent_ = failed_ = 0;
}

const float* SidecarClient::Margins(const float* features, size_t count) {
  PITH_DCHECK(count <= ColdRl::kMostCandidates);
  if (rest_until_ns_ != 0) {
    if (Now() < rest_until_ns_) {
      ++counters_.rested;
      return nullptr;
    }
    rest_until_ns_ = 0;
  }
  const Outcome outcome = Ask(features, count);
  switch (outcome) {
    case Outcome::kAnswered:
      ++counters_.answered;
      backoff_ns_ = 0;
      Judge(false, 0);
      return answer_.margins;
    case Outcome::kLate:
      ++counters_.late;
      break;
    case Outcome::kWrong:
      ++counters_.wrong;
      break;
    case Outcome::kAbsent:
      ++counters_.absent;
      break;
  }
  const uint64_t now = Now();
  if (outcome != Outcome::kLate && socket_ >= 0) Disconnect(now);
  // Asking where nobody is costs nothing: the pauses between attempts see to that.
  if (outcome != Outcome::kAbsent) Judge(true, now);
  return nullptr;
}

}  // namespace pith::evict
