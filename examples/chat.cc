// A conversation from standard input, a message a line, that goes on where it ended:  chat MODEL.gguf [SESSION]
#include <cstdio>
#include <iostream>
#include <pith/pith.hpp>
#include <string>

int main(int argc, char** argv) {
  if (argc < 2) {
    std::fprintf(stderr, "usage: %s MODEL.gguf [SESSION] < MESSAGES\n", argv[0]);
    return 2;
  }
  const auto complain = [](const pith::Error& error) {
    std::fprintf(stderr, "%s\n", error.message.c_str());
    return 1;
  };
  const auto model = pith::Model::Load(argv[1]);
  if (!model) return complain(model.error());
  const auto engine = pith::Engine::Create(*model, {.budget_bytes = 32 << 20, .num_ctx = 8192, .recipe = "pith"});
  if (!engine) return complain(engine.error());
  auto talk = pith::Conversation::Create(*engine, {.system = "You answer in one short sentence."});
  if (!talk) return complain(talk.error());
  const std::string session = argc > 2 ? argv[2] : "";
  if (!session.empty()) {
    const pith::Status restored = talk->Restore(session);
    if (!restored && restored.error().code != pith::ErrorCode::kNotFound) return complain(restored.error());
  }

  for (std::string message; std::getline(std::cin, message);) {
    if (message.empty()) continue;
    const auto reply = talk->Say(message, {.max_tokens = 200}, [](std::string_view text) {
      std::cout << text << std::flush;
      return true;
    });
    if (!reply) return complain(reply.error());
    std::cout << std::endl;
    // The text is there also where it did not come to its end.
    if (!reply->ended()) std::fprintf(stderr, "[%s]\n", pith::StopReasonName(reply->stop));
  }
  if (!session.empty()) {
    if (const pith::Status saved = talk->Save(session); !saved) return complain(saved.error());
  }
  std::fprintf(stderr, "[%d tokens, %.0f%% of the entries kept]\n", talk->num_tokens(),
               100 * talk->stats().kept_fraction);
  return 0;
}
