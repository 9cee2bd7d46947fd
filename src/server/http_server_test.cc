// Connections over real sockets: limits, deadlines, leaving.
#include "server/http_server.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <string>
#include <thread>

#include <gtest/gtest.h>

namespace pith::server {
namespace {

// One client's end; reads give up after five seconds.
class Socket {
 public:
  explicit Socket(int port) : fd_(::socket(AF_INET, SOCK_STREAM, 0)) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<uint16_t>(port));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    const timeval limit{.tv_sec = 5, .tv_usec = 0};
    ::setsockopt(fd_, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
    EXPECT_EQ(::connect(fd_, reinterpret_cast<const sockaddr*>(&address), sizeof(address)), 0);
  }
  ~Socket() { Close(); }
  Socket(const Socket&) = delete;
  Socket& operator=(const Socket&) = delete;

  void Send(const std::string& bytes) {
    EXPECT_EQ(::send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL), static_cast<ssize_t>(bytes.size()));
  }
  void Close() {
    if (fd_ >= 0) ::close(fd_);
    fd_ = -1;
  }
  // Until the server ends the connection, or `until` has come.
  std::string Read(const std::string& until = "") {
    std::string all;
    char part[4096];
    while (until.empty() || all.find(until) == std::string::npos) {
      const ssize_t size = ::recv(fd_, part, sizeof(part), 0);
      if (size <= 0) break;
      all.append(part, static_cast<size_t>(size));
    }
    return all;
  }

 private:
  int fd_;
};

HttpResponse Shape(int status, const std::string& message, const std::string& path) {
  return {.status = status, .body = path + ": " + message};
}

std::unique_ptr<HttpServer> Serve(HttpHandler handler, const HttpLimits& limits = {}) {
  HttpServerOptions options;
  options.port = 0;
  options.limits = limits;
  return HttpServer::Create(options, std::move(handler), Shape).value();
}

void Echo(HttpRequest request, const std::shared_ptr<HttpExchange>& exchange) {
  exchange->Send(
      {.status = 200, .body = request.method + " " + request.path + " " + request.body, .type = "text/plain"});
}

TEST(HttpServer, AnswersAndKeepsConnections) {
  const auto server = Serve(Echo);
  Socket socket(server->port());
  socket.Send("GET /a%20b?c=d HTTP/1.1\r\nHost: x\r\n\r\n");
  EXPECT_NE(socket.Read("GET /a b ").find("Connection: keep-alive"), std::string::npos);
  socket.Send(
      "POST /two HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nhiGET /three HTTP/1.1\r\nHost: x\r\nConnection: "
      "close\r\n\r\n");
  const std::string rest = socket.Read();
  EXPECT_NE(rest.find("POST /two hi"), std::string::npos);
  EXPECT_NE(rest.find("GET /three "), std::string::npos);
}

TEST(HttpServer, TargetsOfAllForms) {
  const auto server = Serve([](HttpRequest request, const std::shared_ptr<HttpExchange>& exchange) {
    exchange->Send({.status = 200, .body = request.path + "|" + request.query, .type = "text/plain"});
  });
  const auto ask = [&](const std::string& target) {
    Socket socket(server->port());
    socket.Send("GET " + target + " HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    const std::string answer = socket.Read();
    return answer.substr(std::min(answer.find("\r\n\r\n"), answer.size()));
  };
  EXPECT_EQ(ask("/a?b=c"), "\r\n\r\n/a|b=c");
  EXPECT_EQ(ask("http://host:80/a?b"), "\r\n\r\n/a|b");
  EXPECT_EQ(ask("http://host"), "\r\n\r\n/|");
  EXPECT_EQ(ask("http://host?b"), "\r\n\r\n/|b");
  EXPECT_EQ(ask("/a?u=http://b/c"), "\r\n\r\n/a|u=http://b/c");
  EXPECT_EQ(ask("*"), "\r\n\r\n*|");
}

// What comes behind a body whose end is not known must not be taken for a request.
TEST(HttpServer, CodingsThatAreNotKnown) {
  std::atomic<int> asked{0};
  const auto server = Serve([&](HttpRequest request, const std::shared_ptr<HttpExchange>& exchange) {
    ++asked;
    Echo(std::move(request), exchange);
  });
  const auto ask = [&](const std::string& headers, const std::string& version = "1.1") {
    Socket socket(server->port());
    socket.Send("POST /a HTTP/" + version + "\r\nHost: x\r\n" + headers +
                "\r\n2\r\nhi\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    return socket.Read();
  };
  for (const char* headers : {"Transfer-Encoding: gzip\r\n", "Transfer-Encoding: identity\r\n",
                              "Transfer-Encoding: gzip, chunked\r\n", "Transfer-Encoding: chunked, gzip\r\n"}) {
    const std::string answer = ask(headers);
    EXPECT_TRUE(answer.starts_with("HTTP/1.1 501 ")) << headers << answer;
    EXPECT_EQ(answer.find("/smuggled"), std::string::npos) << headers;
  }
  EXPECT_EQ(asked, 0);
  EXPECT_NE(ask("Transfer-Encoding:  Chunked \r\n").find("POST /a hi"), std::string::npos) << "control";
  EXPECT_EQ(asked, 2);
}

// Whoever reads the other one of two headers takes another request for this one.
TEST(HttpServer, HeadersThatContradictEachOther) {
  std::atomic<int> asked{0};
  const auto server = Serve([&](HttpRequest request, const std::shared_ptr<HttpExchange>& exchange) {
    ++asked;
    Echo(std::move(request), exchange);
  });
  const auto ask = [&](const std::string& headers, const std::string& version = "1.1") {
    Socket socket(server->port());
    socket.Send("POST /a HTTP/" + version + "\r\n" + headers + "\r\nhello");
    return socket.Read(headers.find("close") == std::string::npos ? "hello" : "");
  };
  const std::string length = "Content-Length: 5\r\n", host = "Host: x\r\n";
  for (const std::string& headers : {host + host + length,
                                     host + "host: y\r\n" + length,
                                     host + "Content-Length: 5,5\r\n",
                                     host + "Content-Length: 5, 6\r\n",
                                     host + length + length,
                                     host + length + "Content-Length: 6\r\n",
                                     host + "Content-Length: 5,\r\n",
                                     host + "Content-Length: +5\r\n",
                                     host + "Content-Length: 0x5\r\n",
                                     host + "Content-Length: -5\r\n",
                                     host + "Content-Length:\r\n",
                                     host + "Content-Length: 5 5\r\n",
                                     host + "Content-Length: 99999999999999999999\r\n",
                                     host + length + "Transfer-Encoding: chunked\r\n",
                                     host + "Transfer-Encoding: chunked\r\n" + length,
                                     host + "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
                                     host + length + "Content-Type: a/b\r\nContent-Type: a/c\r\n",
                                     host + length + "Authorization: Bearer a\r\nauthorization: Bearer b\r\n",
                                     host + length + "x-api-key: a\r\nX-API-Key: b\r\n",
                                     host + length + "Content-Encoding: identity\r\nContent-Encoding: gzip\r\n",
                                     host + length + "Expect: 100-continue\r\nExpect: other\r\n",
                                     "Host : x\r\n" + length,
                                     length,
                                     "Host: a b\r\n" + length,
                                     "Host: a/b\r\n" + length,
                                     "Host: http://a\r\n" + length,
                                     "Host: a@b\r\n" + length,
                                     "Host: a\xff\r\n" + length,
                                     host + length + "A\r\n",
                                     host + length + ": a\r\n",
                                     host + length + "A: \x01\r\n",
                                     host + length + std::string("A: \0\r\n", 6)}) {
    const std::string answer = ask(headers);
    EXPECT_TRUE(answer.starts_with("HTTP/1.1 400 ") || answer.starts_with("HTTP/1.1 501 ")) << headers << answer;
    EXPECT_NE(answer.find("Connection: close"), std::string::npos) << headers;
  }
  const std::string old = ask(host + "Transfer-Encoding: chunked\r\n", "1.0");
  EXPECT_TRUE(old.starts_with("HTTP/1.1 400 ")) << old;
  EXPECT_EQ(asked, 0);
  EXPECT_NE(ask(host + length).find("POST /a hello"), std::string::npos) << "control";
  for (const char* named : {"Host:\r\n", "Host: localhost:80\r\n", "Host: [::1]:80\r\n", "host: a-b.c_d%20\r\n"})
    EXPECT_NE(ask(named + length).find("POST /a hello"), std::string::npos) << named;
  EXPECT_NE(ask("Connection: close\r\n" + length, "1.0").find("POST /a hello"), std::string::npos) << "needs none";
  EXPECT_NE(ask(host + length + "Accept: a\r\nAccept: b\r\nA: b\r\n  c\r\n").find("POST /a hello"), std::string::npos)
      << "those that may stand twice, and a folded one, which is one line (RFC 9112 5.2)";
}

TEST(HttpServer, LinesThatEndOtherwise) {
  const auto server = Serve(Echo);
  for (const char* request :
       {"GET /a HTTP/1.1\nHost: x\n\n", "GET /a HTTP/1.1\r\nHost: x\nA: b\r\n\r\n",
        "GET /a HTTP/1.1\r\nHost: x\r\r\n\r\n", "GET /a\r\n\r\n", "GET  /a HTTP/1.1\r\n\r\n",
        "GET /a b HTTP/1.1\r\n\r\n", "GET /a HTTP/1.1 \r\n\r\n", "GET /a HTTP/9.1\r\n\r\n",
        "GET /a HTTP/1.1\r\n Host: x\r\n\r\n", "\x16\x03\x01\x02\x01", "G\xc3T /a HTTP/1.1\r\n\r\n"}) {
    Socket socket(server->port());
    socket.Send(request);
    EXPECT_TRUE(socket.Read().starts_with("HTTP/1.1 400 ")) << request;
  }
}

// RFC 9112 7.1.1: extensions are read over, and are not held.
TEST(HttpServer, ChunksWithExtensions) {
  const auto server = Serve(Echo);
  const std::string head = "POST /a HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n";
  const auto ask = [&](const std::string& body) {
    Socket socket(server->port());
    socket.Send(head + body);
    return socket.Read();
  };
  EXPECT_NE(ask("2;a=b\r\nhe\r\n3;c=\"d\"\r\nllo\r\n0;e\r\nTrailer: f\r\n\r\n").find("POST /a hello"),
            std::string::npos);
  for (const char* wrong :
       {"+2\r\nhe\r\n0\r\n\r\n", "0x2\r\nhe\r\n0\r\n\r\n", "-2\r\nhe\r\n0\r\n\r\n", "g\r\nhe\r\n0\r\n\r\n",
        "2\r\nhel\r\n0\r\n\r\n", "2\nhe\r\n0\r\n\r\n", "ffffffffffffffffff\r\nhe\r\n", "\r\nhe\r\n"}) {
    EXPECT_TRUE(ask(wrong).starts_with("HTTP/1.1 4")) << wrong;
  }
  EXPECT_TRUE(ask("1;" + std::string(size_t{4} << 20, 'a')).starts_with("HTTP/1.1 431 "));
  std::string many;
  for (int i = 0; i < 40; ++i) many += "1;" + std::string(30000, 'a') + "\r\nb\r\n";
  EXPECT_NE(ask(many + "0\r\n\r\n").find("POST /a " + std::string(40, 'b')), std::string::npos) << "control";
}

TEST(HttpServer, OldClientsAreNotToldToContinue) {
  const auto server = Serve(Echo);
  for (const std::string version : {"1.0", "1.1"}) {
    Socket socket(server->port());
    socket.Send("POST /a HTTP/" + version +
                "\r\nHost: x\r\nExpect: 100-continue\r\nConnection: close\r\nContent-Length: 2\r\n\r\n");
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    socket.Send("hi");
    const std::string answer = socket.Read();
    EXPECT_EQ(answer.starts_with("HTTP/1.1 100 "), version == "1.1") << answer;
    EXPECT_NE(answer.find("POST /a hi"), std::string::npos);
  }
}

TEST(HttpServer, LimitsOfSizeAndTime) {
  const auto server = Serve(
      Echo, {.header_bytes = 1000, .body_bytes = 100, .header_seconds = 0.2, .body_seconds = 0.2, .idle_seconds = 0.3});
  Socket large(server->port()), header(server->port()), slow(server->port()), half(server->port()),
      idle(server->port());
  large.Send("POST /large HTTP/1.1\r\nHost: x\r\nContent-Length: 50000000000\r\n\r\n");
  EXPECT_TRUE(large.Read().starts_with("HTTP/1.1 413 "));
  header.Send("GET / HTTP/1.1\r\nHost: x\r\nA: " + std::string(2000, 'a') + "\r\n\r\n");
  EXPECT_TRUE(header.Read().starts_with("HTTP/1.1 431 "));
  slow.Send("GET / HT");
  EXPECT_TRUE(slow.Read().starts_with("HTTP/1.1 408 "));
  half.Send("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nabc");
  EXPECT_TRUE(half.Read().starts_with("HTTP/1.1 408 "));
  EXPECT_EQ(idle.Read(), "");
  Socket chunks(server->port());
  chunks.Send("POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nfff\r\n" + std::string(4095, 'a'));
  EXPECT_TRUE(chunks.Read().starts_with("HTTP/1.1 413 "));
}

TEST(HttpServer, BodiesHoldSoManyBytesTogether) {
  const HttpLimits limits{.body_bytes = 100, .bodies_bytes = 150};
  std::atomic<int> begun{0};
  std::atomic<bool> goes_on{false};
  const auto server = Serve(
      [&](HttpRequest request, const std::shared_ptr<HttpExchange>& exchange) {
        ++begun;
        while (!goes_on) std::this_thread::yield();
        Echo(std::move(request), exchange);
      },
      limits);
  const std::string large = "POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 100\r\n\r\n";
  const std::string chunked =
      "POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n";
  Socket first(server->port());
  first.Send(large + std::string(99, 'a'));
  const auto status_of = [&](const std::string& request) {
    Socket socket(server->port());
    socket.Send(request);
    return socket.Read().substr(9, 3);
  };
  while (status_of(large) != "503") std::this_thread::yield();  // before the first one's header is read
  EXPECT_EQ(status_of(chunked), "503") << "it may become as large";
  Socket small(server->port());
  small.Send("POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 50\r\n\r\n" + std::string(50, 'b'));
  while (begun < 1) std::this_thread::yield();
  EXPECT_EQ(status_of(large), "503") << "a request that is looked at holds its body, too";
  first.Send("a");
  goes_on = true;
  EXPECT_TRUE(first.Read().starts_with("HTTP/1.1 200 "));
  EXPECT_TRUE(small.Read().starts_with("HTTP/1.1 200 "));
  for (int i = 0; i < 500 && status_of(chunked) != "200"; ++i)
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  EXPECT_EQ(status_of(chunked), "200");
}

TEST(HttpServer, AsManyConnectionsAsItTakes) {
  const auto server = Serve(Echo, {.connections = 1});
  Socket first(server->port());
  first.Send("GET / HTTP/1.1\r\nHost: x\r\n\r\n");
  first.Read("GET / ");
  Socket second(server->port());
  EXPECT_TRUE(second.Read().starts_with("HTTP/1.1 503 "));
  first.Close();
  for (int i = 0; i < 100; ++i) {
    Socket third(server->port());
    third.Send("GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    if (third.Read().starts_with("HTTP/1.1 200 ")) return;
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
  FAIL() << "the place of a connection that ended is not given to another";
}

TEST(HttpServer, LeavingIsNoticed) {
  std::atomic<int> left{0};
  std::shared_ptr<HttpExchange> kept;
  std::atomic<bool> begun{false};
  const auto server = Serve([&](HttpRequest, std::shared_ptr<HttpExchange> exchange) {
    exchange->OnLeave([&left] { ++left; });
    exchange->OnLeave([&left] { ++left; });
    kept = std::move(exchange);
    begun = true;
  });
  {
    Socket socket(server->port());
    socket.Send("GET / HTTP/1.1\r\nHost: x\r\n\r\n");
    while (!begun) std::this_thread::yield();
  }
  for (int i = 0; i < 500 && left < 2; ++i) std::this_thread::sleep_for(std::chrono::milliseconds(2));
  EXPECT_EQ(left, 2);
  kept->Send({});  // into the void
  std::atomic<bool> late{false};
  kept->OnLeave([&late] { late = true; });
  for (int i = 0; i < 500 && !late; ++i) std::this_thread::sleep_for(std::chrono::milliseconds(2));
  EXPECT_TRUE(late);
}

TEST(HttpServer, StreamsAndClientsThatDoNotRead) {
  std::atomic<bool> left{false};
  const auto server = Serve(
      [&](HttpRequest request, std::shared_ptr<HttpExchange> exchange) {
        exchange->OnLeave([&left] { left = true; });
        exchange->BeginStream("text/plain");
        if (request.path == "/short") {
          exchange->Write("one");
          exchange->Write("two");
          return exchange->EndStream();
        }
        for (int i = 0; i < 1000 && !left; ++i) {
          exchange->Write(std::string(65536, 'x'));
          std::this_thread::sleep_for(std::chrono::milliseconds(1));
        }
      },
      {.unsent_bytes = 1 << 20, .write_seconds = 0.3});
  Socket chunked(server->port()), plain(server->port());
  chunked.Send("GET /short HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
  EXPECT_TRUE(chunked.Read().ends_with("3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n"));
  plain.Send("GET /short HTTP/1.0\r\n\r\n");
  EXPECT_TRUE(plain.Read().ends_with("\r\n\r\nonetwo"));
  left = false;
  Socket deaf(server->port());
  deaf.Send("GET /long HTTP/1.1\r\nHost: x\r\n\r\n");
  for (int i = 0; i < 1000 && !left; ++i) std::this_thread::sleep_for(std::chrono::milliseconds(5));
  EXPECT_TRUE(left);
}

TEST(HttpServer, StoppingWaitsForAnswers) {
  std::shared_ptr<HttpExchange> kept;
  std::atomic<bool> begun{false};
  const auto server = Serve([&](HttpRequest, std::shared_ptr<HttpExchange> exchange) {
    kept = std::move(exchange);
    begun = true;
  });
  Socket socket(server->port()), idle(server->port());
  socket.Send("GET / HTTP/1.1\r\nHost: x\r\n\r\n");
  while (!begun) std::this_thread::yield();
  std::thread answer([&kept] {
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
    kept->Send({.status = 200, .body = "done"});
  });
  const auto start = std::chrono::steady_clock::now();
  server->Stop(5);
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(3));  // as soon as it was given
  answer.join();
  EXPECT_TRUE(socket.Read().ends_with("done"));
  EXPECT_EQ(idle.Read(), "");
  // Whoever still knows the exchange may use it, and nothing stays behind (LeakSanitizer).
  kept->Send({.status = 200, .body = "late"});
  bool left = false;
  kept->OnLeave([&left] { left = true; });
  EXPECT_TRUE(left);
}

}  // namespace
}  // namespace pith::server
