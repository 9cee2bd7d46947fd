// Any body of any route ends in one answer, which is never the server's own failure, in the shape of its path.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>

#include <nlohmann/json.hpp>

#include "server/server_test_util.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  constexpr const char* kPaths[] = {"/v1/chat/completions",
                                    "/v1/completions",
                                    "/v1/responses",
                                    "/v1/messages",
                                    "/v1/messages/count_tokens",
                                    "/api/generate",
                                    "/api/chat",
                                    "/api/show",
                                    "/completion",
                                    "/tokenize",
                                    "/detokenize",
                                    "/apply-template",
                                    "/slots/1?action=save",
                                    "/slots/1?action=restore",
                                    "/v1/embeddings",
                                    "/api/embed",
                                    "/embedding",
                                    "/infill",
                                    "/api/embeddings"};
  if (size == 0) return 0;
  static pith::testing::FakeServer server;
  server.context.model.fim = {.prefix = pith::testing::kBegin, .suffix = 257, .middle = pith::testing::kEnd};
  server.scheduler->requests.clear();
  server.scheduler->cancelled.clear();
  server.scheduler->files.clear();
  const std::string body(reinterpret_cast<const char*>(data + 1), size - 1);
  server.scheduler->text = body.substr(0, 64);  // what a model writes is anybody's guess, too
  const auto exchange = server.Handle("POST", kPaths[data[0] % std::size(kPaths)], body);
  if (exchange->num_answers != 1 || !exchange->over()) std::abort();
  if (exchange->status >= 500 && exchange->status != 501) std::abort();
  if (exchange->stream_type.empty() && !nlohmann::json::accept(exchange->body)) std::abort();
  return 0;
}
