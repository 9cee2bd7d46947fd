#include "server/protocol.h"

#include <chrono>
#include <ctime>
#include <utility>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "base/json_text.h"

namespace pith::server {
namespace {

const char* TypeOf(Dialect dialect, int status) {
  switch (status) {
    case 401:
      return "authentication_error";
    case 403:
      return "permission_error";
    case 404:
      return "not_found_error";
    case 413:
      return dialect == Dialect::kAnthropic ? "request_too_large" : "invalid_request_error";
    case 429:
      return "rate_limit_error";
    case 501:
      return dialect == Dialect::kAnthropic ? "invalid_request_error" : "not_supported_error";
    case 503:
      return dialect == Dialect::kAnthropic ? "overloaded_error" : "unavailable_error";
    default:
      break;
  }
  if (status < 500) return "invalid_request_error";
  return dialect == Dialect::kAnthropic ? "api_error" : "server_error";
}

// "'messages[0].role' must be ..." is about that member.
Json ParamOf(const std::string& message) {
  if (!message.starts_with('\'')) return nullptr;
  const size_t end = message.find('\'', 1);
  return end == std::string::npos ? Json() : Json(message.substr(1, end - 1));
}

}  // namespace

Dialect DialectOf(std::string_view path) {
  if (path.starts_with("/v1/messages")) return Dialect::kAnthropic;
  if (path.starts_with("/api/")) return Dialect::kOllama;
  return Dialect::kOpenAi;
}

Json ErrorJson(Dialect dialect, int status, const std::string& type, const std::string& message) {
  switch (dialect) {
    case Dialect::kAnthropic:
      return {{"type", "error"}, {"error", {{"type", type}, {"message", message}}}, {"request_id", RandomId("req_")}};
    case Dialect::kOllama:
      return {{"error", message}};
    default:
      break;
  }
  return {{"error", {{"message", message}, {"type", type}, {"param", ParamOf(message)}, {"code", status}}}};
}

HttpResponse ErrorResponse(Dialect dialect, int status, const std::string& type, const std::string& message,
                           const Json& extra) {
  Json body = ErrorJson(dialect, status, type, message);
  if (dialect == Dialect::kOpenAi && extra.is_object()) body["error"].update(extra);
  HttpResponse response{.status = status, .body = JsonText(body)};
  if (status == 429 || status == 503) response.headers.emplace_back("Retry-After", status == 429 ? "1" : "5");
  if (status == 401) response.headers.emplace_back("WWW-Authenticate", "Bearer");
  return response;
}

HttpResponse ErrorResponse(Dialect dialect, int status, const std::string& message) {
  return ErrorResponse(dialect, status, TypeOf(dialect, status), message, nullptr);
}

int StatusOf(const Error& error, bool draining) {
  switch (error.code) {
    case ErrorCode::kInvalidArgument:
    case ErrorCode::kUnsupported:
    case ErrorCode::kOutOfContext:
    case ErrorCode::kOutOfBudget:
      return 400;
    case ErrorCode::kNotFound:
      return 404;
    case ErrorCode::kBusy:
      return draining ? 503 : 429;
    case ErrorCode::kCancelled:
      return 503;
    default:
      return 500;
  }
}

HttpResponse ErrorResponse(Dialect dialect, const Error& error, bool draining) {
  const int status = StatusOf(error, draining);
  if (error.code == ErrorCode::kOutOfContext && dialect == Dialect::kOpenAi) {
    return ErrorResponse(dialect, status, "exceed_context_size_error", error.message, nullptr);
  }
  return ErrorResponse(dialect, status, error.message);
}

HttpResponse JsonResponse(const Json& body) { return {.status = 200, .body = JsonText(body)}; }

int64_t UnixTime() { return static_cast<int64_t>(std::time(nullptr)); }

std::string TimestampOf(int64_t unix_seconds) {
  const auto seconds = static_cast<std::time_t>(unix_seconds);
  std::tm parts{};
  ::gmtime_r(&seconds, &parts);
  char text[32];
  return {text, std::strftime(text, sizeof(text), "%Y-%m-%dT%H:%M:%SZ", &parts)};
}

std::string TimestampNow() {
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  const auto nanoseconds = std::chrono::duration_cast<std::chrono::nanoseconds>(now).count();
  std::string text = TimestampOf(nanoseconds / 1000000000);
  text.pop_back();
  return fmt::format("{}.{:09}Z", text, nanoseconds % 1000000000);
}

}  // namespace pith::server
