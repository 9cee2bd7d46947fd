// Answers what caches ask of Cold-RL's network over a Unix socket (sidecar.h).
#ifndef PITH_EVICT_SIDECAR_SERVER_H_
#define PITH_EVICT_SIDECAR_SERVER_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "evict/learn/coldrl.h"
#include "evict/sidecar.h"
#include "pith/types.h"

namespace pith::evict {

class SidecarServer {
 public:
  static constexpr size_t kMostConnections = 64;

  // model: of kind kColdRl. A socket that nobody listens on any more makes place. kInvalidArgument: the path;
  // kBusy: somebody listens there; kIo.
  static Result<std::unique_ptr<SidecarServer>> Listen(const std::string& path, Model model);
  // Removes the socket.
  ~SidecarServer();
  SidecarServer(const SidecarServer&) = delete;
  SidecarServer& operator=(const SidecarServer&) = delete;

  // Answers until go_on() says no, which it asks after each question and ten times a second.
  Status Run(const std::function<bool()>& go_on);
  // From the next question on. Of this thread, or while Run() is not running.
  void Use(Model model) { network_.emplace(std::move(model)); }

  uint64_t answered() const { return answered_; }

 private:
  SidecarServer(std::string path, int listener, Model model) : path_(std::move(path)), listener_(listener) {
    network_.emplace(std::move(model));
  }
  void Accept();
  // False: the connection is over.
  bool Serve(int connection);
  bool Answer(int connection, const SidecarQuestion& question);

  const std::string path_;
  const int listener_;
  std::optional<ColdRl> network_;
  std::vector<int> connections_;
  uint64_t answered_ = 0;
};

}  // namespace pith::evict

#endif  // PITH_EVICT_SIDECAR_SERVER_H_
