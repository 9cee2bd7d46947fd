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
};

struct Message {
  std::string role;
  std::string content;
};

class Model {
 public:
  // kNotFound, kCorrupt, kUnsupported.
  static Result<Model> Load(const std::string& gguf_path, const ModelOptions& options = {}) {
    const std::vector<const char*> loras = internal::Pointers(options.loras);
    auto own = PITH_INIT(pith_model_options);
    own.num_threads = options.num_threads;
    own.num_gpu_layers = options.num_gpu_layers;
    own.chat_template = internal::OrNull(options.chat_template);
    own.lora_paths = loras.data();
    own.num_loras = loras.size();
    own.trusted = options.trusted;
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
    Tokens tokens(text.size() + 8);
    size_t count = 0;
    const auto tokenize = [&] {
      return pith_tokenize(get(), text.data(), text.size(), begins, special, tokens.data(), tokens.size(), &count);
    };
    PITH_RETURN_IF_ERROR(internal::ToStatus(tokenize()));
    const bool cut = count > tokens.size();
    tokens.resize(count);
    if (cut) PITH_RETURN_IF_ERROR(internal::ToStatus(tokenize()));
    return tokens;
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
  std::shared_ptr<pith_model> handle_;
};

}  // namespace api
}  // namespace pith

#endif  // PITH_CPP_MODEL_HPP_
