// The server: routes, the key, and the HTTP around one scheduler.
#ifndef PITH_SERVER_SERVER_H_
#define PITH_SERVER_SERVER_H_

#include <memory>
#include <string>
#include <vector>

#include "pith/types.h"
#include "server/http_server.h"
#include "server/protocol.h"

namespace pith::server {

struct ServerOptions {
  HttpServerOptions http;
  std::vector<std::string> api_keys;  // empty: none is asked for
  bool saves_slots = false;
};

class Server {
 public:
  // Listens. kIo, kInvalidArgument: HttpServer's.
  static Result<std::unique_ptr<Server>> Create(const ServerOptions& options, ServedModel model, std::shared_ptr<Scheduler> scheduler);
  ~Server();

  int port() const;
  // Refuses what is new, finishes what runs or gives it up after `seconds`, then closes.
  void Drain(double seconds);

 private:
  Server();
  struct Private;
  std::unique_ptr<Private> private_;
};

// Routes one request, as the server does: for tests and fuzzing without sockets.
class Router {
 public:
  Router(ServerContext& context, std::vector<std::string> api_keys) : context_(context), api_keys_(std::move(api_keys)) {}
  void Handle(HttpRequest request, std::shared_ptr<HttpExchange> exchange) const;

 private:
  // The number of the request's key; -1: none that is known.
  int KeyOf(const HttpRequest& request) const;

  ServerContext& context_;
  std::vector<std::string> api_keys_;
};

}  // namespace pith::server

#endif  // PITH_SERVER_SERVER_H_
