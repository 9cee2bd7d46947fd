// narrow_model IN.gguf|default OUT.gguf [SEED [KEY=NUMBER...]]: a llama model of IN's layers, heads, tokenizer and
// template, and with that metadata, with random weights of IN's types between them that are a tenth as wide. "default":
// the default model.
//
// Everything that a cache sees is as in IN, and most of the arithmetic is gone: what sanitized tests run on.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/paths.h"
#include "ggml.h"
#include "gguf.h"

namespace {

constexpr int64_t kWidth = 64, kFeedForward = 96;

struct Deleter {
  void operator()(ggml_context* context) const { ggml_free(context); }
  void operator()(gguf_context* context) const { gguf_free(context); }
};
using Ggml = std::unique_ptr<ggml_context, Deleter>;
using Gguf = std::unique_ptr<gguf_context, Deleter>;

uint32_t Number(const gguf_context* gguf, const char* key) {
  const int64_t id = gguf_find_key(gguf, key);
  return id < 0 || gguf_get_kv_type(gguf, id) != GGUF_TYPE_UINT32 ? 0 : gguf_get_val_u32(gguf, id);
}

struct Widths {
  int64_t embd, ff;
  int64_t Narrow(int64_t size) const { return size == embd ? kWidth : size == ff ? kFeedForward : size; }
};

// Heads keep their width: it is that of the cache's rows.
ggml_tensor* Random(ggml_context* ggml, const ggml_tensor* like, const Widths& widths, std::mt19937* random) {
  const std::string_view name = like->name;
  const bool is_query = name.ends_with("attn_q.weight"), is_output = name.ends_with("attn_output.weight");
  const int64_t columns = is_output ? like->ne[0] : widths.Narrow(like->ne[0]);
  const int64_t rows = is_query ? like->ne[1] : widths.Narrow(like->ne[1]);
  ggml_tensor* tensor = ggml_new_tensor_2d(ggml, like->type, columns, rows);
  ggml_set_name(tensor, like->name);
  std::vector<float> values(static_cast<size_t>(columns * rows), 1.0f);
  if (ggml_n_dims(like) > 1) {
    const bool is_embedding = name == "token_embd.weight";
    std::normal_distribution<float> normal(0.0f, is_embedding ? 0.4f : 1.0f / std::sqrt(static_cast<float>(columns)));
    for (float& value : values) value = normal(*random);
  }
  if (like->type == GGML_TYPE_F32) {
    std::copy(values.begin(), values.end(), static_cast<float*>(tensor->data));
  } else {
    ggml_quantize_chunk(like->type, values.data(), tensor->data, 0, rows, columns, nullptr);
  }
  return tensor;
}

using Numbers = std::vector<std::pair<std::string, uint32_t>>;

bool Narrow(const std::string& from, const std::string& to, uint32_t seed, const Numbers& more) {
  ggml_context* tensors = nullptr;
  const Gguf in(gguf_init_from_file(from.c_str(), {.no_alloc = true, .ctx = &tensors}));
  const Ggml owner(tensors);
  if (in == nullptr) return false;
  const Widths widths{Number(in.get(), "llama.embedding_length"), Number(in.get(), "llama.feed_forward_length")};
  const uint32_t heads = Number(in.get(), "llama.attention.head_count");
  if (widths.embd == 0 || widths.ff == 0 || heads == 0) return false;
  const Gguf out(gguf_init_empty());
  gguf_set_kv(out.get(), in.get());
  gguf_set_val_u32(out.get(), "llama.embedding_length", kWidth);
  gguf_set_val_u32(out.get(), "llama.feed_forward_length", kFeedForward);
  for (const char* key : {"llama.attention.key_length", "llama.attention.value_length", "llama.rope.dimension_count"}) {
    gguf_set_val_u32(out.get(), key, static_cast<uint32_t>(widths.embd) / heads);
  }
  for (const auto& [key, number] : more) gguf_set_val_u32(out.get(), key.c_str(), number);
  std::mt19937 random(seed);
  const Ggml ggml(ggml_init({.mem_size = size_t{256} << 20, .mem_buffer = nullptr, .no_alloc = false}));
  for (int64_t i = 0; i < gguf_get_n_tensors(in.get()); ++i) {
    const ggml_tensor* like = ggml_get_tensor(tensors, gguf_get_tensor_name(in.get(), i));
    gguf_add_tensor(out.get(), Random(ggml.get(), like, widths, &random));
  }
  return gguf_write_to_file(out.get(), to.c_str(), false);
}

}  // namespace

int main(int argc, char** argv) {
  Numbers more;  // of metadata: tokens for what IN's tokenizer does not name
  for (int i = 4; i < argc; ++i) {
    const std::string_view word = argv[i];
    const size_t equals = std::min(word.find('='), word.size());
    more.emplace_back(word.substr(0, equals), std::strtoul(argv[i] + std::min(equals + 1, word.size()), nullptr, 10));
  }
  if (argc < 3) {
    std::fprintf(stderr, "usage: narrow_model IN.gguf|default OUT.gguf [SEED [KEY=NUMBER...]]\n");
    return 2;
  }
  const std::string from = argv[1] == std::string_view("default") ? pith::DefaultModelPath() : argv[1];
  const auto seed = static_cast<uint32_t>(argc > 3 ? std::strtoul(argv[3], nullptr, 10) : 1);
  if (Narrow(from, argv[2], seed, more)) return 0;
  std::fprintf(stderr, "narrow_model: cannot make %s of %s, which must be a llama model\n", argv[2], from.c_str());
  return 1;
}
