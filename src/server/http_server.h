// HTTP/1.1 for the server: connections, limits and deadlines. Everything of Boost stays in http_server.cc.
//
// One thread serves all connections; none costs a thread. Requests are handled on a few worker threads, answers may
// come from any thread.
#ifndef PITH_SERVER_HTTP_SERVER_H_
#define PITH_SERVER_HTTP_SERVER_H_

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "pith/types.h"

namespace pith::server {

struct HttpLimits {
  size_t header_bytes = size_t{32} << 10;
  size_t body_bytes = size_t{16} << 20;
  size_t bodies_bytes = size_t{256} << 20;  // of all requests that are read or looked at; more get 503
  size_t unsent_bytes = size_t{4} << 20;  // of an answer that its client does not take; then it is dropped
  int connections = 1024;
  int queued_requests = 1024;  // that no worker has begun
  double header_seconds = 10;  // from a request's first byte to the end of its header
  double body_seconds = 60;
  double idle_seconds = 75;   // between requests
  double write_seconds = 30;  // without a byte taken
};

// A request's part of HttpLimits::bodies_bytes, until the last copy of it is gone.
class BodyHold {
 public:
  // Null: there are not so many left. held: those of all requests.
  static std::shared_ptr<BodyHold> Take(const std::shared_ptr<std::atomic<size_t>>& held, size_t bytes, size_t most);
  ~BodyHold() { held_->fetch_sub(bytes_); }
  BodyHold(const BodyHold&) = delete;
  BodyHold& operator=(const BodyHold&) = delete;

 private:
  BodyHold(std::shared_ptr<std::atomic<size_t>> held, size_t bytes) : held_(std::move(held)), bytes_(bytes) {}

  std::shared_ptr<std::atomic<size_t>> held_;
  size_t bytes_;
};

struct HttpRequest {
  std::string method;
  std::string path;   // percent-decoded, without the query
  std::string query;  // as it came
  std::string body;
  std::vector<std::pair<std::string, std::string>> headers;
  std::shared_ptr<BodyHold> hold = {};  // of its body, and of what is made of it

  // The first of that name, in any case; empty if there is none.
  std::string_view Header(std::string_view name) const;
  // Of the query, percent-decoded; empty if there is none.
  std::string Parameter(std::string_view name) const;
};

struct HttpResponse {
  int status = 200;
  std::string body = {};
  std::string type = "application/json; charset=utf-8";
  std::vector<std::pair<std::string, std::string>> headers = {};
};

// The answer to one request: Send() once, or BeginStream(), Write() any number of times and EndStream(). From any
// thread.
class HttpExchange {
 public:
  virtual ~HttpExchange() = default;
  virtual void Send(HttpResponse response) = 0;
  virtual void BeginStream(std::string type) = 0;
  virtual void Write(std::string data) = 0;
  virtual void EndStream() = 0;
  // Breaks the connection: what was streamed so far is not the whole answer.
  virtual void Abort() = 0;
  // Runs on the connections' thread, in the order of the calls; not at all once the client has left.
  virtual void Post(std::function<void()> task) = 0;
  // The same in so many seconds, of the last call alone; not at all once the answer was given.
  virtual void PostAfter(double seconds, std::function<void()> task) = 0;
  // Called once on the connections' thread when the client leaves before the whole answer was given; at once if it has
  // left already, or the answer was given. Several are all called. Who sets one promises no answer to a client that
  // leaves.
  virtual void OnLeave(std::function<void()> callback) = 0;
};

// On a worker thread.
using HttpHandler = std::function<void(HttpRequest request, std::shared_ptr<HttpExchange> exchange)>;
// The body of errors that the connection itself answers; `path` may be empty.
using HttpErrorShape = std::function<HttpResponse(int status, const std::string& message, const std::string& path)>;

struct HttpServerOptions {
  std::string host = "127.0.0.1";
  int port = 8080;  // 0: any that is free
  int num_workers = 2;
  HttpLimits limits;
};

class HttpServer {
 public:
  // Listens and serves from here on. kIo: the address cannot be had. kInvalidArgument: it is none.
  static Result<std::unique_ptr<HttpServer>> Create(const HttpServerOptions& options, HttpHandler handler,
                                                    HttpErrorShape error_shape);
  virtual ~HttpServer() = default;  // Stop(0)
  virtual int port() const = 0;
  // Takes no new connections; returns when the requests that run are answered, or after `seconds`.
  virtual void Stop(double seconds) = 0;
};

// Bytes behind %XX; kInvalidArgument: a percent sign that begins none.
Result<std::string> PercentDecode(std::string_view text, bool plus_is_space);

}  // namespace pith::server

#endif  // PITH_SERVER_HTTP_SERVER_H_
