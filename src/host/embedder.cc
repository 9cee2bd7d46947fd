#include "host/embedder.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <set>
#include <utility>

#include "host/embedding_context.h"
#include "host/llama_util.h"

namespace pith {
namespace {

// Vocabularies begin with what is frequent: a token of this rank weighs half of a rare one. Words that every text has
// would make all texts alike.
constexpr double kFrequentTokens = 2000;

struct FileCloser {
  void operator()(std::FILE* file) const { std::fclose(file); }
};

class InputEmbedder final : public TextEmbedder {
 public:
  explicit InputEmbedder(const HostModel& model) : model_(model) {}

  Status Open() {
    for (const std::string& path : model_.info().part_paths) {
      ggml_context* shapes = nullptr;
      const GgufContextPtr gguf(gguf_init_from_file(path.c_str(), {.no_alloc = true, .ctx = &shapes}));
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
    std::vector<float> unit = UnitVector(sum);
    const bool is_zero = std::ranges::all_of(unit, [](float x) { return x == 0; });
    if (is_zero) return InvalidArgument("the text's embedding is no direction");
    return unit;
  }

  size_t bytes() const override { return 0; }

 private:
  const HostModel& model_;
  std::unique_ptr<std::FILE, FileCloser> file_;
  ggml_type type_ = GGML_TYPE_F32;
  size_t dim_ = 0, row_bytes_ = 0, offset_ = 0;
  int64_t num_rows_ = 0;
};

// An encoder of its own beside the model that answers.
class FileEmbedder final : public TextEmbedder {
 public:
  FileEmbedder(std::shared_ptr<HostModel> model, std::unique_ptr<EmbeddingContext> context)
      : model_(std::move(model)), context_(std::move(context)) {}

  Result<std::vector<float>> Embed(std::string_view text) override {
    PITH_ASSIGN_OR_RETURN(std::vector<int32_t> tokens, model_->TokenizeWhole(text));
    if (tokens.empty()) return InvalidArgument("a text without a token has no embedding");
    const auto most = static_cast<size_t>(context_->num_ctx());
    if (tokens.size() > most) {
      const int32_t last = tokens.back();
      tokens.resize(most);
      if (model_->IsControl(last)) tokens.back() = last;  // BERT's texts end with a token of their own
    }
    return context_->Embed(tokens);
  }

  size_t bytes() const override { return context_->bytes(); }

 private:
  std::shared_ptr<HostModel> model_;
  std::unique_ptr<EmbeddingContext> context_;  // before the model it goes
};

}  // namespace

Result<std::unique_ptr<TextEmbedder>> MakeInputEmbedder(const HostModel& model) {
  auto made = std::make_unique<InputEmbedder>(model);
  PITH_RETURN_IF_ERROR(made->Open());
  return std::unique_ptr<TextEmbedder>(std::move(made));
}

Result<std::unique_ptr<TextEmbedder>> LoadEmbedder(const std::string& path, int num_threads) {
  HostModelOptions options;
  options.use = ModelUse::kEmbeddings;
  PITH_ASSIGN_OR_RETURN(std::shared_ptr<HostModel> model, HostModel::Load(path, options));
  PITH_ASSIGN_OR_RETURN(std::unique_ptr<EmbeddingContext> context, EmbeddingContext::Create(*model, num_threads));
  return std::make_unique<FileEmbedder>(std::move(model), std::move(context));
}

}  // namespace pith
