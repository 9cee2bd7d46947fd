// The inside of the HTTP server.
#ifndef PITH_SERVER_HTTP_SHARED_H_
#define PITH_SERVER_HTTP_SHARED_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>

#include <boost/asio/io_context.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/thread_pool.hpp>
#include <boost/beast/http/fields.hpp>

#include "server/http_server.h"

namespace pith::server {

class HttpConnection {
 public:
  virtual ~HttpConnection() = default;
  // The client has left, or is given up.
  virtual void Gone() = 0;
  virtual void CloseIfIdle() = 0;
};

// Path and query of a request's target: "/a?b", "http://host/a?b" or "*". kInvalidArgument: it is none.
Status ReadTarget(std::string target, HttpRequest& request);
// What another server on the way may have read otherwise (RFC 9110 5.3 and 8.6, RFC 9112 3.2 and 6.1); empty: nothing.
std::string FramingFault(const boost::beast::http::fields& head, unsigned version);
bool IsChunkedAlone(std::string_view transfer_encoding);
// Of an answer's head.
std::string_view Reason(int status);
std::string DateNow();

// What all connections share; used on the connections' thread but for the atomics.
struct Shared {
  HttpServerOptions options;
  HttpHandler handler;
  HttpErrorShape error_shape;
  boost::asio::io_context io{1};
  std::optional<boost::asio::thread_pool> workers;
  std::unordered_map<uint64_t, std::weak_ptr<HttpConnection>> connections;  // by their numbers
  uint64_t num_accepted = 0;
  int num_served = 0;  // of them, those that were not refused
  std::atomic<int> queued{0};
  std::shared_ptr<std::atomic<size_t>> body_bytes = std::make_shared<std::atomic<size_t>>(0);  // see BodyHold
  bool stopping = false;

  // Runs a task on the connections' thread, at once where this is it. False: that thread has ended, and the task is
  // left alone. (A task holds a connection, and so all of this: queued then, it would keep itself for ever.)
  template <typename Task>
  bool Run(Task& task) {
    if (io.get_executor().running_in_this_thread()) {
      task();
      return true;
    }
    return Queue(task);
  }
  template <typename Task>
  bool Queue(Task& task) {
    const std::lock_guard lock(ending);
    if (!ended) boost::asio::post(io, std::move(task));
    return !ended;
  }
  // Once that thread was joined: what came in between is run here.
  void End() {
    {
      const std::lock_guard lock(ending);
      ended = true;
    }
    io.restart();
    io.poll();
  }

  std::mutex ending;
  bool ended = false;
};

}  // namespace pith::server

#endif  // PITH_SERVER_HTTP_SHARED_H_
