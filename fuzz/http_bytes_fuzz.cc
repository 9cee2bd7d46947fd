// Any bytes on a connection: the server answers or closes, and serves the next connection.
#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <string>

#include "server/http_server.h"

namespace {

using pith::server::HttpExchange;
using pith::server::HttpRequest;
using pith::server::HttpResponse;
using pith::server::HttpServer;

std::unique_ptr<HttpServer> Serve() {
  pith::server::HttpServerOptions options;
  options.port = 0;
  options.num_workers = 1;
  options.limits.header_bytes = 4096;
  options.limits.body_bytes = 4096;
  return HttpServer::Create(
             options,
             [](HttpRequest request, const std::shared_ptr<HttpExchange>& exchange) {
               if (request.Parameter("stream").empty())
                 return exchange->Send({.status = 200, .body = request.path + request.body});
               exchange->BeginStream("text/plain");
               exchange->Write(request.body);
               exchange->EndStream();
             },
             [](int status, const std::string& message, const std::string&) {
               return HttpResponse{.status = status, .body = message};
             })
      .value();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const std::unique_ptr<HttpServer> server = Serve();
  const int fd = ::socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(server->port()));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  if (::connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0) std::abort();
  const timeval limit{.tv_sec = 20, .tv_usec = 0};
  ::setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
  size_t sent = 0;
  while (sent < size) {
    const ssize_t part = ::send(fd, data + sent, size - sent, MSG_NOSIGNAL);
    if (part <= 0) break;
    sent += static_cast<size_t>(part);
  }
  ::shutdown(fd, SHUT_WR);
  std::string answer;
  char buffer[4096];
  ssize_t got = 0;
  while ((got = ::recv(fd, buffer, sizeof(buffer), 0)) > 0) answer.append(buffer, static_cast<size_t>(got));
  if (got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) std::abort();  // it neither answered nor closed
  if (!answer.empty() && !answer.starts_with("HTTP/1.1 ")) std::abort();
  ::close(fd);
  return 0;
}
