// libllama as the host: weights, graph, tokenizer and chat template; samplers are in sampler.h.
//
// This folder is the only one that includes llama.h or ggml.h.
#ifndef PITH_HOST_MODEL_H_
#define PITH_HOST_MODEL_H_

#include <algorithm>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "host/overrides.h"
#include "kernels/rotation.h"
#include "pith/types.h"

struct llama_adapter_lora;
struct llama_model;

namespace pith {

enum class LayerKind : uint8_t {
  kNone,    // no KV cache (recurrent or feed-forward only)
  kGlobal,  // sees everything: recipes act here
  kWindow,  // sees the last window tokens
  kChunk,   // sees its own chunk of window tokens
};

struct LayerShape {
  LayerKind kind = LayerKind::kNone;
  int num_heads = 0;
  int num_kv_heads = 0;
  int key_dim = 0;
  int value_dim = 0;
  bool shared = false;        // several layers of the graph read this cache
  bool value_in_key = false;  // values are the front part of the keys (MLA): libllama holds no value cache
  std::optional<Rotation> rotation =
      std::nullopt;             // of queries by their position; none: in a form that cannot be undone
  bool bypasses_block = false;  // rows come to us before libllama stores them: its block buffer stays untouched
};

// What a file is loaded for.
enum class ModelUse : uint8_t {
  kText,        // to read and write text, by engines
  kEmbeddings,  // alone (host/embedding_context.h): a model without a KV cache, such as an encoder
  kVocabulary,  // tokens and chat template alone: weights stay unread, the file may have none
};

// Of the hidden states of a text's tokens, one that stands for the text.
enum class EmbeddingPooling : uint8_t { kNone, kMean, kFirst, kLast };

struct ModelInfo {
  ModelUse use = ModelUse::kText;
  std::string path;
  std::vector<std::string> part_paths;  // of a split model all parts, else the path
  std::string architecture;
  std::string description;  // "llama 135M Q4_1"
  int num_layers = 0;
  int num_vocab = 0;
  int hidden_dim = 0;       // of what the output layer gets
  EmbeddingPooling pooling = EmbeddingPooling::kMean;  // that the file names; the mean where it names none
  int trained_ctx = 0;      // as libllama has it: of a context that YaRN extends on request, the extended one
  int max_positions = 0;    // positions end here (learned ones, or RoPE factors for short contexts), 0: nowhere
  int window = 0;           // sliding window in tokens, 0: none
  size_t file_bytes = 0;
  uint64_t num_params = 0;
  bool hybrid = false;      // recurrent layers beside attention
  bool quantised = false;   // weights whose products quantise activations
  size_t recurrent_bytes = 0;  // per sequence
  std::vector<LayerShape> layers;
  ModelOverrides overrides;
  std::vector<int> cache_of;  // of each layer, the one whose cache it reads (host/layer_map.h); empty: as the file says
};

inline int CountLayers(const ModelInfo& info, LayerKind kind) {
  return static_cast<int>(std::ranges::count(info.layers, kind, &LayerShape::kind));
}

// libllama's version and the CPU features that it was built with.
std::string HostVersion();

struct HostModelOptions {
  int num_gpu_layers = 0;
  int num_threads = 1;
  std::vector<std::string> lora_paths;
  std::vector<float> lora_scales;  // of each, 1 where it ends
  std::string chat_template;       // a name that libllama knows, or Jinja, in place of the file's
  std::vector<int> layer_map;      // ModelInfo::cache_of
  ModelOverrides overrides;        // of what the file says
  // Products with quantised weights by pith, a prompt's in float32 (block_product.h) and those of a few rows in bytes
  // (row_product.h); false: as libllama does them.
  bool own_products = true;
  bool map_file = true;                 // false: weights are read into memory of their own
  bool lock_memory = false;             // weights are kept in memory as far as the system lets them
  bool check_weights = false;           // kCorrupt where a weight is no number
  std::function<bool(float)> progress;  // false cancels
  // Loads and probes the model in a child process first, so that nothing in the file can take this process down
  // (docs/security.md). Costs a second reading of the metadata and a few tokens.
  bool try_in_child = true;
  ModelUse use = ModelUse::kText;
};

struct ChatToolCall {
  std::string id;
  std::string name;
  std::string arguments;  // a JSON object
};

struct ChatMessage {
  std::string role;
  std::string content;
  std::vector<ChatToolCall> tool_calls = {};  // that the assistant made in it
  std::string tool_call_id = {};              // of the call that a message of the role "tool" answers
  std::string name = {};                      // of that tool; may be empty
};

// A loaded GGUF. Thread-safe once loaded.
class HostModel {
 public:
  // Checks the file, or all parts of a split model, loads it and probes its layers by decoding a few tokens.
  // kNotFound, kCorrupt, kUnsupported (with the reason why it cannot be hosted), kInvalidArgument (of the options).
  static Result<std::shared_ptr<HostModel>> Load(const std::string& path, const HostModelOptions& options);
  ~HostModel();

  const ModelInfo& info() const { return info_; }

  // Of metadata, the files' contents (host/fingerprint.h), adapters with their strengths, and overrides that change
  // what is computed: what a session must agree with. The first call reads the files. 0: one can no longer be read.
  uint64_t fingerprint() const;

  // Special tokens in `text` are parsed if parse_special; add_special puts BOS in front where the file says so, but no
  // EOS behind a text that goes on. kInvalidArgument: TokenizeText().
  Result<std::vector<int32_t>> Tokenize(std::string_view text, bool add_special, bool parse_special) const;
  // A text that ends here, with what the tokenizer puts around one: for embeddings.
  Result<std::vector<int32_t>> TokenizeWhole(std::string_view text) const;
  std::string Piece(int32_t token) const;  // bytes; may end inside a UTF-8 character
  // That a token of a text stands for, at most; 0: any number of them (tokenizers that leave blanks out, or have one
  // token for words that they do not know). O(vocabulary).
  size_t MostBytesOfToken() const;
  bool IsEndOfGeneration(int32_t token) const;
  bool IsControl(int32_t token) const;
  // By the template of the options or the file's own, as Jinja. Where that fails, by libllama's code for the usual
  // templates, which it recognises by what they contain. kUnsupported: there is none, or neither can write these
  // messages. tools: a JSON array as OpenAI's API has it, empty for none; templates that know no tools leave them out.
  Result<std::string> ApplyChatTemplate(std::span<const ChatMessage> messages, bool add_assistant,
                                        const std::string& tools = {}) const;
  const std::string& chat_template() const;  // its text or name; empty if there is none
  std::string bos_text() const;              // of the token that begins a text; empty if there is none
  std::string eos_text() const;              // of the one that ends it
  int32_t bos_token() const;                 // -1: there is none
  int32_t eos_token() const;
  int32_t newline_token() const;
  bool adds_bos() const;                     // Tokenize() does, where asked for special tokens
  bool has_chat_template() const;
  bool knows_chat_template() const;  // and it can be read

  // False: libllama was built for the CPU alone, and num_gpu_layers has no effect.
  static bool SupportsGpu();

  // What the file says of itself, or overrides in its place: keys and values as texts, arrays left out.
  std::vector<std::pair<std::string, std::string>> ListMetadata() const;

  // [hidden, heads * Dv] float32 rows of the layer's output projection; empty: none found. One layer is kept at a time:
  // asking for another one reads and dequantises it.
  std::shared_ptr<const std::vector<float>> OutputProjection(int layer) const;

  llama_model* handle() const { return model_; }
  bool own_products() const { return own_products_; }
  // What that means with this build on this machine, where weights are quantised.
  bool float_products() const;
  bool byte_products() const;
  std::span<llama_adapter_lora* const> adapters() const;
  std::span<const float> adapter_scales() const;  // one for each adapter

 private:
  HostModel() = default;
  static Result<std::shared_ptr<HostModel>> LoadHere(std::vector<std::string> paths, const HostModelOptions& options,
                                                     bool is_trial);
  void ReadChatTemplate();
  void TryChatTemplate() const;

  llama_model* model_ = nullptr;
  ModelInfo info_;
  bool own_products_ = true;
  struct Private;
  std::unique_ptr<Private> private_;
};

struct PlainOptions {
  int num_ctx = 0;  // tokens of each sequence
  int block_tokens = 512;
  int num_threads = 1;
  bool adapt_threads = true;  // fewer while other processes take cores (base/thread_governor.h)
  int max_sequences = 1;
  bool flash_attention = true;
  std::string cache_type = "f16";  // ggml's name, of keys and values
  // One stream of cells for each sequence, so that a sequence attends over its own cells alone; with one sequence
  // there is no difference. False: all share the cells (num_ctx then counts them all).
  bool separate_streams = false;
  bool for_benchmark = false;  // FillForBenchmark() will be called
};

// Plain libllama over the same weights, as the reference of parity, bench and eval.
class PlainContext {
 public:
  static Result<std::unique_ptr<PlainContext>> Create(const HostModel& model, const PlainOptions& options);
  static Result<std::unique_ptr<PlainContext>> Create(const HostModel& model, int num_ctx, int block_tokens,
                                                      bool flash_attention, int num_threads, int max_sequences = 1) {
    return Create(model, PlainOptions{.num_ctx = num_ctx,
                                      .block_tokens = block_tokens,
                                      .num_threads = num_threads,
                                      .max_sequences = max_sequences,
                                      .flash_attention = flash_attention});
  }
  ~PlainContext();
  // Appends tokens to a sequence. all_logits: one row per token, else only the last token's row.
  Status Decode(int sequence, std::span<const int32_t> tokens, std::vector<float>* all_logits = nullptr);
  // One token for each of sequences 0 .. tokens.size() - 1, in one batch.
  Status DecodeBatch(std::span<const int32_t> tokens);
  // For benchmarks: an empty sequence gets the made-up keys and values of num_tokens tokens through libllama's state
  // API (plain_fill.cc). kUnsupported: the model has other than global attention layers.
  Status FillForBenchmark(int sequence, int num_tokens);
  std::span<const float> logits() const;  // of the last token; empty before the first
  void Clear();

 private:
  PlainContext() = default;
  struct Private;
  std::unique_ptr<Private> private_;
};

}  // namespace pith

#endif  // PITH_HOST_MODEL_H_
