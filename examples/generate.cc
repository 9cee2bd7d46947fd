// Streams a reply inside a KV budget of 16 MiB:  generate MODEL.gguf PROMPT
#include <cstdio>
#include <pith/pith.hpp>

int main(int argc, char** argv) {
  if (argc < 3) {
    std::fprintf(stderr, "usage: %s MODEL.gguf PROMPT\n", argv[0]);
    return 2;
  }
  const auto complain = [](const pith::Error& error) {
    std::fprintf(stderr, "%s\n", error.message.c_str());
    return 1;
  };
  const auto model = pith::Model::Load(argv[1]);
  if (!model) return complain(model.error());
  const auto engine = pith::Engine::Create(*model, {.budget_bytes = 16 << 20, .num_ctx = 4096, .recipe = "snapkv"});
  if (!engine) return complain(engine.error());
  auto conversation = pith::Conversation::Create(*engine);
  if (!conversation) return complain(conversation.error());

  const auto reply =
      conversation->Say(argv[2], {.max_tokens = 32, .sampling = {.temperature = 0}}, [](std::string_view text) {
        std::fwrite(text.data(), 1, text.size(), stdout);
        return std::fflush(stdout) == 0;
      });
  if (!reply) return complain(reply.error());
  const pith_engine_stats stats = engine->stats();
  std::printf("\n[%zu tokens, KV peak %zu of %zu bytes]\n", reply->tokens.size(), size_t{stats.peak_bytes},
              size_t{stats.budget_bytes});
  return reply->tokens.empty() ? 1 : 0;
}
