#include "server/server.h"

#include <algorithm>
#include <exception>
#include <utility>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "base/escaped.h"
#include "base/utf8.h"
#include "server/api.h"

namespace pith::server {
namespace {

constexpr size_t kLongestModel = 1000;

struct Route {
  const char* method;
  std::string_view path;  // '*': of one part anything, at the end of several
  void (*handle)(Call&);
  Needs needs = Needs::kNothing;
};

constexpr Route kRoutes[] = {
    {"GET", "/", Page},
    {"GET", "/health", LlamaHealth},
    {"GET", "/v1/health", LlamaHealth},
    {"GET", "/metrics", Metrics, Needs::kLoaded},
    {"GET", "/props", LlamaProps, Needs::kLoaded},
    {"GET", "/slots", LlamaSlots, Needs::kLoaded},
    {"GET", "/slots/*", SlotTokenView, Needs::kLoaded},
    {"POST", "/slots/*", LlamaSlotAction, Needs::kModel},
    {"POST", "/tokenize", LlamaTokenize, Needs::kModel},
    {"POST", "/detokenize", LlamaDetokenize, Needs::kModel},
    {"POST", "/apply-template", LlamaApplyTemplate, Needs::kModel},
    {"POST", "/completion", LlamaCompletion, Needs::kModel},
    {"POST", "/completions", LlamaCompletion, Needs::kModel},
    {"POST", "/infill", LlamaInfill, Needs::kModel},
    {"POST", "/rerank", LlamaRerank},
    {"POST", "/reranking", LlamaRerank},
    {"POST", "/v1/rerank", LlamaRerank},
    {"POST", "/v1/reranking", LlamaRerank},
    {"POST", "/embedding", LlamaEmbedding, Needs::kEmbedding},
    {"POST", "/embeddings", LlamaEmbedding, Needs::kEmbedding},
    {"GET", "/models", OpenAiModels},
    {"GET", "/v1/models", OpenAiModels},
    {"GET", "/v1/models/*", OpenAiModel},
    {"POST", "/chat/completions", OpenAiChat, Needs::kModel},
    {"POST", "/v1/chat/completions", OpenAiChat, Needs::kModel},
    {"POST", "/chat/completions/input_tokens", OpenAiChatTokens, Needs::kModel},
    {"POST", "/v1/chat/completions/input_tokens", OpenAiChatTokens, Needs::kModel},
    {"POST", "/v1/completions", OpenAiCompletions, Needs::kModel},
    {"POST", "/responses", OpenAiResponses, Needs::kModel},
    {"POST", "/v1/responses", OpenAiResponses, Needs::kModel},
    {"POST", "/responses/input_tokens", OpenAiResponsesTokens, Needs::kModel},
    {"POST", "/v1/responses/input_tokens", OpenAiResponsesTokens, Needs::kModel},
    {"GET", "/responses/*/input_items", OpenAiInputItems},
    {"GET", "/v1/responses/*/input_items", OpenAiInputItems},
    {"POST", "/responses/*/cancel", OpenAiCancelResponse},
    {"POST", "/v1/responses/*/cancel", OpenAiCancelResponse},
    {"GET", "/responses/*", OpenAiKeptResponse},
    {"GET", "/v1/responses/*", OpenAiKeptResponse},
    {"DELETE", "/responses/*", OpenAiForgetResponse},
    {"DELETE", "/v1/responses/*", OpenAiForgetResponse},
    {"POST", "/v1/embeddings", OpenAiEmbeddings, Needs::kEmbedding},
    {"POST", "/v1/messages", AnthropicMessages, Needs::kModel},
    {"POST", "/v1/messages/count_tokens", AnthropicCountTokens, Needs::kModel},
    {"POST", "/api/generate", OllamaGenerate, Needs::kModel},
    {"POST", "/api/chat", OllamaChat, Needs::kModel},
    {"GET", "/api/tags", OllamaTags},
    {"POST", "/api/show", OllamaShow, Needs::kModel},
    {"GET", "/api/ps", OllamaPs},
    {"GET", "/api/version", OllamaVersion},
    {"POST", "/api/embed", OllamaEmbed, Needs::kEmbedding},
    {"POST", "/api/embeddings", OllamaEmbeddings, Needs::kEmbedding},
};

bool Matches(const Route& route, std::string_view path) {
  const size_t star = route.path.find('*');
  if (star == std::string_view::npos) return path == route.path;
  const std::string_view before = route.path.substr(0, star), after = route.path.substr(star + 1);
  if (path.size() < before.size() + after.size() || !path.starts_with(before) || !path.ends_with(after)) return false;
  const std::string_view part = path.substr(star, path.size() - before.size() - after.size());
  return after.empty() || (!part.empty() && part.find('/') == std::string_view::npos);
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
  Call call{.catalog = catalog_,
            .context = front_,
            .lease = nullptr,
            .request = std::move(request),
            .exchange = std::move(exchange),
            .responses = responses_,
            .tenant = {},
            .parsed = nullptr};
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
  std::string allowed = path == "*" && method == "OPTIONS" ? "GET, HEAD, POST" : "";
  const bool is_literal = std::ranges::find(kRoutes, std::string_view(path), &Route::path) != std::end(kRoutes);
  for (const Route& route : kRoutes) {
    if (is_literal ? route.path != path : !Matches(route, path)) continue;
    if (method == route.method) {
      const std::string_view coding = call.request.Header("Content-Encoding");
      if (!coding.empty() && coding != "identity")
        return call.Fail(415, "the request's body must come without a content coding");
      return WithModel(std::move(call), route.needs, route.handle);
    }
    const std::string_view methods = route.method == std::string_view("GET") ? "GET, HEAD" : route.method;
    if (allowed.find(methods) == std::string::npos)
      allowed += fmt::format("{}{}", allowed.empty() ? "" : ", ", methods);
  }
  if (allowed.empty()) return call.Fail(404, fmt::format("there is nothing at {}", Escaped(path, 200)));
  HttpResponse response = method == "OPTIONS"
                              ? HttpResponse{.status = 204}
                              : ErrorResponse(call.dialect, 405, fmt::format("{} takes {}", path, allowed));
  response.headers.emplace_back("Allow", allowed + ", OPTIONS");
  call.exchange->Send(std::move(response));
}

namespace {

// The same call with another context, which a reference cannot be given.
Call WithContext(const Call& call, const ModelLease& lease) {
  return {.catalog = call.catalog,
          .context = *lease.context,
          .lease = lease.lease,
          .request = call.request,
          .exchange = call.exchange,
          .responses = call.responses,
          .tenant = call.tenant,
          .dialect = call.dialect,
          .parsed = call.parsed};
}

// What the request names: in its body, or in the query.
Result<std::string> ModelNameOf(Call& call) {
  std::string name = call.request.Parameter("model");
  if (call.request.method != "POST") return name;
  // An action on a slot may come without a body.
  if (call.request.body.empty() && call.request.path.starts_with("/slots/")) return name;
  PITH_ASSIGN_OR_RETURN(Json body, ParseJsonObject(call.request.body));
  JsonReader reader(body);
  if (call.request.path == "/api/show") reader.Text("name", name);  // its old name
  reader.Text("model", name);
  if (name.size() > kLongestModel)  // it stands in answers
    reader.Fail("model", fmt::format("is longer than {} bytes", kLongestModel));
  PITH_RETURN_IF_ERROR(reader.status());
  call.parsed = std::make_shared<Json>(std::move(body));
  call.request.body.clear();
  return name;
}

HttpResponse NoModel(const Call& call, const Error& error) {
  const bool is_file = error.code != ErrorCode::kNotFound && error.code != ErrorCode::kBusy &&
                       error.code != ErrorCode::kCancelled;
  // Another try will not help: the file is no model that can be served here.
  if (is_file) return ErrorResponse(call.dialect, 400, error.message);
  if (error.code != ErrorCode::kNotFound || call.dialect != Dialect::kOpenAi)
    return ErrorResponse(call.dialect, error, call.context.draining);
  return ErrorResponse(call.dialect, 404, "invalid_request_error", error.message,
                       {{"code", "model_not_found"}, {"param", "model"}});
}

}  // namespace

void Router::WithModel(Call call, Needs needs, void (*handle)(Call&)) const {
  if (needs == Needs::kNothing) return handle(call);
  if (needs == Needs::kLoaded) {
    const ModelLease lease = catalog_.AcquireLoaded(call.request.Parameter("model"));
    if (lease.context == nullptr) return handle(call);
    Call loaded = WithContext(call, lease);
    return handle(loaded);
  }
  const Result<std::string> name = ModelNameOf(call);
  if (!name) return call.Fail(name.error());
  if (front_.draining) return call.Fail(Error{ErrorCode::kBusy, "the server is shutting down"});
  catalog_.Acquire(*name, needs == Needs::kEmbedding, [call, handle](const Result<ModelLease>& lease) {
    if (!lease) return call.exchange->Send(NoModel(call, lease.error()));
    Call loaded = WithContext(call, *lease);
    try {
      handle(loaded);
    } catch (const std::exception&) {  // memory, on the catalog's thread
      loaded.Fail(500, "the server has no room left for this request");
    }
  });
}

struct Server::Private {
  ServerContext front;  // of the server itself, without a model
  std::unique_ptr<ModelCatalog> catalog;
  std::unique_ptr<Router> router;
  std::unique_ptr<HttpServer> http;
};

Server::Server() : private_(std::make_unique<Private>()) {}
Server::~Server() = default;

Result<std::unique_ptr<Server>> Server::Create(const ServerOptions& options, std::unique_ptr<ModelCatalog> catalog) {
  std::unique_ptr<Server> server(new Server());
  Private& own = *server->private_;
  own.catalog = std::move(catalog);
  own.router = std::make_unique<Router>(*own.catalog, own.front, options.api_keys, options.responses);
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
  private_->front.draining = true;
  private_->catalog->Drain(seconds);
  private_->http->Stop(10);
}

}  // namespace pith::server
