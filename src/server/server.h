// The server: routes, the key, and the HTTP around the models of a catalog.
#ifndef PITH_SERVER_SERVER_H_
#define PITH_SERVER_SERVER_H_

#include <memory>
#include <string>
#include <vector>

#include "pith/types.h"
#include "server/api.h"
#include "server/catalog.h"
#include "server/http_server.h"
#include "server/kept_responses.h"
#include "server/protocol.h"

namespace pith::server {

struct ServerOptions {
  HttpServerOptions http;
  std::vector<std::string> api_keys;  // empty: none is asked for
  KeptResponseLimits responses;
};

class Server {
 public:
  // Listens. kIo, kInvalidArgument: HttpServer's.
  static Result<std::unique_ptr<Server>> Create(const ServerOptions& options, std::unique_ptr<ModelCatalog> catalog);
  ~Server();

  int port() const;
  // Refuses what is new, finishes what runs or gives it up after `seconds`, then closes.
  void Drain(double seconds);

 private:
  Server();
  struct Private;
  std::unique_ptr<Private> private_;
};

// What a route needs before it is handled.
enum class Needs : uint8_t {
  kNothing,
  kLoaded,     // a model that is there: nothing is loaded for it
  kModel,      // the one that the request names
  kEmbedding,  // likewise, for embeddings
};

// Routes one request, as the server does: for tests and fuzzing without sockets.
class Router {
 public:
  // front: what routes get that need no model.
  Router(ModelCatalog& catalog, ServerContext& front, std::vector<std::string> api_keys, KeptResponseLimits responses)
      : catalog_(catalog),
        front_(front),
        api_keys_(std::move(api_keys)),
        responses_(std::make_shared<KeptResponses>(responses)) {}
  void Handle(HttpRequest request, std::shared_ptr<HttpExchange> exchange) const;

 private:
  // The number of the request's key; -1: none that is known.
  int KeyOf(const HttpRequest& request) const;
  void WithModel(Call call, Needs needs, void (*handle)(Call&)) const;

  ModelCatalog& catalog_;
  ServerContext& front_;
  std::vector<std::string> api_keys_;
  std::shared_ptr<KeptResponses> responses_;
};

}  // namespace pith::server

#endif  // PITH_SERVER_SERVER_H_
