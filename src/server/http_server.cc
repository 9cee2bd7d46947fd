#include "server/http_server.h"

#include <atomic>
#include <chrono>
#include <exception>
#include <future>
#include <optional>
#include <thread>

#include <fmt/format.h>

#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/write.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/read.hpp>
#include <boost/beast/http/string_body.hpp>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include "server/http_shared.h"

namespace pith::server {
namespace {

namespace asio = boost::asio;
namespace http = boost::beast::http;
using boost::system::error_code;
using tcp = asio::ip::tcp;

// Bytes of later requests that are read while one is answered, so that its client's leaving is seen behind them.
constexpr size_t kReadAhead = size_t{64} << 10;
// What is held of a request beside its header and its body: a line of a chunk that has no end is not.
constexpr size_t kBuffered = size_t{256} << 10;
// After an answer that ends the connection: so long and so many bytes of what the client still sends are taken, since
// closing on unread bytes would take the answer from it.
constexpr double kLingerSeconds = 2;
constexpr size_t kLingerBytes = size_t{64} << 20;
// Connections that are told at the same time that there are too many; more are closed without a word.
constexpr size_t kMostRefused = 64;

class Connection;

class Exchange final : public HttpExchange, public std::enable_shared_from_this<Exchange> {
 public:
  explicit Exchange(std::shared_ptr<Connection> connection) : connection_(std::move(connection)) {}

  void Send(HttpResponse response) override;
  void BeginStream(std::string type) override;
  void Write(std::string data) override;
  void EndStream() override;
  void Abort() override;
  void Post(std::function<void()> task) override;
  void PostAfter(double seconds, std::function<void()> task) override;
  void OnLeave(std::function<void()> callback) override;

  // On the connections' thread.
  void Leave();
  void Over() {
    over_ = true;
    on_leave_.clear();
  }
  bool promises_nothing() const { return !on_leave_.empty(); }

 private:
  template <typename Task>
  void InOrder(Task task);

  std::shared_ptr<Connection> connection_;
  std::vector<std::function<void()>> on_leave_;
  bool left_ = false;
  bool over_ = false;  // answered, or given up
};

class Connection final : public HttpConnection, public std::enable_shared_from_this<Connection> {
 public:
  Connection(std::shared_ptr<Shared> shared, tcp::socket socket)
      : shared_(std::move(shared)),
        id_(++shared_->num_accepted),
        socket_(std::move(socket)),
        timer_(shared_->io),
        later_(shared_->io) {
    error_code ignored;
    socket_.non_blocking(true, ignored);  // for Flush()
  }
  ~Connection() override {
    // Perhaps on another thread, where an answer was the last to know it.
    auto forget = [shared = shared_, id = id_, was_served = is_served_] {
      shared->connections.erase(id);
      if (was_served) --shared->num_served;
    };
    shared_->Queue(forget);
  }

  Shared& shared() { return *shared_; }
  uint64_t id() const { return id_; }

  void Start() {
    is_served_ = true;
    ++shared_->num_served;
    error_code ignored;
    socket_.set_option(tcp::no_delay(true), ignored);
    socket_.set_option(asio::socket_base::keep_alive(true), ignored);
    // Peers that vanished without a word are noticed within a minute.
    for (const auto& [name, value] : {std::pair(TCP_KEEPIDLE, 30), {TCP_KEEPINTVL, 10}, {TCP_KEEPCNT, 3}}) {
      ::setsockopt(socket_.native_handle(), IPPROTO_TCP, name, &value, sizeof(value));
    }
    NextRequest();
  }

  // Too many of them: one sentence and the end.
  void Refuse(int status, const std::string& message) {
    keep_alive_ = false;
    exchange_ = std::make_shared<Exchange>(shared_from_this());
    SendNow(shared_->error_shape(status, message, ""));
  }

  // ---- the answer, on the connections' thread

  void SendNow(HttpResponse response) {
    if (response.status != 204) response.headers.emplace_back("Content-Length", std::to_string(response.body.size()));
    PutHead(response.status, response.type, response.headers);
    if (!is_head_) out_ += response.body;
    Complete();
  }

  void BeginStreamNow(const std::string& type) {
    chunked_ = version_ >= 11;
    if (!chunked_) keep_alive_ = false;
    std::vector<std::pair<std::string, std::string>> headers = {{"Cache-Control", "no-cache"},
                                                                {"X-Accel-Buffering", "no"}};
    if (chunked_) headers.emplace_back("Transfer-Encoding", "chunked");
    PutHead(200, type, headers);
    Flush();
  }

  void WriteNow(const std::string& data) {
    if (data.empty() || is_head_) return;
    if (chunked_) {
      out_ += fmt::format("{:x}\r\n", data.size());
      out_ += data;
      out_ += "\r\n";
    } else {
      out_ += data;
    }
    if (out_.size() > shared_->options.limits.unsent_bytes) return Gone();
    Flush();
  }

  void EndStreamNow() {
    if (chunked_ && !is_head_) out_ += "0\r\n\r\n";
    Complete();
  }

  void Gone() override {
    if (gone_) return;
    gone_ = true;
    const std::shared_ptr<Connection> self = shared_from_this();
    if (std::exchange(is_served_, false)) --shared_->num_served;
    if (exchange_) {
      exchange_->Leave();
      exchange_->Over();
      exchange_.reset();
    }
    timer_.cancel();
    later_.cancel();
    hold_.reset();
    error_code ignored;
    socket_.close(ignored);
  }

  void After(double seconds, std::function<void()> task) {
    later_.expires_after(std::chrono::milliseconds(static_cast<int64_t>(seconds * 1000)));
    later_.async_wait([self = shared_from_this(), task = std::move(task)](error_code error) {
      if (!error) task();
    });
  }

  bool saw_end() const { return saw_end_; }
  void CloseIfIdle() override {
    keep_alive_ = false;
    if (idle_) Gone();
  }

 private:
  // ---- deadlines

  void SetDeadline(double seconds, void (Connection::*then)()) {
    timer_.expires_after(std::chrono::milliseconds(static_cast<int64_t>(seconds * 1000)));
    timer_.async_wait([self = shared_from_this(), then, id = ++deadline_](error_code error) {
      if (!error && id == self->deadline_ && !self->gone_) (self.get()->*then)();
    });
  }
  void ClearDeadline() {
    ++deadline_;
    timer_.cancel();
  }
  void OnTooSlow() { Fail(408, "the request did not come within the time that it may take"); }

  // ---- the request

  void NextRequest() {
    if (gone_) return;
    exchange_.reset();
    version_ = 11;
    is_head_ = chunked_ = false;
    path_.clear();
    if (shared_->stopping) return Linger();
    if (buffer_.size() > 0) return ReadHeader();
    idle_ = true;
    SetDeadline(shared_->options.limits.idle_seconds, &Connection::Gone);
    if (!watching_) Watch();
  }

  // Reads while nothing is asked of the connection, or while its request is answered: the end of the client's bytes is
  // its leaving.
  void Watch() {
    if (buffer_.size() >= kReadAhead) return;
    watching_ = true;
    socket_.async_read_some(buffer_.prepare(4096), [self = shared_from_this()](error_code error, size_t size) {
      self->watching_ = false;
      if (self->gone_) return;
      if (error) return error == asio::error::eof && !self->lingering_ ? self->OnEnd() : self->Gone();
      self->buffer_.commit(size);
      if (!self->idle_) return self->Watch();
      self->idle_ = false;
      self->ReadHeader();
    });
  }

  void OnEnd() {
    saw_end_ = true;
    keep_alive_ = false;
    // Who only stopped sending still gets an answer that is about to come, but nothing is computed for it.
    if (exchange_ && !exchange_->promises_nothing()) return;
    if (!exchange_ && !idle_) return;  // the answer is on its way
    Gone();
  }

  void ReadHeader() {
    parser_.emplace();
    parser_->header_limit(static_cast<uint32_t>(shared_->options.limits.header_bytes));
    parser_->body_limit(shared_->options.limits.body_bytes);
    SetDeadline(shared_->options.limits.header_seconds, &Connection::OnTooSlow);
    http::async_read_header(socket_, buffer_, *parser_, [self = shared_from_this()](error_code error, size_t) {
      if (!self->gone_) self->OnHeader(error);
    });
  }

  void OnHeader(error_code error) {
    const auto& head = parser_->get();
    version_ = head.version() == 10 ? 10 : 11;
    path_ = std::string(head.target().substr(0, head.target().find('?')));
    if (error) return OnReadError(error);
    if (const std::string wrong = FramingFault(head, head.version()); !wrong.empty()) return Fail(400, wrong);
    const auto length = parser_->content_length();
    const HttpLimits& limits = shared_->options.limits;
    if (length && *length > limits.body_bytes) return OnReadError(http::error::body_limit);
    // Who does not say may send as many as anybody.
    hold_ = BodyHold::Take(shared_->body_bytes, parser_->chunked() ? limits.body_bytes : length.value_or(0),
                           limits.bodies_bytes);
    if (hold_ == nullptr) return Fail(503, "other requests hold the bytes that bodies may have; try again later");
    // Where a body ends that is coded otherwise nobody here knows: what follows it would be read as a request.
    const size_t codings = head.count(http::field::transfer_encoding);
    if (codings > 1 || (codings == 1 && !IsChunkedAlone(head[http::field::transfer_encoding])))
      return Fail(501, "of transfer codings this server knows \"chunked\" alone");
    const auto expect = head[http::field::expect];
    if (!expect.empty() && !boost::beast::iequals(expect, "100-continue"))
      return Fail(417, "no such expectation can be met");
    SetDeadline(limits.body_seconds, &Connection::OnTooSlow);
    if (expect.empty() || parser_->is_done() || version_ == 10) return ReadBody();
    static const std::string kContinue = "HTTP/1.1 100 Continue\r\n\r\n";
    asio::async_write(socket_, asio::buffer(kContinue), [self = shared_from_this()](error_code failed, size_t) {
      if (self->gone_) return;
      if (failed) return self->Gone();
      self->ReadBody();
    });
  }

  void ReadBody() {
    http::async_read(socket_, buffer_, *parser_, [self = shared_from_this()](error_code error, size_t) {
      if (self->gone_) return;
      if (error) return self->OnReadError(error);
      self->OnRequest();
    });
  }

  void OnReadError(error_code error) {
    const HttpLimits& limits = shared_->options.limits;
    if (error == http::error::body_limit)
      return Fail(413, fmt::format("the request's body is larger than {} bytes", limits.body_bytes));
    if (error == http::error::header_limit)
      return Fail(431, fmt::format("the request's header is larger than {} bytes", limits.header_bytes));
    if (error == http::error::buffer_overflow) return Fail(431, "a line between the body's chunks is too long");
    if (error == http::error::end_of_stream || error == http::error::partial_message ||
        error.category() != http::make_error_code(http::error::bad_method).category()) {
      return Gone();
    }
    Fail(400, fmt::format("this is no valid HTTP request: {}", error.message()));
  }

  // A request that cannot be read to its end; nor can what follows it.
  void Fail(int status, const std::string& message) {
    ClearDeadline();
    keep_alive_ = false;
    exchange_ = std::make_shared<Exchange>(shared_from_this());
    SendNow(shared_->error_shape(status, message, path_));
  }

  void OnRequest() {
    ClearDeadline();
    auto message = parser_->release();
    parser_.reset();
    keep_alive_ = message.keep_alive() && !shared_->stopping;
    is_head_ = message.method() == http::verb::head;
    HttpRequest request;
    request.method = std::string(message.method_string());
    if (const Status read = ReadTarget(std::string(message.target()), request); !read)
      return Fail(400, read.error().message);
    path_ = request.path;
    for (const auto& field : message) request.headers.emplace_back(field.name_string(), field.value());
    request.body = std::move(message.body());
    request.hold = std::move(hold_);
    exchange_ = std::make_shared<Exchange>(shared_from_this());
    if (!watching_) Watch();
    Handle(std::move(request));
  }

  void Handle(HttpRequest request) {
    if (shared_->queued.load() >= shared_->options.limits.queued_requests) {
      return SendNow(shared_->error_shape(503, "too many requests wait to be looked at", path_));
    }
    ++shared_->queued;
    asio::post(*shared_->workers, [shared = shared_, exchange = exchange_, request = std::move(request)]() mutable {
      --shared->queued;
      const std::string path = request.path;
      try {
        shared->handler(std::move(request), exchange);
      } catch (const std::exception&) {  // memory
        exchange->Send(shared->error_shape(500, "the server has no room left for this request", path));
      }
    });
  }

  // ---- writing

  void PutHead(int status, const std::string& type, const std::vector<std::pair<std::string, std::string>>& headers) {
    out_ += fmt::format("HTTP/1.1 {} {}\r\nServer: pith\r\nDate: {}\r\nContent-Type: {}\r\n", status, Reason(status),
                        DateNow(), type);
    for (const auto& [name, value] : headers) out_ += fmt::format("{}: {}\r\n", name, value);
    out_ += keep_alive_ && !shared_->stopping ? "Connection: keep-alive\r\n\r\n" : "Connection: close\r\n\r\n";
  }

  void Complete() {
    if (exchange_) exchange_->Over();
    exchange_.reset();
    later_.cancel();
    complete_ = true;
    Flush();
  }

  void Flush() {
    if (writing_ || gone_) return;
    if (out_.empty()) {
      if (complete_) AfterAnswer();
      return;
    }
    // What the socket takes at once, as nearly always, needs neither a deadline nor a way through the event loop: of a
    // stream's token that is most of the work.
    error_code error;
    sent_ = socket_.write_some(asio::buffer(out_), error);
    if (error && error != asio::error::would_block) return Gone();
    unsent_.swap(out_);
    out_.clear();
    if (sent_ < unsent_.size()) {
      writing_ = true;
      return WriteSome();
    }
    unsent_.clear();
    if (complete_) AfterAnswer();
  }

  void WriteSome() {
    SetDeadline(shared_->options.limits.write_seconds, &Connection::Gone);
    socket_.async_write_some(asio::buffer(unsent_.data() + sent_, unsent_.size() - sent_),
                             [self = shared_from_this()](error_code error, size_t size) {
                               if (self->gone_) return;
                               if (error) return self->Gone();
                               self->sent_ += size;
                               if (self->sent_ < self->unsent_.size()) return self->WriteSome();
                               self->ClearDeadline();
                               self->writing_ = false;
                               self->unsent_.clear();
                               self->Flush();
                             });
  }

  void AfterAnswer() {
    complete_ = false;
    if (keep_alive_ && !saw_end_ && !shared_->stopping) return NextRequest();
    Linger();
  }

  // Ends our side, then waits for the client to end its own.
  void Linger() {
    lingering_ = true;
    error_code ignored;
    socket_.shutdown(tcp::socket::shutdown_send, ignored);
    if (saw_end_) return Gone();
    SetDeadline(kLingerSeconds, &Connection::Gone);
    if (!watching_) Discard(0);
  }

  void Discard(size_t taken) {
    buffer_.clear();
    socket_.async_read_some(buffer_.prepare(16384), [self = shared_from_this(), taken](error_code error, size_t size) {
      if (self->gone_) return;
      if (error || taken > kLingerBytes) return self->Gone();
      self->Discard(taken + size);
    });
  }

  std::shared_ptr<Shared> shared_;
  uint64_t id_;
  tcp::socket socket_;
  asio::steady_timer timer_, later_;
  boost::beast::flat_buffer buffer_{shared_->options.limits.header_bytes + kBuffered};
  std::optional<http::request_parser<http::string_body>> parser_;
  std::shared_ptr<BodyHold> hold_;  // of the body that is read
  std::shared_ptr<Exchange> exchange_;
  std::string path_;
  std::string out_;     // not handed to the socket yet
  std::string unsent_;  // the socket has it, up to sent_
  size_t sent_ = 0;
  uint64_t deadline_ = 0;
  int version_ = 11;
  bool keep_alive_ = true, is_head_ = false, chunked_ = false;
  bool is_served_ = false, idle_ = false, watching_ = false, writing_ = false, complete_ = false;
  bool saw_end_ = false, lingering_ = false, gone_ = false;
};

template <typename Task>
void Exchange::InOrder(Task task) {
  auto run = [self = shared_from_this(), task = std::move(task)]() mutable {
    if (!self->over_) task(*self->connection_);
  };
  connection_->shared().Run(run);
}

void Exchange::Send(HttpResponse response) {
  InOrder(
      [response = std::move(response)](Connection& connection) mutable { connection.SendNow(std::move(response)); });
}
void Exchange::BeginStream(std::string type) {
  InOrder([type = std::move(type)](Connection& connection) { connection.BeginStreamNow(type); });
}
void Exchange::Write(std::string data) {
  InOrder([data = std::move(data)](Connection& connection) { connection.WriteNow(data); });
}
void Exchange::EndStream() {
  InOrder([](Connection& connection) { connection.EndStreamNow(); });
}
void Exchange::Abort() {
  InOrder([](Connection& connection) { connection.Gone(); });
}
void Exchange::Post(std::function<void()> task) {
  auto run = [self = shared_from_this(), task = std::move(task)] {
    if (!self->over_) task();
  };
  connection_->shared().Queue(run);
}
void Exchange::PostAfter(double seconds, std::function<void()> task) {
  InOrder([self = shared_from_this(), seconds, task = std::move(task)](Connection& connection) mutable {
    connection.After(seconds, [self, task = std::move(task)] {
      if (!self->over_) task();
    });
  });
}
void Exchange::OnLeave(std::function<void()> callback) {
  auto run = [self = shared_from_this(), callback]() mutable {
    if (self->left_ || self->over_) return callback();
    self->on_leave_.push_back(std::move(callback));
    if (self->connection_->saw_end()) self->connection_->Gone();
  };
  if (!connection_->shared().Run(run)) callback();
}
void Exchange::Leave() {
  left_ = true;
  for (const std::function<void()>& callback : std::exchange(on_leave_, {})) callback();
}

class Server final : public HttpServer {
 public:
  explicit Server(std::shared_ptr<Shared> shared)
      : shared_(std::move(shared)), work_(shared_->io.get_executor()), acceptor_(shared_->io), pause_(shared_->io) {}

  Status Listen() {
    const HttpServerOptions& options = shared_->options;
    error_code error;
    tcp::resolver resolver(shared_->io);
    const auto found = resolver.resolve(options.host, std::to_string(options.port), tcp::resolver::passive, error);
    if (error || found.empty())
      return InvalidArgument(fmt::format("{} is no address to listen at: {}", options.host, error.message()));
    const tcp::endpoint endpoint = *found.begin();
    acceptor_.open(endpoint.protocol(), error);
    if (!error) acceptor_.set_option(asio::socket_base::reuse_address(true), error);
    if (!error) acceptor_.bind(endpoint, error);
    if (!error) acceptor_.listen(asio::socket_base::max_listen_connections, error);
    if (error)
      return IoError(fmt::format("{}:{} cannot be listened at: {}", options.host, options.port, error.message()));
    port_ = acceptor_.local_endpoint(error).port();
    shared_->workers.emplace(static_cast<size_t>(options.num_workers));
    Accept();
    thread_ = std::thread([this] { shared_->io.run(); });
    return {};
  }

  ~Server() override { Stop(0); }
  int port() const override { return port_; }

  void Stop(double seconds) override {
    if (!thread_.joinable()) return;
    asio::post(shared_->io, [this] {
      shared_->stopping = true;
      error_code ignored;
      acceptor_.close(ignored);
      ForEach(&HttpConnection::CloseIfIdle);
    });
    const auto end = std::chrono::steady_clock::now() + std::chrono::duration<double>(seconds);
    while (std::chrono::steady_clock::now() < end && NumServed() > 0) {
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
    }
    // Those that are left hear that their client is gone, so that nothing runs on for them.
    asio::post(shared_->io, [this] { ForEach(&HttpConnection::Gone); });
    shared_->workers->join();
    work_.reset();
    thread_.join();
    shared_->End();
  }

 private:
  void ForEach(void (HttpConnection::*what)()) {
    const auto all = shared_->connections;
    for (const auto& [id, weak] : all) {
      if (const std::shared_ptr<HttpConnection> connection = weak.lock()) (connection.get()->*what)();
    }
  }

  // Asked on the connections' thread, which counts them.
  int NumServed() {
    const auto count = std::make_shared<std::promise<int>>();
    asio::post(shared_->io, [this, count] { count->set_value(shared_->num_served); });
    return count->get_future().get();
  }

  void Accept() {
    acceptor_.async_accept([this](error_code error, tcp::socket socket) {
      if (error == asio::error::operation_aborted || !acceptor_.is_open()) return;
      if (error) {  // no descriptors left: those that wait stay in the kernel's queue
        pause_.expires_after(std::chrono::milliseconds(100));
        pause_.async_wait([this](error_code stopped) {
          if (!stopped) Accept();
        });
        return;
      }
      const int most = shared_->options.limits.connections;
      if (shared_->connections.size() >= static_cast<size_t>(most) + kMostRefused) return Accept();  // closes it
      const bool full = shared_->num_served >= most;
      const auto connection = std::make_shared<Connection>(shared_, std::move(socket));
      shared_->connections.emplace(connection->id(), connection);
      full ? connection->Refuse(503, "the server has as many connections as it takes") : connection->Start();
      Accept();
    });
  }

  std::shared_ptr<Shared> shared_;
  asio::executor_work_guard<asio::io_context::executor_type> work_;  // until Stop()
  tcp::acceptor acceptor_;
  asio::steady_timer pause_;
  std::thread thread_;
  int port_ = 0;
};

}  // namespace

Result<std::unique_ptr<HttpServer>> HttpServer::Create(const HttpServerOptions& options, HttpHandler handler,
                                                       HttpErrorShape error_shape) {
  auto shared = std::make_shared<Shared>();
  shared->options = options;
  shared->handler = std::move(handler);
  shared->error_shape = std::move(error_shape);
  auto server = std::make_unique<Server>(std::move(shared));
  PITH_RETURN_IF_ERROR(server->Listen());
  return std::unique_ptr<HttpServer>(std::move(server));
}

}  // namespace pith::server
