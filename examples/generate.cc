// Streams a reply inside a KV budget of 16 MiB:  generate MODEL.gguf PROMPT...
#include <pith/pith.h>

#include <cstdio>
#include <string>

int main(int argc, char** argv) {
  if (argc < 3) {
    std::fprintf(stderr, "usage: %s MODEL.gguf PROMPT\n", argv[0]);
    return 2;
  }
  pith::SessionOptions options;
  options.kv_budget_bytes = size_t{16} << 20;
  options.recipe = "snapkv";
  options.num_ctx = 4096;
  auto session = pith::Session::Open(argv[1], options);
  if (!session) {
    std::fprintf(stderr, "%s\n", session.error().message.c_str());
    return 1;
  }
  auto reply = session->Generate(argv[2], {.max_tokens = 32, .temperature = 0, .chat = true}, [](std::string_view text) {
    std::fwrite(text.data(), 1, text.size(), stdout);
    return std::fflush(stdout) == 0;
  });
  if (!reply) {
    std::fprintf(stderr, "%s\n", reply.error().message.c_str());
    return 1;
  }
  std::printf("\n[%d tokens, KV peak %zu of %zu bytes]\n", reply->tokens, session->stats().kv_peak_bytes,
              session->stats().kv_budget_bytes);
  return reply->tokens > 0 ? 0 : 1;
}
