#include "host/embedder.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <set>
#include <utility>

#include "gguf.h"
#include "host/gguf_check.h"
#include "host/llama_util.h"
#include "host/tokenizer.h"
#include "host/trial.h"

namespace pith {
namespace {

constexpr uint32_t kMostTokens = 512;
// Vocabularies begin with what is frequent: a token of this rank weighs half of a rare one. Words that every text has
// would make all texts alike.
constexpr double kFrequentTokens = 2000;

struct GgufDeleter {
  void operator()(gguf_context* context) const { gguf_free(context); }
};
struct FileCloser {
  void operator()(std::FILE* file) const { std::fclose(file); }
};

Result<std::vector<float>> Normalised(std::span<const double> sum) {
  double squares = 0;
  for (const double x : sum) squares += x * x;
  if (!(squares > 0) || !std::isfinite(squares)) return InvalidArgument("the text's embedding is no direction");
  std::vector<float> unit(sum.size());
  std::ranges::transform(sum, unit.begin(), [&](double x) { return static_cast<float>(x / std::sqrt(squares)); });
  return unit;
}

class InputEmbedder final : public TextEmbedder {
 public:
  explicit InputEmbedder(const HostModel& model) : model_(model) {}

  Status Open() {
    for (const std::string& path : model_.info().part_paths) {
      ggml_context* shapes = nullptr;
      const std::unique_ptr<gguf_context, GgufDeleter> gguf(
          gguf_init_from_file(path.c_str(), {.no_alloc = true, .ctx = &shapes}));
      if (gguf == nullptr) continue;
      const GgmlContextPtr owner(shapes);
      constexpr const char* kName = "token_embd.weight";
      const int64_t index = gguf_find_tensor(gguf.get(), kName);
      const ggml_tensor* tensor = ggml_get_tensor(shapes, kName);
      if (index < 0 || tensor == nullptr) continue;
      type_ = tensor->type;
      dim_ = static_cast<size_t>(tensor->ne[0]);
      num_rows_ = tensor->ne[1];
      row_bytes_ = ggml_row_size(type_, tensor->ne[0]);
      offset_ = gguf_get_data_offset(gguf.get()) + gguf_get_tensor_offset(gguf.get(), index);
      file_.reset(std::fopen(path.c_str(), "rb"));
      break;
    }
    const bool readable = type_ == GGML_TYPE_F32 || ggml_get_type_traits(type_)->to_float != nullptr;
    if (file_ == nullptr || dim_ == 0 || !readable) {
      return Unsupported(model_.info().path + " has no input embeddings that can be read by rows");
    }
    return {};
  }

  Result<std::vector<float>> Embed(std::string_view text) override {
    PITH_ASSIGN_OR_RETURN(const std::vector<int32_t> tokens, model_.Tokenize(text, false, false));
    if (tokens.empty()) return InvalidArgument("a text without a token has no embedding");
    const std::set<int32_t> different(tokens.begin(), tokens.end());
    std::vector<double> sum(dim_, 0.0);
    std::vector<std::byte> raw(row_bytes_);
    std::vector<float> row(dim_);
    for (const int32_t token : different) {
      if (token < 0 || token >= num_rows_) continue;
      const auto at = static_cast<off_t>(offset_ + static_cast<size_t>(token) * row_bytes_);
      if (pread(fileno(file_.get()), raw.data(), row_bytes_, at) != static_cast<ssize_t>(row_bytes_)) {
        return IoError("the input embeddings of " + model_.info().path + " can no longer be read");
      }
      if (type_ == GGML_TYPE_F32) {
        std::memcpy(row.data(), raw.data(), row_bytes_);
      } else {
        ggml_get_type_traits(type_)->to_float(raw.data(), row.data(), static_cast<int64_t>(dim_));
      }
      const double weight = (token + 1.0) / (token + 1.0 + kFrequentTokens);
      for (size_t d = 0; d < dim_; ++d) sum[d] += weight * static_cast<double>(row[d]);
    }
    return Normalised(sum);
  }

  size_t bytes() const override { return 0; }

 private:
  const HostModel& model_;
  std::unique_ptr<std::FILE, FileCloser> file_;
  ggml_type type_ = GGML_TYPE_F32;
  size_t dim_ = 0, row_bytes_ = 0, offset_ = 0;
  int64_t num_rows_ = 0;
};

class GgufEmbedder final : public TextEmbedder {
 public:
  static Result<std::unique_ptr<TextEmbedder>> Load(const std::string& path, int num_threads) {
    auto made = std::make_unique<GgufEmbedder>();
    llama_model_params params = llama_model_default_params();
    params.n_gpu_layers = 0;
    made->model_.reset(llama_model_load_from_file(path.c_str(), params));
    if (made->model_ == nullptr) return Corrupt("libllama cannot load the embedding model " + path);
    const llama_model* model = made->model_.get();
    if (llama_model_has_encoder(model) && llama_model_has_decoder(model)) {
      return Unsupported(path + " encodes and decodes; an embedding model does one of the two");
    }
    llama_context_params context = llama_context_default_params();
    const int trained = llama_model_n_ctx_train(model);
    context.n_ctx = trained > 0 ? std::min(kMostTokens, static_cast<uint32_t>(trained)) : kMostTokens;
    context.n_batch = context.n_ubatch = context.n_ctx;
    context.n_seq_max = 1;
    context.embeddings = true;
    context.n_threads = context.n_threads_batch = std::max(num_threads, 1);
    context.no_perf = true;
    made->num_ctx_ = context.n_ctx;
    made->context_.reset(llama_init_from_model(made->model_.get(), context));
    if (made->context_ == nullptr) return IoError("libllama cannot make a context of the embedding model " + path);
    // A ranking model pools into one number.
    if (llama_pooling_type(made->context_.get()) == LLAMA_POOLING_TYPE_RANK) {
      return Unsupported(path + " ranks texts; it gives no embeddings");
    }
    made->batch_ = std::make_unique<Batch>(static_cast<int>(context.n_ctx));
    return std::unique_ptr<TextEmbedder>(std::move(made));
  }

  Result<std::vector<float>> Embed(std::string_view text) override {
    const llama_vocab* vocab = llama_model_get_vocab(model_.get());
    char pre[64] = "";
    (void)llama_model_meta_val_str(model_.get(), "tokenizer.ggml.pre", pre, sizeof pre);
    PITH_ASSIGN_OR_RETURN(std::vector<int32_t> tokens, TokenizeText(vocab, pre, text, true, false));
    // BERT's texts end with a token of their own.
    const int32_t end = llama_vocab_get_add_sep(vocab) ? llama_vocab_sep(vocab) : LLAMA_TOKEN_NULL;
    if (tokens.size() + 1 > num_ctx_) tokens.resize(num_ctx_ - 1);
    if (end != LLAMA_TOKEN_NULL && (tokens.empty() || tokens.back() != end)) tokens.push_back(end);
    if (tokens.empty()) return InvalidArgument("a text without a token has no embedding");
    batch_->Clear();
    for (size_t i = 0; i < tokens.size(); ++i) batch_->Add(tokens[i], static_cast<int32_t>(i), 0, true);
    llama_context* context = context_.get();
    if (llama_get_memory(context) != nullptr) llama_memory_clear(llama_get_memory(context), true);
    if (llama_decode(context, batch_->get()) != 0) return IoError("libllama could not embed a text");
    const auto dim = static_cast<size_t>(llama_model_n_embd(model_.get()));
    std::vector<double> sum(dim, 0.0);
    if (const float* pooled = llama_get_embeddings_seq(context, 0); pooled != nullptr) {
      std::copy_n(pooled, dim, sum.begin());
      return Normalised(sum);
    }
    for (size_t i = 0; i < tokens.size(); ++i) {
      const float* row = llama_get_embeddings_ith(context, static_cast<int32_t>(i));
      if (row == nullptr) return IoError("libllama gave no embedding of a text");
      for (size_t d = 0; d < dim; ++d) sum[d] += static_cast<double>(row[d]);
    }
    return Normalised(sum);
  }

  size_t bytes() const override { return llama_state_get_size(context_.get()); }

 private:
  std::unique_ptr<llama_model, LlamaDeleter> model_;
  LlamaContextPtr context_;  // before the model it goes
  std::unique_ptr<Batch> batch_;
  uint32_t num_ctx_ = 0;
};

}  // namespace

Result<std::unique_ptr<TextEmbedder>> MakeInputEmbedder(const HostModel& model) {
  auto made = std::make_unique<InputEmbedder>(model);
  PITH_RETURN_IF_ERROR(made->Open());
  return std::unique_ptr<TextEmbedder>(std::move(made));
}

Result<std::unique_ptr<TextEmbedder>> LoadEmbedder(const std::string& path, int num_threads) {
  size_t file_bytes = 0;
  PITH_ASSIGN_OR_RETURN(const std::vector<std::string> paths, CheckModelFiles(path, &file_bytes));
  InitLlamaOnce();
  const auto load = [&]() -> Status {
    const auto loaded = GgufEmbedder::Load(paths.front(), num_threads);
    if (!loaded) return tl::unexpected<Error>(loaded.error());
    const auto tried = (*loaded)->Embed("a trial");
    return tried ? Status() : Status(tl::unexpected<Error>(tried.error()));
  };
  // What libllama cannot bear ends a child.
  PITH_RETURN_IF_ERROR(
      TryInChild("libllama cannot load " + path, LimitsForFile(file_bytes), load, [] { return true; }));
  return GgufEmbedder::Load(paths.front(), num_threads);
}

}  // namespace pith
