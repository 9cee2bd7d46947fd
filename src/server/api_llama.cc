// llama-server's own endpoints, with its members' names and meanings.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <utility>

#include "base/escaped.h"
#include "base/json_text.h"
#include "base/parse_number.h"
#include "base/utf8.h"
#include "server/answer.h"
#include "server/api.h"
#include "server/infill.h"
#include "server/members.h"

namespace pith::server {
namespace {

constexpr size_t kMostFields = 64;

Json ParamsJson(const SamplerOptions& sampling, const ChatRequest& chat = {}) {
  const Request& request = chat.base;
  const GeneratorOptions& generation = request.generation;
  Json biases = Json::array();
  // JSON has no infinity.
  for (const auto& [token, bias] : sampling.logit_bias)
    biases.push_back({{"token", token}, {"bias", std::isfinite(bias) ? Json(bias) : Json(false)}});
  return {{"seed", sampling.seed},
          {"temperature", sampling.temperature},
          {"dynatemp_range", sampling.dynatemp_range},
          {"dynatemp_exponent", sampling.dynatemp_exponent},
          {"top_k", sampling.top_k},
          {"top_p", sampling.top_p},
          {"min_p", sampling.min_p},
          {"top_n_sigma", sampling.top_n_sigma},
          {"xtc_probability", sampling.xtc_probability},
          {"xtc_threshold", sampling.xtc_threshold},
          {"typical_p", sampling.typical_p},
          {"repeat_last_n", sampling.repeat_last_n},
          {"repeat_penalty", sampling.repeat_penalty},
          {"presence_penalty", sampling.presence_penalty},
          {"frequency_penalty", sampling.frequency_penalty},
          {"dry_multiplier", sampling.dry_multiplier},
          {"dry_base", sampling.dry_base},
          {"dry_allowed_length", sampling.dry_allowed_length},
          {"dry_penalty_last_n", sampling.dry_last_n},
          {"dry_sequence_breakers", sampling.dry_breakers},
          {"mirostat", sampling.mirostat},
          {"mirostat_tau", sampling.mirostat_tau},
          {"mirostat_eta", sampling.mirostat_eta},
          {"stop", generation.stops},
          {"max_tokens", generation.max_tokens},
          {"n_predict", generation.max_tokens},
          {"n_cmpl", request.num_choices},
          {"t_max_predict_ms", std::llround(1e3 * generation.max_seconds)},
          {"ignore_eos", sampling.ignore_eos},
          {"stream", chat.stream},
          {"logit_bias", std::move(biases)},
          {"n_probs", std::max(generation.num_logprobs, 0)},
          {"post_sampling_probs", request.tells_sampled},
          {"timings_per_token", chat.timings_per_token},
          {"grammar", sampling.grammar},
          {"samplers", sampling.sequence}};
}

// after_sampling: what tokens were drawn from, as probabilities.
Json Probabilities(const ServedModel& model, const std::vector<TokenLogprobs>& logprobs, bool after_sampling) {
  const auto entry = [&](const TokenLogprob& one) -> Json {
    const std::string piece = model.text->Piece(one.token);
    Json bytes = Json::array();
    for (const char c : piece) bytes.push_back(static_cast<unsigned char>(c));
    Json json = {{"id", one.token}, {"token", piece}, {"bytes", std::move(bytes)}};
    if (after_sampling)
      json["prob"] = std::exp(one.logprob);
    else
      json["logprob"] = FiniteLogprob(one.logprob);
    return json;
  };
  Json list = Json::array();
  for (const TokenLogprobs& token : logprobs) {
    Json one = entry(token.chosen);
    Json& top = one[after_sampling ? "top_probs" : "top_logprobs"] = Json::array();
    for (const TokenLogprob& other : token.top) top.push_back(entry(other));
    list.push_back(std::move(one));
  }
  return list;
}

struct LlamaExtras {
  std::vector<std::string> prompts;  // their texts
  std::vector<std::string> fields;   // response_fields
  bool returns_tokens = false;
};

class LlamaWriter final : public AnswerWriter {
 public:
  LlamaWriter(Call& call, const ChatRequest& request, LlamaExtras extras)
      : context_(call.context),
        exchange_(call.exchange),
        stream_(request.stream),
        has_probabilities_(request.base.generation.num_logprobs >= 0),
        after_sampling_(request.base.tells_sampled),
        num_choices_(request.base.num_choices),
        extras_(std::move(extras)),
        settings_(ParamsJson(request.base.sampling, request)),
        num_written_(request.prompts.size() * static_cast<size_t>(num_choices_)) {
    for (const auto& prompt : request.prompts) prompt_tokens_.push_back(prompt.size());
  }

  void Begin(const RequestUsage&, int slot) override {
    slot_ = slot;
    if (stream_) exchange_->BeginStream("text/event-stream; charset=utf-8");
  }

  void Progress(const PromptProgress& progress) override {
    Json part = Part(0, "", {});
    part["prompt_progress"] = ProgressJson(progress);
    exchange_->Write(Event(part));
  }
  std::string Ping() override { return kSsePing; }

  void Text(Delta delta) override {
    num_written_[static_cast<size_t>(delta.choice)] += delta.tokens.size();
    if (delta.text.find('\n') != std::string::npos) has_line_.insert(delta.choice);
    Json part = Part(delta.choice, std::move(delta.text), delta.tokens);
    if (has_probabilities_) part["completion_probabilities"] = ProbabilitiesOf(delta.logprobs);
    if (delta.so_far) part["timings"] = TimingsJson(*delta.so_far);
    exchange_->Write(Event(part));
  }

  void Ended(ChoiceEnd end) override {
    if (stream_ && !end.tokens.empty()) {
      Json part = Part(end.choice, "", end.tokens);
      if (has_probabilities_) part["completion_probabilities"] = ProbabilitiesOf(end.logprobs);
      exchange_->Write(Event(part));
    }
    ends_.push_back(std::move(end));
  }

  void Finished(const AnswerTotals& totals) override {
    std::ranges::sort(ends_, {}, &ChoiceEnd::choice);
    Json all = Json::array();
    for (const ChoiceEnd& end : ends_) all.push_back(Wanted(Final(end, totals)));
    if (!stream_) return exchange_->Send(JsonResponse(all.size() == 1 ? all.front() : all));
    for (const Json& one : all) exchange_->Write(Event(one));
    exchange_->EndStream();
  }

  void Failed(const Error&, HttpResponse response, bool begun) override {
    if (!stream_ || !begun) return exchange_->Send(std::move(response));
    exchange_->Write("data: " + response.body + "\n\n");
    exchange_->EndStream();
  }

 private:
  Json Part(int choice, std::string text, const std::vector<int32_t>& tokens) const {
    return {{"index", choice},
            {"content", std::move(text)},
            {"tokens", tokens},
            {"stop", false},
            {"id_slot", slot_},
            {"tokens_predicted", num_written_[static_cast<size_t>(choice)]},
            {"tokens_evaluated", PromptTokens(choice)}};
  }

  Json ProbabilitiesOf(const std::vector<TokenLogprobs>& logprobs) const {
    return Probabilities(context_.model, logprobs, after_sampling_);
  }

  size_t PromptTokens(int choice) const { return prompt_tokens_[static_cast<size_t>(choice / num_choices_)]; }

  // response_fields: these members alone, those within others under the names of their paths.
  Json Wanted(Json answer) const {
    if (extras_.fields.empty()) return answer;
    Json some = Json::object();
    for (const std::string& path : extras_.fields) {
      const Json* at = &answer;
      for (size_t from = 0; at != nullptr && from <= path.size();) {
        const size_t end = std::min(path.find('/', from), path.size());
        const auto found = at->is_object() ? at->find(path.substr(from, end - from)) : at->end();
        at = at->is_object() && found != at->end() ? &*found : nullptr;
        from = end + 1;
      }
      if (at != nullptr) some[path] = *at;
    }
    return some;
  }

  Json Final(const ChoiceEnd& end, const AnswerTotals& totals) const {
    const char* type = "limit";
    if (end.stop == StopReason::kEnd) type = "eos";
    if (end.stop == StopReason::kStopString) type = "word";
    const bool whole = !stream_;
    Json one = {{"index", end.choice},
                {"content", whole ? end.text : ""},
                {"tokens", whole && extras_.returns_tokens ? Json(end.tokens) : Json::array()},
                {"id_slot", totals.slot},
                {"stop", true},
                {"model", context_.model.id},
                {"tokens_predicted", end.num_tokens},
                {"tokens_evaluated", PromptTokens(end.choice)},
                {"generation_settings", settings_},
                {"prompt", extras_.prompts[static_cast<size_t>(end.choice / num_choices_)]},
                {"has_new_line", has_line_.contains(end.choice) || end.text.find('\n') != std::string::npos},
                {"truncated", end.stop == StopReason::kContext || totals.cache.evicted_tokens > 0},
                {"stop_type", type},
                {"stopping_word", end.stop_string},
                {"tokens_cached", PromptTokens(end.choice) + static_cast<size_t>(end.num_tokens)},
                {"timings", TimingsJson(totals)},
                {"kv", KvJson(totals.cache)}};
    if (has_probabilities_ && whole) one["completion_probabilities"] = ProbabilitiesOf(end.logprobs);
    return one;
  }

  ServerContext& context_;
  std::shared_ptr<HttpExchange> exchange_;
  bool stream_, has_probabilities_, after_sampling_;
  int num_choices_;
  LlamaExtras extras_;
  Json settings_;
  std::vector<size_t> num_written_;    // of each choice
  std::vector<size_t> prompt_tokens_;  // of each prompt
  std::set<int> has_line_;             // choices whose streamed text has a line's end
  std::vector<ChoiceEnd> ends_;
  int slot_ = -1;
};

// llama-server's {"prompt_string": "..."} as that text, of a prompt or of one of several.
Result<Json> WithoutObjects(const Json& prompt) {
  if (prompt.is_object()) {
    JsonReader reader(prompt, "prompt.");
    std::string text;
    reader.Require("prompt_string");
    reader.Text("prompt_string", text);
    const Json* const media = reader.Find("multimodal_data");
    if (media != nullptr && *media != Json::array())
      reader.Fail("multimodal_data", "is not supported: this model reads text alone");
    PITH_RETURN_IF_ERROR(reader.status());
    return Json(std::move(text));
  }
  Json plain = prompt;
  for (Json& one : plain) {
    if (!plain.is_array() || !one.is_object()) continue;
    PITH_ASSIGN_OR_RETURN(one, WithoutObjects(one));
  }
  return plain;
}

// It also takes texts and tokens mixed in one prompt.
Status ReadMixedPrompt(const Json& given, const ServedModel& model, ChatRequest& request,
                       std::vector<std::string>& texts) {
  PITH_ASSIGN_OR_RETURN(const Json prompt, WithoutObjects(given));
  bool has_text = false, has_token = false;
  if (prompt.is_array()) {
    for (const Json& one : prompt) {
      has_text = has_text || one.is_string();
      has_token = has_token || one.is_number();
    }
  }
  if (!has_text || !has_token) return ReadPrompts(prompt, model, request, texts);
  std::vector<int32_t> tokens;
  for (const Json& one : prompt) {
    if (one.is_string()) {
      PITH_ASSIGN_OR_RETURN(const auto more, TokenizePrompt(model, request, one.get<std::string>(), tokens.empty()));
      tokens.insert(tokens.end(), more.begin(), more.end());
    } else {
      PITH_ASSIGN_OR_RETURN(const auto more, ReadTokens(Json::array({one}), "prompt", model.info.num_vocab));
      tokens.insert(tokens.end(), more.begin(), more.end());
    }
  }
  texts.push_back(TextOf(model, tokens));
  request.prompts.push_back(std::move(tokens));
  return {};
}

// All but the prompt.
Status ReadLlama(JsonReader& reader, const ServedModel& model, ChatRequest& request, LlamaExtras& extras) {
  reader.Bool("stream", request.stream);
  reader.Integer("max_tokens", -1, INT32_MAX, request.base.generation.max_tokens);
  reader.Integer("n_predict", -1, INT32_MAX, request.base.generation.max_tokens);
  int num_probabilities = 0;
  reader.Integer("n_probs", 0, 1000, num_probabilities);
  if (num_probabilities > 0) request.base.generation.num_logprobs = num_probabilities;
  CheckMembers(reader, kLlamaMembers);
  reader.Integer("n_indent", 0, INT32_MAX, request.base.generation.least_indent);
  reader.Bool("return_tokens", extras.returns_tokens);
  reader.Bool("post_sampling_probs", request.base.tells_sampled);
  ReadLlamaLimits(reader, model.num_slots, request);
  (void)reader.Array("response_fields");  // no text, as elsewhere
  reader.Texts("response_fields", extras.fields);
  if (extras.fields.size() > kMostFields) reader.Fail("response_fields", fmt::format("has more than {}", kMostFields));
  ReadStops(reader, "stop", request.base.generation.stops);
  ReadSampling(reader, model, SamplingRules::kLlama, request.base.sampling);
  if (const Json* schema = reader.Object("json_schema"); schema != nullptr) request.schema = JsonText(*schema);
  return ReadOwnFields(reader, model, request);
}

Status ReadLlamaCompletion(const Json& body, const ServedModel& model, ChatRequest& request, LlamaExtras& extras) {
  JsonReader reader(body);
  reader.Require("prompt");
  PITH_RETURN_IF_ERROR(ReadLlama(reader, model, request, extras));
  return ReadMixedPrompt(*reader.Find("prompt"), model, request, extras.prompts);
}

Status ReadInfill(const Json& body, const ServedModel& model, ChatRequest& request, LlamaExtras& extras) {
  JsonReader reader(body);
  InfillParts parts{.names_files = true};
  reader.Require("input_prefix");
  reader.Require("input_suffix");
  reader.Text("input_prefix", parts.prefix);
  reader.Text("input_suffix", parts.suffix);
  reader.Text("prompt", parts.begun);
  const Json* extra = reader.Array("input_extra");
  PITH_RETURN_IF_ERROR(reader.status());
  for (size_t i = 0; extra != nullptr && i < extra->size(); ++i) {
    const std::string at = fmt::format("input_extra[{}]", i);
    if (!(*extra)[i].is_object()) return InvalidArgument(fmt::format("'{}' must be an object with a text", at));
    JsonReader inner((*extra)[i], at + ".");
    InfillFile file;
    inner.Require("text");
    inner.Text("text", file.text);
    inner.Text("filename", file.name);
    PITH_RETURN_IF_ERROR(inner.status());
    parts.extra.push_back(std::move(file));
  }
  PITH_RETURN_IF_ERROR(ReadLlama(reader, model, request, extras));
  PITH_ASSIGN_OR_RETURN(std::vector<int32_t> tokens, InfillPrompt(model, parts, request.base.generation.max_tokens));
  extras.prompts.push_back(TextOf(model, tokens));
  request.prompts.push_back(std::move(tokens));
  return {};
}

// What both endpoints do but for how they read their bodies.
void Complete(Call& call, Status (*read)(const Json&, const ServedModel&, ChatRequest&, LlamaExtras&)) {
  const Result<Json> body = BodyOf(call);
  if (!body) return call.Fail(body.error());
  ChatRequest request = NewRequest(call.context.model, call.tenant);
  LlamaExtras extras;
  Status status = read(*body, call.context.model, request, extras);
  if (status) status = Prepare(call.context, request);
  if (!status) return call.exchange->Send(LengthAwareError(call.context, call.dialect, request, status.error()));
  auto writer = std::make_unique<LlamaWriter>(call, request, std::move(extras));
  StartAnswer(call, std::move(request), std::move(writer));
}

Json SlotJson(const ServedModel& model, const SlotState& slot) {
  return {{"id", slot.id},
          {"n_ctx", model.num_ctx},
          {"is_processing", slot.processing},
          {"id_task", slot.processing ? Json(slot.request) : Json(-1)},
          {"n_prompt_tokens", slot.prompt_tokens},
          {"n_prompt_tokens_processed", slot.prompt_done},
          {"n_decoded", slot.completion_tokens},
          {"n_past", slot.processing ? slot.prompt_done + slot.completion_tokens : slot.retained_tokens},
          {"kv_bytes", slot.kv_bytes},
          {"retained", slot.retained},
          {"retained_tokens", slot.retained_tokens}};
}

}  // namespace

void LlamaHealth(Call& call) {
  if (!call.context.draining) return call.Reply({{"status", "ok"}});
  call.Fail(503, "the server finishes what runs and takes nothing new");
}

void LlamaProps(Call& call) {
  const ServedModel& model = call.context.model;
  call.Reply(
      {{"default_generation_settings", {{"id", 0}, {"n_ctx", model.num_ctx}, {"params", ParamsJson(model.sampling)}}},
       {"total_slots", model.num_slots},
       {"model_alias", model.id},
       {"model_path", model.info.path},
       {"modalities", {{"vision", false}, {"audio", false}}},
       {"chat_template", model.chat_template},
       {"bos_token", model.bos},
       {"eos_token", model.eos},
       {"recipe", model.recipe.text},
       {"build_info", "pith " PITH_VERSION}});
}

void LlamaSlots(Call& call) {
  Json list = Json::array();
  const SchedulerStats stats = call.context.scheduler != nullptr ? call.context.scheduler->stats() : SchedulerStats();
  for (const SlotState& slot : stats.slots) list.push_back(SlotJson(call.context.model, slot));
  if (call.request.Parameter("fail_on_no_slot") == "1") {
    bool is_free = false;
    for (const Json& slot : list) is_free = is_free || !slot.at("is_processing").get<bool>();
    if (!is_free) return call.Fail(503, "no slot is free");
  }
  call.Reply(list);
}

namespace {

// A name of a file and nothing else: no folder, no hidden file.
Status CheckFileName(const std::string& name) {
  const bool is_plain = !name.empty() && name.size() <= 200 && name.front() != '.' &&
                        name.find('/') == std::string::npos && name.find('\\') == std::string::npos &&
                        name.find_first_of(std::string("\0\n\r", 3)) == std::string::npos;
  if (is_plain) return {};
  return InvalidArgument("'filename' must be the name of a file, without folders, and not begin with a dot");
}

void SaveOrRestore(Call& call, int slot, bool saves) {
  if (!call.context.saves_slots)
    return call.Fail(501, "slots are saved only where the server was started with --slot-save-path");
  const Result<Json> body = BodyOf(call);
  if (!body) return call.Fail(body.error());
  JsonReader reader(*body);
  std::string name;
  reader.Require("filename");
  reader.Text("filename", name);
  Status status = reader.status();
  if (status) status = CheckFileName(name);
  if (!status) return call.Fail(status.error());
  const Result<SavedSlot> done =
      saves ? call.context.scheduler->SaveSlot(slot, name) : call.context.scheduler->RestoreSlot(slot, name);
  if (!done) {
    // What a client names and is not there, or is no session, is its error.
    const ErrorCode code = done.error().code;
    const bool is_clients = code == ErrorCode::kNotFound || (code == ErrorCode::kCorrupt && !saves);
    return is_clients ? call.Fail(code == ErrorCode::kNotFound ? 404 : 400, done.error().message)
                      : call.Fail(done.error());
  }
  if (!saves) {
    std::string text;
    for (const int32_t token : done->restored) text += call.context.model.text->Piece(token);
    call.context.memory.Add(done->tenant, std::move(text), done->restored);
  }
  const Json timings = {{saves ? "save_ms" : "restore_ms", 1000 * done->seconds}};
  if (saves)
    call.Reply({{"id_slot", slot},
                {"filename", name},
                {"n_saved", done->tokens},
                {"n_written", done->bytes},
                {"timings", timings}});
  else
    call.Reply({{"id_slot", slot},
                {"filename", name},
                {"n_restored", done->tokens},
                {"n_read", done->bytes},
                {"timings", timings}});
}

// Of the path. -1: none, and the call has its answer.
int SlotOf(const Call& call) {
  const std::string text = call.request.path.substr(std::string_view("/slots/").size());
  const std::optional<int> slot = ParseNumber<int>(text);
  if (!slot) {
    call.Fail(400, fmt::format("\"{}\" is no number of a slot", Escaped(text)));
  } else if (*slot < 0 || *slot >= call.context.model.num_slots) {
    call.Fail(404, fmt::format("there is no slot {}; slots go from 0 to {}", *slot, call.context.model.num_slots - 1));
  } else {
    return *slot;
  }
  return -1;
}

Json EntryJson(const EntryView& view) {
  if (!view.held) return {{"held", false}};
  Json json = {{"held", true},
               {"format", view.format.Name()},
               {"key_channels", view.key_channels},
               {"pinned", view.pinned},
               {"score", nullptr},
               {"rank", nullptr}};
  if (view.score && std::isfinite(*view.score)) json["score"] = *view.score;
  if (view.score) json["rank"] = view.rank;
  return json;
}

}  // namespace

void SlotTokenView(Call& call) {
  if (call.context.scheduler == nullptr) return call.Fail(404, "no model is loaded");
  const int slot = SlotOf(call);
  if (slot < 0) return;
  const std::optional<int> position = ParseNumber<int>(call.request.Parameter("position"));
  if (!position) return call.Fail(400, "'position' must be the number of a token in the slot's text");
  const Result<SlotToken> token = call.context.scheduler->TokenInSlot(slot, *position, call.tenant);
  if (!token) return call.Fail(token.error());
  Json layers = Json::array();
  for (const std::vector<EntryView>& layer : token->layers) {
    Json heads = Json::array();
    for (const EntryView& view : layer) heads.push_back(EntryJson(view));
    layers.push_back(std::move(heads));
  }
  call.Reply({{"id_slot", slot},
              {"position", *position},
              {"n_tokens", token->num_tokens},
              {"recipe", token->recipe},
              {"layers", std::move(layers)}});
}

void LlamaSlotAction(Call& call) {
  const int slot = SlotOf(call);
  if (slot < 0) return;
  const std::string action = call.request.Parameter("action");
  if (action == "save" || action == "restore") return SaveOrRestore(call, slot, action == "save");
  if (action != "erase") return call.Fail(400, "'action' must be save, restore or erase");
  const Result<int> erased = call.context.scheduler->EraseSlot(slot);
  if (!erased && erased.error().code != ErrorCode::kNotFound) return call.Fail(erased.error());
  call.Reply({{"id_slot", slot}, {"n_erased", erased ? *erased : 0}});
}

void LlamaTokenize(Call& call) {
  const Result<Json> body = BodyOf(call);
  if (!body) return call.Fail(body.error());
  JsonReader reader(*body);
  std::string content;
  bool add_special = false, parse_special = true, with_pieces = false;
  reader.Require("content");
  reader.Text("content", content);
  reader.Bool("add_special", add_special);
  reader.Bool("parse_special", parse_special);
  reader.Bool("with_pieces", with_pieces);
  if (const Status status = reader.status(); !status) return call.Fail(status.error());
  const ServedModel& model = call.context.model;
  if (const Status status = CheckTextLength(content.size()); !status) return call.Fail(413, status.error().message);
  const auto tokens = model.text->Tokenize(content, add_special, parse_special);
  if (!tokens) return call.Fail(tokens.error());
  if (!with_pieces) return call.Reply({{"tokens", *tokens}});
  Json list = Json::array();
  for (const int32_t token : *tokens) {
    const std::string piece = model.text->Piece(token);
    Json bytes = Json::array();
    for (const char c : piece) bytes.push_back(static_cast<unsigned char>(c));
    list.push_back({{"id", token}, {"piece", FindInvalidUtf8(piece) == std::string_view::npos ? Json(piece) : bytes}});
  }
  call.Reply({{"tokens", std::move(list)}});
}

void LlamaDetokenize(Call& call) {
  const Result<Json> body = BodyOf(call);
  if (!body) return call.Fail(body.error());
  JsonReader reader(*body);
  reader.Require("tokens");
  const Json* list = reader.Array("tokens");
  if (const Status status = reader.status(); !status) return call.Fail(status.error());
  const auto tokens = ReadTokens(*list, "tokens", call.context.model.info.num_vocab);
  if (!tokens) return call.Fail(tokens.error());
  call.Reply({{"content", TextOf(call.context.model, *tokens)}});
}

void LlamaApplyTemplate(Call& call) {
  const Result<Json> body = BodyOf(call);
  if (!body) return call.Fail(body.error());
  JsonReader reader(*body);
  reader.Require("messages");
  ChatRequest request = NewRequest(call.context.model, call.tenant);
  Status status = reader.status();
  if (status) status = ReadMessages(*reader.Find("messages"), "messages", request.messages);
  if (status) status = ReadTools(reader, request);
  if (status) status = CheckTools(request.tools);
  bool opens_answer = true;
  reader.Bool("add_generation_prompt", opens_answer);
  if (status) status = reader.status();
  if (!status) return call.Fail(status.error());
  const Result<std::string> text = RenderPrompt(call.context.model, request, opens_answer);
  if (!text) return call.Fail(text.error());
  call.Reply({{"prompt", *text}});
}

void LlamaCompletion(Call& call) { Complete(call, ReadLlamaCompletion); }

void LlamaInfill(Call& call) {
  if (const Status can = CheckInfill(call.context.model); !can) return call.Fail(501, can.error().message);
  Complete(call, ReadInfill);
}

void LlamaRerank(Call& call) {
  call.Fail(501, "this server ranks no documents: that takes a model with rank pooling, and it runs none");
}

}  // namespace pith::server
