#include "server/server.h"

#include <algorithm>
#include <utility>

#include <fmt/format.h>

#include "base/escaped.h"
#include "base/utf8.h"
#include "server/api.h"

namespace pith::server {
namespace {

struct Route {
  const char* method;
  std::string_view path;  // with '/' at its end: and anything behind it
  void (*handle)(Call&);
};

constexpr Route kRoutes[] = {
    {"GET", "/health", LlamaHealth},
    {"GET", "/v1/health", LlamaHealth},
    {"GET", "/metrics", Metrics},
    {"GET", "/props", LlamaProps},
    {"GET", "/slots", LlamaSlots},
    {"POST", "/slots/", LlamaSlotAction},
    {"POST", "/tokenize", LlamaTokenize},
    {"POST", "/detokenize", LlamaDetokenize},
    {"POST", "/apply-template", LlamaApplyTemplate},
    {"POST", "/completion", LlamaCompletion},
    {"POST", "/completions", LlamaCompletion},
    {"GET", "/models", OpenAiModels},
    {"GET", "/v1/models", OpenAiModels},
    {"GET", "/v1/models/", OpenAiModel},
    {"POST", "/chat/completions", OpenAiChat},
    {"POST", "/v1/chat/completions", OpenAiChat},
    {"POST", "/v1/completions", OpenAiCompletions},
    {"POST", "/v1/responses", OpenAiResponses},
    {"POST", "/v1/embeddings", NoEmbeddings},
    {"POST", "/embeddings", NoEmbeddings},
    {"POST", "/embedding", NoEmbeddings},
    {"POST", "/v1/messages", AnthropicMessages},
    {"POST", "/v1/messages/count_tokens", AnthropicCountTokens},
    {"POST", "/api/generate", OllamaGenerate},
    {"POST", "/api/chat", OllamaChat},
    {"GET", "/api/tags", OllamaTags},
    {"POST", "/api/show", OllamaShow},
    {"GET", "/api/ps", OllamaPs},
    {"GET", "/api/version", OllamaVersion},
    {"POST", "/api/embed", NoEmbeddings},
    {"POST", "/api/embeddings", NoEmbeddings},
};

bool Matches(const Route& route, std::string_view path) {
  if (!route.path.ends_with('/')) return path == route.path;
  return path.size() > route.path.size() && path.starts_with(route.path);
}

// Takes as long whatever the texts are, but for the length of what was given.
bool EqualsInConstantTime(std::string_view given, std::string_view key) {
  unsigned char different = given.size() == key.size() ? 0 : 1;
  for (size_t i = 0; i < given.size(); ++i) {
    const char expected = key.empty() ? '\0' : key[i % key.size()];
    different = static_cast<unsigned char>(different | static_cast<unsigned char>(given[i] ^ expected));
  }
  return different == 0;
}

std::string_view GivenKey(const HttpRequest& request) {
  constexpr std::string_view kBearer = "Bearer ";
  std::string_view given = request.Header("Authorization");
  if (given.size() > kBearer.size() && (given.starts_with(kBearer) || given.starts_with("bearer "))) {
    given.remove_prefix(kBearer.size());
    return given;
  }
  return request.Header("x-api-key");
}

}  // namespace

int Router::KeyOf(const HttpRequest& request) const {
  const std::string_view given = GivenKey(request);
  int found = -1;
  for (size_t i = 0; i < api_keys_.size(); ++i) {
    if (EqualsInConstantTime(given, api_keys_[i])) found = static_cast<int>(i);
  }
  return given.empty() ? -1 : found;
}

void Router::Handle(HttpRequest request, std::shared_ptr<HttpExchange> exchange) const {
  Call call{context_, std::move(request), std::move(exchange), "", Dialect::kOpenAi};
  if (FindInvalidUtf8(call.request.path) != std::string_view::npos) return call.Fail(400, "the address is not UTF-8");
  while (call.request.path.size() > 1 && call.request.path.ends_with('/')) call.request.path.pop_back();
  const std::string& path = call.request.path;
  call.dialect = DialectOf(path);
  if (!api_keys_.empty() && path != "/health") {
    const int key = KeyOf(call.request);
    if (key < 0) return call.Fail(401, "the API key is missing or wrong");
    call.tenant = std::to_string(key);
  }
  const std::string method = call.request.method == "HEAD" ? "GET" : call.request.method;
  std::string allowed;
  for (const Route& route : kRoutes) {
    if (!Matches(route, path)) continue;
    if (method == route.method) {
      const std::string_view coding = call.request.Header("Content-Encoding");
      if (!coding.empty() && coding != "identity") return call.Fail(415, "the request's body must come without a content coding");
      return route.handle(call);
    }
    allowed += fmt::format("{}{}", allowed.empty() ? "" : ", ", route.method == std::string_view("GET") ? "GET, HEAD" : route.method);
  }
  if (allowed.empty()) return call.Fail(404, fmt::format("there is nothing at {}", Escaped(path, 200)));
  HttpResponse response = method == "OPTIONS" ? HttpResponse{.status = 204}
                                              : ErrorResponse(call.dialect, 405, fmt::format("{} takes {}", path, allowed));
  response.headers.emplace_back("Allow", allowed + ", OPTIONS");
  call.exchange->Send(std::move(response));
}

struct Server::Private {
  ServerContext context;
  std::unique_ptr<Router> router;
  std::unique_ptr<HttpServer> http;
};

Server::Server() : private_(std::make_unique<Private>()) {}
Server::~Server() = default;

Result<std::unique_ptr<Server>> Server::Create(const ServerOptions& options, ServedModel model, std::shared_ptr<Scheduler> scheduler) {
  std::unique_ptr<Server> server(new Server());
  Private& own = *server->private_;
  own.context.model = std::move(model);
  own.context.scheduler = std::move(scheduler);
  own.context.saves_slots = options.saves_slots;
  own.router = std::make_unique<Router>(own.context, options.api_keys);
  const auto handle = [router = own.router.get()](HttpRequest request, std::shared_ptr<HttpExchange> exchange) {
    router->Handle(std::move(request), std::move(exchange));
  };
  const auto shape = [](int status, const std::string& message, const std::string& path) {
    return ErrorResponse(DialectOf(path), status, message);
  };
  PITH_ASSIGN_OR_RETURN(own.http, HttpServer::Create(options.http, handle, shape));
  return server;
}

int Server::port() const { return private_->http->port(); }

void Server::Drain(double seconds) {
  private_->context.draining = true;
  private_->context.scheduler->Drain(seconds);
  private_->http->Stop(10);
}

}  // namespace pith::server
