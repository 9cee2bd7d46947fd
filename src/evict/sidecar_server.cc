#include "evict/sidecar_server.h"

#include <fmt/format.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

namespace pith::evict {
namespace {

constexpr int kTickMs = 100;
constexpr int kMostAtOnce = 64;  // of one connection, before others have their turn

int NewSocket() { return ::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0); }

// A socket whose process has ended.
bool IsLeftBehind(const std::string& path, const sockaddr_un& address) {
  struct stat info {};
  if (::lstat(path.c_str(), &info) != 0 || !S_ISSOCK(info.st_mode)) return false;
  const int probe = NewSocket();
  if (probe < 0) return false;
  const bool refused =
      ::connect(probe, reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0 && errno == ECONNREFUSED;
  ::close(probe);
  return refused;
}

}  // namespace

Result<std::unique_ptr<SidecarServer>> SidecarServer::Listen(const std::string& path, Model model) {
  PITH_ASSIGN_OR_RETURN(const sockaddr_un address, SidecarAddress(path));
  const int listener = NewSocket();
  const auto bound = [&] {
    return listener >= 0 && ::bind(listener, reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0;
  };
  bool done = bound();
  if (!done && listener >= 0 && errno == EADDRINUSE) {
    if (!IsLeftBehind(path, address)) {
      ::close(listener);
      return Busy(fmt::format("{} is there already, and no socket that was left behind", path));
    }
    (void)::unlink(path.c_str());
    done = bound();
  }
  if (!done || ::listen(listener, kMostConnections) != 0) {
    const std::string why = std::strerror(errno);
    if (done) (void)::unlink(path.c_str());
    if (listener >= 0) ::close(listener);
    return IoError(fmt::format("nothing can listen on {}: {}", path, why));
  }
  return std::unique_ptr<SidecarServer>(new SidecarServer(path, listener, std::move(model)));
}

SidecarServer::~SidecarServer() {
  (void)::unlink(path_.c_str());
  ::close(listener_);
  for (const int connection : connections_) ::close(connection);
}

void SidecarServer::Accept() {
  const int connection = ::accept4(listener_, nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC);
  if (connection < 0) return;
  if (connections_.size() == kMostConnections)
    ::close(connection);
  else
    connections_.push_back(connection);
}

bool SidecarServer::Answer(int connection, const SidecarQuestion& question) {
  const size_t count = question.candidates;
  SidecarAnswer answer;
  answer.version = kSidecarVersion;
  answer.sequence = question.sequence;
  const float* const margins = network_->MarginsOf(question.values, count);
  if (margins == nullptr) return true;  // no finite numbers: whoever asks goes on without an answer
  std::copy_n(margins, count, answer.margins);
  answer.mask = SidecarAnswer::MaskOf(margins, count);
  ++answered_;
  const size_t bytes = SidecarAnswer::Bytes(count);
  return ::send(connection, &answer, bytes, MSG_DONTWAIT | MSG_NOSIGNAL) >= 0 || errno == EAGAIN;
}

// Whoever asks waits for the last question only: others came too late.
bool SidecarServer::Serve(int connection) {
  SidecarQuestion question;
  bool asked = false;
  for (int read = 0; read < kMostAtOnce; ++read) {
    SidecarQuestion next;
    const ssize_t bytes = ::recv(connection, &next, sizeof next, MSG_DONTWAIT | MSG_TRUNC);
    if (bytes < 0 && errno == EINTR) continue;
    if (bytes < 0 && errno == EAGAIN) break;
    if (bytes < 0 || !next.IsOne(static_cast<size_t>(bytes))) return false;
    question = next;
    asked = true;
  }
  return !asked || Answer(connection, question);
}

Status SidecarServer::Run(const std::function<bool()>& go_on) {
  std::vector<pollfd> waits;
  waits.reserve(kMostConnections + 1);
  while (go_on()) {
    waits.assign(1, {listener_, POLLIN, 0});
    for (const int connection : connections_) waits.push_back({connection, POLLIN, 0});
    if (::poll(waits.data(), waits.size(), kTickMs) < 0) {
      if (errno == EINTR) continue;
      return IoError(fmt::format("waiting for questions on {} failed: {}", path_, std::strerror(errno)));
    }
    for (size_t i = 1; i < waits.size(); ++i) {
      if (waits[i].revents == 0 || Serve(waits[i].fd)) continue;
      ::close(waits[i].fd);
      std::erase(connections_, waits[i].fd);
    }
    if (waits[0].revents != 0) Accept();
  }
  return {};
}

}  // namespace pith::evict
