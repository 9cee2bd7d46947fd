// Policies from outside of pith: VATP (arXiv:2406.12335), attention times the length of the value, and stages that go
// with it.  policy MODEL.gguf
#include <cmath>
#include <cstdio>
#include <pith/pith.hpp>

namespace {

class Vatp final : public pith::Scorer {
 public:
  bool Score(const pith::LayerInput& layer, float* const* scores) const override {
    for (int h = 0; h < layer.num_heads; ++h) {
      const pith::HeadInput& head = *layer.heads[h];
      // Attention of the window's queries, as the recipe's agg= makes it one number. The window's own entries stay.
      const int scored = pith_window_attention(&layer, h, /*pool=*/1, scores[h]);
      for (int i = 0; i < scored; ++i) {
        float length = 0;
        for (int d = 0; d < layer.value_dim; ++d) length += std::abs(head.values[i * layer.value_dim + d]);
        scores[h][i] *= length;
      }
    }
    return true;
  }
};

// The newest and the oldest entries weigh more the larger `share` is.
class Ends final : public pith::Modifier {
 public:
  bool Modify(const pith::LayerInput& layer, float* const* scores) const override {
    for (int h = 0; h < layer.num_heads; ++h) {
      const int n = layer.heads[h]->num_entries;
      for (int i = 0; i < n; ++i) {
        const double from_middle = std::abs(2.0 * i / n - 1);
        scores[h][i] *= static_cast<float>(1 + layer.params[0] * from_middle);
      }
    }
    return true;
  }
};

// The first layers keep twice as much as the last ones.
class Falling final : public pith::Allocator {
 public:
  bool Allocate(const pith::Division& division, int32_t* const* keep) const override {
    const int last = division.num_layers - 1;
    for (int l = 0; l <= last; ++l) {
      const double share = last == 0 ? 1 : (4.0 - 2.0 * l / last) / 3;
      for (int h = 0; h < division.layers[l]->num_heads; ++h) keep[l][h] = static_cast<int>(share * division.keep);
    }
    return true;
  }
};

int Complain(const pith::Error& error) {
  std::fprintf(stderr, "%s\n", error.message.c_str());
  return 1;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) {
    std::fprintf(stderr, "usage: %s MODEL.gguf\n", argv[0]);
    return 2;
  }
  const pith::Status registered =
      pith::RegisterScorer("vatp", std::make_shared<Vatp>(),
                           {.summary = "attention of the last queries times the length of the value",
                            .paper = "arXiv:2406.12335",
                            .needs = PITH_NEED_WINDOW_PROBS | PITH_NEED_VALUES,
                            .window = 32,
                            .aggregates = true});
  if (!registered) return Complain(registered.error());
  const pith::Status ends =
      pith::RegisterModifier("ends", std::make_shared<Ends>(),
                             {.needs = 0, .params = {{.name = "share", .initial = 0.5, .min = 0, .max = 4}}});
  if (!ends) return Complain(ends.error());
  const pith::Status falling = pith::RegisterAllocator("falling", std::make_shared<Falling>(), {.across_layers = true});
  if (!falling) return Complain(falling.error());

  const auto model = pith::Model::Load(argv[1]);
  if (!model) return Complain(model.error());
  const auto engine = pith::Engine::Create(*model, {.budget_bytes = 24 << 20, .num_ctx = 1024, .max_sequences = 2});
  if (!engine) return Complain(engine.error());
  std::string text = "The river rises in the hills, where it is small and cold.";
  for (int i = 0; i < 4; ++i) text += " " + text.substr(0, 300);
  // Its name works wherever a built-in one does.
  for (const char* recipe : {"score=vatp", "score=vatp:window=16 agg=max alloc=ada",
                             "score=vatp mod=ends:share=1 mod=criticalkv alloc=falling"}) {
    auto talk = pith::Conversation::Create(*engine, {.sequence = {.recipe = recipe, .compress_after = true}});
    if (!talk) return Complain(talk.error());
    if (const pith::Status read = talk->Read(text); !read) return Complain(read.error());
    const auto kept = talk->Compress(0.3);
    if (!kept) return Complain(kept.error());
    const auto more = talk->Complete(" It is", {.max_tokens = 16, .sampling = {.temperature = 0}});
    if (!more) return Complain(more.error());
    std::printf("%s: %.0f%% kept, It is%s\n", recipe, 100 * *kept, more->text.c_str());
    if (*kept > 0.4 || more->tokens.empty()) return 1;
  }
  return 0;
}
