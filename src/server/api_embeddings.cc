// Embeddings in the shapes of OpenAI, Ollama and llama-server.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <utility>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "base/utf8.h"
#include "host/embedding_context.h"
#include "server/answer.h"
#include "server/api.h"
#include "server/members.h"

namespace pith::server {
namespace {

constexpr size_t kMostInputs = 2048;  // OpenAI's

enum class Shape { kOpenAi, kLlama, kOllama, kOllamaOne };

struct EmbeddingOptions {
  Shape shape = Shape::kOpenAi;
  bool base64 = false;
  int dimensions = 0;  // the first so many; 0: all
  bool truncates = false;
  std::string name;    // as the request has it
};

std::string Base64(const std::vector<float>& values) {
  static constexpr char kDigits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string bytes(values.size() * sizeof(float), '\0');
  std::memcpy(bytes.data(), values.data(), bytes.size());
  std::string out;
  for (size_t i = 0; i < bytes.size(); i += 3) {
    const size_t count = std::min<size_t>(3, bytes.size() - i);
    uint32_t group = 0;
    for (size_t k = 0; k < 3; ++k) group = group << 8 | (k < count ? static_cast<unsigned char>(bytes[i + k]) : 0u);
    for (size_t k = 0; k < 4; ++k) out += k <= count ? kDigits[group >> (18 - 6 * k) & 63] : '=';
  }
  return out;
}

// The front of it, of length 1 again.
std::vector<float> Shortened(std::vector<float> embedding, int dimensions) {
  if (dimensions <= 0 || static_cast<size_t>(dimensions) >= embedding.size()) return embedding;
  const std::vector<double> front(embedding.begin(), embedding.begin() + dimensions);
  return UnitVector(front);
}

class EmbeddingWriter final : public AnswerWriter {
 public:
  EmbeddingWriter(Call& call, EmbeddingOptions options, size_t num_inputs)
      : model_(call.context.model), exchange_(call.exchange), options_(std::move(options)), embeddings_(num_inputs) {}

  void Embedding(int prompt, std::vector<float> embedding) override {
    embeddings_[static_cast<size_t>(prompt)] = Shortened(std::move(embedding), options_.dimensions);
  }
  void Text(Delta) override {}
  void Ended(ChoiceEnd) override {}
  void Failed(const Error&, HttpResponse response, bool) override { exchange_->Send(std::move(response)); }

  void Finished(const AnswerTotals& totals) override {
    const int tokens = totals.usage.prompt_tokens;
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
    Json list = Json::array();
    for (size_t i = 0; i < embeddings_.size(); ++i) list.push_back(Entry(i));
    Json body;
    switch (options_.shape) {
      case Shape::kOpenAi:
        body = {{"object", "list"},
                {"data", std::move(list)},
                {"model", model_.id},
                {"usage", {{"prompt_tokens", tokens}, {"total_tokens", tokens}}}};
        break;
      case Shape::kLlama:
        body = std::move(list);
        break;
      case Shape::kOllama:
        body = {{"model", options_.name},
                {"embeddings", std::move(list)},
                {"total_duration", static_cast<int64_t>(1e9 * seconds)},
                {"load_duration", 0},
                {"prompt_eval_count", tokens}};
        break;
      case Shape::kOllamaOne:
        body = {{"embedding", std::move(list.front())}};
        break;
    }
    exchange_->Send(JsonResponse(body));
  }

 private:
  Json Entry(size_t i) const {
    const std::vector<float>& embedding = embeddings_[i];
    switch (options_.shape) {
      case Shape::kOpenAi:
        return {{"object", "embedding"},
                {"index", i},
                {"embedding", options_.base64 ? Json(Base64(embedding)) : Json(embedding)}};
      case Shape::kLlama:
        return {{"index", i}, {"embedding", Json::array({embedding})}};
      default:
        return embedding;
    }
  }

  const ServedModel& model_;
  std::shared_ptr<HttpExchange> exchange_;
  EmbeddingOptions options_;
  std::vector<std::vector<float>> embeddings_;
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

// A text, an array of tokens, or an array of either.
Status ReadInputs(const Json& input, const char* name, const ServedModel& model, bool truncates, ChatRequest& request) {
  std::vector<std::vector<int32_t>>& prompts = request.prompts;
  const std::string wrong = fmt::format("'{}' must be a text, an array of tokens, or an array of these", name);
  const auto add_text = [&](const Json& text) -> Status {
    std::string_view whole = text.get_ref<const std::string&>();
    const Status fits = CheckTextBytes(model, request, whole.size());
    if (!fits && !truncates) return fits;
    if (!fits) {  // as much of its front as is enough for the tokens that are read
      whole = whole.substr(0, 2 * static_cast<size_t>(model.num_ctx) * (whole.size() / request.least_tokens + 1));
      whole = whole.substr(0, FindInvalidUtf8(whole));
      request.least_tokens = 0;
    }
    PITH_ASSIGN_OR_RETURN(std::vector<int32_t> tokens, model.text->TokenizeWhole(whole));
    prompts.push_back(std::move(tokens));
    return {};
  };
  const auto add_tokens = [&](const Json& list) -> Status {
    PITH_ASSIGN_OR_RETURN(std::vector<int32_t> tokens, ReadTokens(list, name, model.info.num_vocab));
    prompts.push_back(std::move(tokens));
    return {};
  };
  if (input.is_string()) return add_text(input);
  if (!input.is_array() || input.empty()) return InvalidArgument(wrong);
  if (input.front().is_number()) return add_tokens(input);
  if (input.size() > kMostInputs) return InvalidArgument(fmt::format("'{}' has more than {} texts", name, kMostInputs));
  for (const Json& one : input) {
    if (one.is_string()) {
      PITH_RETURN_IF_ERROR(add_text(one));
    } else if (one.is_array() && !one.empty() && one.front().is_number()) {
      PITH_RETURN_IF_ERROR(add_tokens(one));
    } else {
      return InvalidArgument(wrong);
    }
  }
  return {};
}

Status CheckInputs(const ServedModel& model, const EmbeddingOptions& options,
                   std::vector<std::vector<int32_t>>& prompts) {
  const auto most = static_cast<size_t>(model.num_ctx);
  for (std::vector<int32_t>& prompt : prompts) {
    if (prompt.empty()) return InvalidArgument("the input is empty");
    if (prompt.size() <= most) continue;
    if (!options.truncates) {
      return OutOfContext(fmt::format("an input has {} tokens, more than the {} that this model reads at once",
                                      prompt.size(), most));
    }
    prompt.resize(most);
  }
  return {};
}

void Start(Call& call, const Json& input, const char* name, EmbeddingOptions options) {
  const ServedModel& model = call.context.model;
  ChatRequest request = NewRequest(model, call.tenant);
  request.base.pooling = model.info.pooling == EmbeddingPooling::kNone ? EmbeddingPooling::kMean : model.info.pooling;
  request.base.generation.max_tokens = 0;
  request.base.reuse_prefix = false;
  request.is_evict_off = request.base.refuse_eviction = true;
  Status status = ReadInputs(input, name, model, options.truncates, request);
  if (status) status = CheckInputs(model, options, request.prompts);
  if (!status) return call.exchange->Send(LengthAwareError(call.context, call.dialect, request, status.error()));
  if (options.dimensions > model.info.hidden_dim) {
    return call.Fail(400, fmt::format("'dimensions' must be from 1 to {}", model.info.hidden_dim));
  }
  auto writer = std::make_unique<EmbeddingWriter>(call, std::move(options), request.prompts.size());
  StartAnswer(call, std::move(request), std::move(writer));
}

// What both of Ollama's requests have beside their texts, and how long the model is kept.
Status ReadOllama(JsonReader& reader, std::string& name, std::optional<double>& keep) {
  reader.Require("model");
  reader.Text("model", name);
  PITH_RETURN_IF_ERROR(CheckMembersOf(reader, "options", kOllamaOptions));
  return ReadKeepAlive(reader, keep);
}

}  // namespace

void OpenAiEmbeddings(Call& call) {
  const Result<Json> body = BodyOf(call);
  if (!body) return call.Fail(body.error());
  JsonReader reader(*body);
  EmbeddingOptions options;
  std::string format = "float", user;
  reader.Text("model", options.name);
  reader.Text("user", user);
  reader.Text("encoding_format", format);
  if (format != "float" && format != "base64") reader.Fail("encoding_format", "must be float or base64");
  reader.Integer("dimensions", 1, INT32_MAX, options.dimensions);
  reader.Require("input");
  if (const Status status = reader.status(); !status) return call.Fail(status.error());
  options.base64 = format == "base64";
  Start(call, *reader.Find("input"), "input", std::move(options));
}

void LlamaEmbedding(Call& call) {
  const Result<Json> body = BodyOf(call);
  if (!body) return call.Fail(body.error());
  JsonReader reader(*body);
  const char* const name = reader.Find("content") != nullptr ? "content" : "input";
  reader.Require(name);
  CheckMembers(reader, kLlamaEmbeddingMembers);
  if (const Status status = reader.status(); !status) return call.Fail(status.error());
  EmbeddingOptions options;
  options.shape = Shape::kLlama;
  Start(call, *reader.Find(name), name, std::move(options));
}

void OllamaEmbed(Call& call) {
  const Result<Json> body = BodyOf(call);
  if (!body) return call.Fail(body.error());
  JsonReader reader(*body);
  EmbeddingOptions options;
  options.shape = Shape::kOllama;
  options.truncates = true;
  std::optional<double> keep;
  reader.Bool("truncate", options.truncates);
  reader.Integer("dimensions", 0, INT32_MAX, options.dimensions);
  reader.Require("input");
  if (const Status status = ReadOllama(reader, options.name, keep); !status) return call.Fail(status.error());
  if (keep) call.catalog.KeepAlive(call.context.model.id, *keep);
  const Json& input = *reader.Find("input");
  const bool is_empty = input.is_string() ? input.get_ref<const std::string&>().empty() : input == Json::array();
  if (is_empty) {  // the client wants the model in memory
    return call.Reply({{"model", options.name}, {"embeddings", Json::array()}, {"prompt_eval_count", 0}});
  }
  Start(call, input, "input", std::move(options));
}

void OllamaEmbeddings(Call& call) {
  const Result<Json> body = BodyOf(call);
  if (!body) return call.Fail(body.error());
  JsonReader reader(*body);
  EmbeddingOptions options;
  options.shape = Shape::kOllamaOne;
  options.truncates = true;
  std::string prompt;
  std::optional<double> keep;
  reader.Require("prompt");
  reader.Text("prompt", prompt);
  if (const Status status = ReadOllama(reader, options.name, keep); !status) return call.Fail(status.error());
  if (keep) call.catalog.KeepAlive(call.context.model.id, *keep);
  Start(call, *reader.Find("prompt"), "prompt", std::move(options));
}

}  // namespace pith::server
