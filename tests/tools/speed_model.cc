// speed_model SHAPE TYPE OUT.gguf [TOKENIZER.gguf]: a model of a well-known shape with random weights.
//
// It says nothing, at the speed of the real one: layers, widths, heads, vocabulary and the types of the tensors are
// those of the published files (llama-quantize keeps the token embedding, which is the output too where none is
// written, in Q6_K for Q4_0). The tokenizer is that of TOKENIZER.gguf (default: $PITH_DEFAULT_MODEL), filled up with
// unused tokens. Weights are written as they are made, so that memory does not limit the size.
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "ggml.h"
#include "gguf.h"

namespace {

struct Shape {
  const char* name;
  const char* architecture;
  uint32_t layers, embd, heads, kv_heads, head_dim, ff, vocab, ctx;
  float rope_base;
  bool tied;         // the embedding is the output too
  bool norms_heads;  // of queries and keys
};

constexpr Shape kShapes[] = {
    {"Llama-3.2-1B", "llama", 16, 2048, 32, 8, 64, 8192, 128256, 131072, 500000.0f, true, false},
    {"Llama-3.1-8B", "llama", 32, 4096, 32, 8, 128, 14336, 128256, 131072, 500000.0f, false, false},
    {"Qwen3-0.6B", "qwen3", 28, 1024, 16, 8, 128, 3072, 151936, 40960, 1000000.0f, true, true},
    {"SmolLM2-135M", "llama", 30, 576, 9, 3, 64, 1536, 49152, 8192, 100000.0f, true, false},
    {"SmolLM2-1.7B", "llama", 24, 2048, 32, 32, 64, 8192, 49152, 8192, 130000.0f, true, false},
};

struct Types {
  const char* name;
  ggml_type weights;
  ggml_type output;  // and a tied embedding
};
constexpr Types kTypes[] = {{"Q4_0", GGML_TYPE_Q4_0, GGML_TYPE_Q6_K},
                            {"Q8_0", GGML_TYPE_Q8_0, GGML_TYPE_Q8_0},
                            {"BF16", GGML_TYPE_BF16, GGML_TYPE_BF16}};

struct Deleter {
  void operator()(ggml_context* context) const { ggml_free(context); }
  void operator()(gguf_context* context) const { gguf_free(context); }
  void operator()(std::FILE* file) const { std::fclose(file); }
};
template <typename T>
using Owned = std::unique_ptr<T, Deleter>;

[[noreturn]] void Die(const std::string& message) {
  std::fprintf(stderr, "speed_model: %s\n", message.c_str());
  std::exit(1);
}

// The names that are known, for messages.
template <typename List>
std::string NamesOf(const List& list) {
  std::string names;
  for (const auto& item : list) names += std::string(names.empty() ? "" : ", ") + item.name;
  return names;
}

bool SameName(std::string_view a, std::string_view b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), [](char x, char y) { return (x | 32) == (y | 32); });
}

void CopyTokenizer(gguf_context* to, const std::string& path, uint32_t vocab) {
  const Owned<gguf_context> from(gguf_init_from_file(path.c_str(), {.no_alloc = true, .ctx = nullptr}));
  if (from == nullptr) Die(path + " is no GGUF file to take a tokenizer from");
  gguf_set_kv(to, from.get());
  const int64_t tokens = gguf_find_key(from.get(), "tokenizer.ggml.tokens"),
                kinds = gguf_find_key(from.get(), "tokenizer.ggml.token_type");
  if (tokens < 0 || kinds < 0) Die(path + " has no tokenizer");
  std::vector<std::string> texts;
  const auto* old_kinds = static_cast<const int32_t*>(gguf_get_arr_data(from.get(), kinds));
  std::vector<int32_t> new_kinds(vocab, 5);  // unused
  const size_t known = std::min<size_t>(gguf_get_arr_n(from.get(), tokens), vocab);
  for (uint32_t i = 0; i < vocab; ++i) {
    texts.push_back(i < known ? gguf_get_arr_str(from.get(), tokens, i) : "<unused_" + std::to_string(i) + ">");
    if (i < known) new_kinds[i] = old_kinds[i];
  }
  std::vector<const char*> pointers;
  for (const std::string& text : texts) pointers.push_back(text.c_str());
  gguf_set_arr_str(to, "tokenizer.ggml.tokens", pointers.data(), pointers.size());
  gguf_set_arr_data(to, "tokenizer.ggml.token_type", GGUF_TYPE_INT32, new_kinds.data(), new_kinds.size());
}

void SetMetadata(gguf_context* gguf, const Shape& shape, const Types& types) {
  // What the tokenizer's own model was must not stay.
  for (const char* key : {"general.name", "general.basename", "general.size_label", "general.file_type"})
    gguf_remove_key(gguf, key);
  const std::string prefix = std::string(shape.architecture) + ".";
  const auto set = [&](const char* key, uint32_t value) { gguf_set_val_u32(gguf, (prefix + key).c_str(), value); };
  gguf_set_val_str(gguf, "general.architecture", shape.architecture);
  gguf_set_val_str(gguf, "general.name", (std::string(shape.name) + " shape, random " + types.name).c_str());
  set("block_count", shape.layers);
  set("context_length", shape.ctx);
  set("embedding_length", shape.embd);
  set("feed_forward_length", shape.ff);
  set("attention.head_count", shape.heads);
  set("attention.head_count_kv", shape.kv_heads);
  set("attention.key_length", shape.head_dim);
  set("attention.value_length", shape.head_dim);
  set("rope.dimension_count", shape.head_dim);
  set("vocab_size", shape.vocab);
  gguf_set_val_f32(gguf, (prefix + "rope.freq_base").c_str(), shape.rope_base);
  gguf_set_val_f32(gguf, (prefix + "attention.layer_norm_rms_epsilon").c_str(), 1e-5f);
}

class Tensors {
 public:
  Tensors(ggml_context* ggml, gguf_context* gguf, const Shape& shape, const Types& types) : ggml_(ggml), gguf_(gguf) {
    const int64_t embd = shape.embd, query = shape.heads * shape.head_dim, kv = shape.kv_heads * shape.head_dim,
                  ff = shape.ff;
    Matrix("token_embd.weight", shape.tied ? types.output : types.weights, embd, shape.vocab);
    Norm("output_norm.weight", embd);
    if (!shape.tied) Matrix("output.weight", types.output, embd, shape.vocab);
    for (uint32_t layer = 0; layer < shape.layers; ++layer) {
      const std::string at = "blk." + std::to_string(layer) + ".";
      Norm(at + "attn_norm.weight", embd);
      Matrix(at + "attn_q.weight", types.weights, embd, query);
      Matrix(at + "attn_k.weight", types.weights, embd, kv);
      Matrix(at + "attn_v.weight", types.weights, embd, kv);
      Matrix(at + "attn_output.weight", types.weights, query, embd);
      if (shape.norms_heads) {
        Norm(at + "attn_q_norm.weight", shape.head_dim);
        Norm(at + "attn_k_norm.weight", shape.head_dim);
      }
      Norm(at + "ffn_norm.weight", embd);
      Matrix(at + "ffn_gate.weight", types.weights, embd, ff);
      Matrix(at + "ffn_up.weight", types.weights, embd, ff);
      Matrix(at + "ffn_down.weight", types.weights, ff, embd);
    }
  }

  const std::vector<ggml_tensor*>& all() const { return all_; }

 private:
  void Add(ggml_tensor* tensor, const std::string& name) {
    ggml_set_name(tensor, name.c_str());
    gguf_add_tensor(gguf_, tensor);
    all_.push_back(tensor);
  }
  void Matrix(const std::string& name, ggml_type type, int64_t columns, int64_t rows) {
    // As llama-quantize does where blocks of 256 do not divide the width.
    Add(ggml_new_tensor_2d(ggml_, columns % ggml_blck_size(type) == 0 ? type : GGML_TYPE_Q8_0, columns, rows), name);
  }
  void Norm(const std::string& name, int64_t width) { Add(ggml_new_tensor_1d(ggml_, GGML_TYPE_F32, width), name); }

  ggml_context* ggml_;
  gguf_context* gguf_;
  std::vector<ggml_tensor*> all_;
};

// Rows of a matrix, quantised once for each type and width; tensors start at different ones.
class Weights {
 public:
  const std::vector<uint8_t>& Rows(ggml_type type, int64_t width) {
    std::vector<uint8_t>& rows = rows_[{type, width}];
    if (!rows.empty()) return rows;
    std::normal_distribution<float> normal(0.0f, 1.0f / std::sqrt(static_cast<float>(width)));
    std::vector<float> values(static_cast<size_t>(kRows * width));
    for (float& value : values) value = normal(random_);
    rows.resize(static_cast<size_t>(kRows) * ggml_row_size(type, width));
    ggml_quantize_chunk(type, values.data(), rows.data(), 0, kRows, width, nullptr);
    return rows;
  }

 private:
  static constexpr int64_t kRows = 256;
  std::map<std::pair<ggml_type, int64_t>, std::vector<uint8_t>> rows_;
  std::mt19937 random_{1};
};

void WriteBytes(std::FILE* file, const void* data, size_t bytes) {
  if (bytes > 0 && std::fwrite(data, 1, bytes, file) != bytes) Die("the file cannot be written; is the disk full?");
}

void WriteTensor(std::FILE* file, const ggml_tensor* tensor, Weights& weights, size_t alignment) {
  const size_t bytes = ggml_nbytes(tensor);
  if (tensor->ne[1] == 1) {
    const std::vector<float> ones(static_cast<size_t>(tensor->ne[0]), 1.0f);
    WriteBytes(file, ones.data(), bytes);
  } else {
    const std::vector<uint8_t>& rows = weights.Rows(tensor->type, tensor->ne[0]);
    for (size_t at = 0; at < bytes; at += rows.size()) WriteBytes(file, rows.data(), std::min(rows.size(), bytes - at));
  }
  const std::vector<uint8_t> padding((alignment - bytes % alignment) % alignment, 0);
  WriteBytes(file, padding.data(), padding.size());
}

template <typename List>
const auto& Choose(const List& list, const char* name, const char* what) {
  for (const auto& item : list) {
    if (SameName(item.name, name)) return item;
  }
  Die(std::string("no ") + what + " " + name + "; choose one of " + NamesOf(list));
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 4 && argc != 5) {
    std::fprintf(stderr, "usage: speed_model SHAPE TYPE OUT.gguf [TOKENIZER.gguf]\nshapes: %s\ntypes: %s\n",
                 NamesOf(kShapes).c_str(), NamesOf(kTypes).c_str());
    return 2;
  }
  const Shape& shape = Choose(kShapes, argv[1], "shape");
  const Types& types = Choose(kTypes, argv[2], "type");
  const std::string path = argv[3];
  const char* usual = std::getenv("PITH_DEFAULT_MODEL");
  if (argc == 4 && usual == nullptr) Die("name a GGUF file whose tokenizer to take, or set PITH_DEFAULT_MODEL");
  const Owned<gguf_context> gguf(gguf_init_empty());
  CopyTokenizer(gguf.get(), argc == 5 ? argv[4] : usual, shape.vocab);
  SetMetadata(gguf.get(), shape, types);
  const Owned<ggml_context> ggml(
      ggml_init({.mem_size = ggml_tensor_overhead() * 1024, .mem_buffer = nullptr, .no_alloc = true}));
  const Tensors tensors(ggml.get(), gguf.get(), shape, types);

  const Owned<std::FILE> file(std::fopen(path.c_str(), "wb"));
  if (file == nullptr) Die(path + " cannot be written");
  std::vector<uint8_t> header(gguf_get_meta_size(gguf.get()));
  gguf_get_meta_data(gguf.get(), header.data());
  WriteBytes(file.get(), header.data(), header.size());
  Weights weights;
  size_t done = 0, total = 0;
  const bool progress = isatty(STDERR_FILENO) != 0;
  for (const ggml_tensor* tensor : tensors.all()) total += ggml_nbytes(tensor);
  for (const ggml_tensor* tensor : tensors.all()) {
    WriteTensor(file.get(), tensor, weights, gguf_get_alignment(gguf.get()));
    done += ggml_nbytes(tensor);
    if (progress) std::fprintf(stderr, "\r%s %s: %zu of %zu MiB", shape.name, types.name, done >> 20, total >> 20);
  }
  if (progress) std::fprintf(stderr, "\n");
  if (std::fflush(file.get()) != 0) Die("the file cannot be written; is the disk full?");
  return 0;
}
