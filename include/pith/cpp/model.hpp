// A GGUF file: tokens and chat template.
#ifndef PITH_CPP_MODEL_HPP_
#define PITH_CPP_MODEL_HPP_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <pith/cpp/base.hpp>
#include <string>
#include <string_view>
#include <vector>

namespace pith {
inline namespace api {

struct ModelOptions {
  int num_threads = 0;  // 0: physical cores
  int num_gpu_layers = 0;
  std::string chat_template = {};  // empty: the file's
  std::vector<std::string> loras = {};
  bool trusted = false;  // skips the trial in a child process (docs/security.md)
  pith_model_use use = PITH_USE_TEXT;
  std::string rope = {};                    // "rope-scaling=yarn,rope-scale=4"; empty: the file's
  std::vector<std::string> overrides = {};  // of metadata, "KEY=TYPE:VALUE"
};

struct Message {
  std::string role;
  std::string content;
};

class Model {
 public:
  // kNotFound, kCorrupt, kUnsupported, kInvalidArgument.
  static Result<Model> Load(const std::string& gguf_path, const ModelOptions& options = {}) {
    const std::vector<const char*> loras = internal::Pointers(options.loras);
    auto own = PITH_INIT(pith_model_options);
    own.num_threads = options.num_threads;
    own.num_gpu_layers = options.num_gpu_layers;
    own.chat_template = internal::OrNull(options.chat_template);
    own.lora_paths = loras.data();
    own.num_loras = loras.size();
    own.trusted = options.trusted;
    own.use = options.use;
    const std::vector<const char*> overrides = internal::Pointers(options.overrides);
    own.rope = internal::OrNull(options.rope);
    own.overrides = overrides.data();
    own.num_overrides = overrides.size();
    pith_model* model = nullptr;
    PITH_RETURN_IF_ERROR(internal::ToStatus(pith_model_load(gguf_path.c_str(), &own, &model)));
    return Model(model);
  }

  pith_model_info info() const {
    auto info = PITH_INIT(pith_model_info);
    (void)pith_model_get_info(get(), &info);
    return info;
  }

  // begins: the text is the first of its sequence. special: control tokens in it are tokens.
  Result<Tokens> Tokenize(std::string_view text, bool begins = true, bool special = true) const {
    return FillTokens(text, [&](Tokens& tokens, size_t* count) {
      return pith_tokenize(get(), text.data(), text.size(), begins, special, tokens.data(), tokens.size(), count);
    });
  }
  // A text that ends here, with what the tokenizer puts around one: for an Embedder.
  Result<Tokens> TokenizeWhole(std::string_view text) const {
    return FillTokens(text, [&](Tokens& tokens, size_t* count) {
      return pith_tokenize_whole(get(), text.data(), text.size(), tokens.data(), tokens.size(), count);
    });
  }
  // Bytes, which may end within a character.
  std::string Piece(int32_t token) const {
    std::string piece(pith_token_piece(get(), token, nullptr, 0), '\0');
    (void)pith_token_piece(get(), token, piece.data(), piece.size() + 1);
    return piece;
  }
  bool Ends(int32_t token) const { return pith_token_ends(get(), token); }

  Result<std::string> ApplyTemplate(const std::vector<Message>& messages, bool opens_answer = true) const {
    std::vector<pith_message> own;
    for (const Message& message : messages) {
      own.push_back({sizeof(pith_message), message.role.c_str(), message.content.c_str()});
    }
    size_t length = 0;
    const auto apply = [&](char* buffer, size_t capacity) {
      return internal::ToStatus(
          pith_apply_template(get(), own.data(), own.size(), opens_answer, buffer, capacity, &length));
    };
    PITH_RETURN_IF_ERROR(apply(nullptr, 0));
    std::string text(length, '\0');
    PITH_RETURN_IF_ERROR(apply(text.data(), text.size() + 1));
    return text;
  }

  pith_model* get() const { return handle_.get(); }

 private:
  explicit Model(pith_model* handle) : handle_(handle, pith_model_free) {}

  template <typename Tokenize>
  static Result<Tokens> FillTokens(std::string_view text, const Tokenize& tokenize) {
    Tokens tokens(text.size() + 8);
    size_t count = 0;
    PITH_RETURN_IF_ERROR(internal::ToStatus(tokenize(tokens, &count)));
    const bool cut = count > tokens.size();
    tokens.resize(count);
    if (cut) PITH_RETURN_IF_ERROR(internal::ToStatus(tokenize(tokens, &count)));
    return tokens;
  }

  std::shared_ptr<pith_model> handle_;
};

// Embeddings by a model that writes no text, loaded with PITH_USE_EMBEDDINGS: run whole, a text at a time.
class Embedder {
 public:
  // num_threads 0: physical cores. kInvalidArgument: the model was loaded for something else.
  static Result<Embedder> Create(const Model& model, int num_threads = 0) {
    pith_embedder* embedder = nullptr;
    PITH_RETURN_IF_ERROR(internal::ToStatus(pith_embedder_new(model.get(), num_threads, &embedder)));
    return Embedder(embedder, static_cast<size_t>(model.info().num_embd));
  }
  // Tokens of a text at most.
  size_t num_ctx() const { return pith_embedder_num_ctx(handle_.get()); }
  // [num_embd], pooled as the file says, of length 1, of Model::TokenizeWhole(). kOutOfContext: more tokens.
  Result<std::vector<float>> Embed(const Tokens& tokens) {
    std::vector<float> pooled(num_embd_);
    PITH_RETURN_IF_ERROR(
        internal::ToStatus(pith_embedder_embed(handle_.get(), tokens.data(), tokens.size(), nullptr, pooled.data())));
    return pooled;
  }

 private:
  Embedder(pith_embedder* handle, size_t num_embd) : handle_(handle, pith_embedder_free), num_embd_(num_embd) {}
  std::unique_ptr<pith_embedder, void (*)(pith_embedder*)> handle_;
  size_t num_embd_;
};

}  // namespace api
}  // namespace pith

#endif  // PITH_CPP_MODEL_HPP_
