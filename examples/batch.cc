// Eight sequences, each with a recipe of its own, in one engine under one budget:  batch MODEL.gguf
//
// Each sequence is sure of 4 MiB, and may borrow up to 16 while nobody else claims them. Each step takes rows of all of
// them: a piece of the prompt of those that still read, a token of those that write.
#include <algorithm>
#include <cstdio>
#include <pith/pith.hpp>
#include <string>
#include <vector>

namespace {

struct Request {
  std::string recipe;
  pith::Sequence sequence;
  pith::Generator generator;
  pith::Tokens rows;   // to be read next; empty: done
  size_t in_step = 0;  // of them in this step
};

int Complain(const pith::Error& error) {
  std::fprintf(stderr, "%s\n", error.message.c_str());
  return 1;
}

pith::Result<Request> Start(const pith::Engine& engine, const std::string& recipe, const std::string& prompt) {
  const pith::Model& model = engine.model();
  PITH_ASSIGN_OR_RETURN(
      pith::Sequence sequence,
      pith::Sequence::Create(engine, {.recipe = recipe, .floor_bytes = 4 << 20, .ceiling_bytes = 16 << 20}));
  PITH_ASSIGN_OR_RETURN(pith::Generator generator,
                        pith::Generator::Create(model, {.max_tokens = 12, .sampling = {.temperature = 0}}));
  PITH_ASSIGN_OR_RETURN(pith::Tokens rows, model.Tokenize(prompt));
  return Request{recipe, std::move(sequence), std::move(generator), std::move(rows)};
}

// What the engine has read of a request in a step is taken away; after its last row it says what comes next.
pith::Status Advance(Request& request) {
  request.rows.erase(request.rows.begin(), request.rows.begin() + static_cast<std::ptrdiff_t>(request.in_step));
  if (!request.rows.empty()) return {};
  PITH_ASSIGN_OR_RETURN(const pith::Generator::Next next, request.generator.Take(request.sequence.logits()));
  if (!request.generator.done()) request.rows = {next.token};
  return {};
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) {
    std::fprintf(stderr, "usage: %s MODEL.gguf\n", argv[0]);
    return 2;
  }
  const std::vector<std::string> recipes = {"full", "snapkv",       "keydiff",          "h2o",
                                            "tova", "streamingllm", "snapkv format=q8", "score=knorm alloc=ada"};
  const auto model = pith::Model::Load(argv[1]);
  if (!model) return Complain(model.error());
  auto engine = pith::Engine::Create(
      *model, {.budget_bytes = 96 << 20, .num_ctx = 512, .max_sequences = static_cast<int>(recipes.size())});
  if (!engine) return Complain(engine.error());
  std::vector<Request> requests;
  for (size_t i = 0; i < recipes.size(); ++i) {
    auto request = Start(*engine, recipes[i], "Reason number " + std::to_string(i + 1) + " to learn a language is");
    if (!request) return Complain(request.error());
    requests.push_back(std::move(*request));
  }

  for (;;) {
    std::vector<pith::StepItem> items;
    std::vector<Request*> of;
    auto room = static_cast<size_t>(engine->block_tokens());
    for (Request& request : requests) {
      request.in_step = std::min(request.rows.size(), room);
      room -= request.in_step;
      if (request.in_step == 0) continue;
      items.push_back({.sequence = &request.sequence, .tokens = std::span(request.rows).first(request.in_step)});
      of.push_back(&request);
    }
    if (items.empty()) break;
    const std::vector<pith::Status> statuses = engine->Step(items);
    for (size_t i = 0; i < items.size(); ++i) {
      pith::Status status = statuses[i];
      if (status) status = Advance(*of[i]);
      if (status) continue;
      std::fprintf(stderr, "%s: %s\n", of[i]->recipe.c_str(), status.error().message.c_str());
      of[i]->rows.clear();  // the others go on
    }
  }

  bool all = true;
  for (const Request& request : requests) {
    const pith::Generation generation = request.generator.generation();
    std::printf("%-22s %s\n", request.recipe.c_str(), generation.text.c_str());
    all = all && !generation.tokens.empty();
  }
  return all ? 0 : 1;
}
