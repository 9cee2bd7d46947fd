#include "server/chat_request.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <random>
#include <utility>

#include "base/escaped.h"
#include "base/json_text.h"
#include "host/grammar_bounds.h"
#include "host/json_schema.h"
#include "policy/untrusted.h"

namespace pith::server {
namespace {

constexpr size_t kMostStops = 32;
constexpr size_t kLongestName = 1000;
constexpr size_t kMostSamplers = 64, kMostBreakers = 64;
constexpr double kMost = 1e6;
constexpr size_t kMostTokenized = size_t{4} << 20;  // that takes 175 MiB and two seconds
constexpr size_t kMostTokenBytes = 1024;            // where the tokenizer has no bound
constexpr double kMostLogprobBytes = 256.0 * (1 << 20), kLogprobBytes = 8, kLogprobJsonBytes = 400;
constexpr float kForbidden = -std::numeric_limits<float>::infinity();

// What protocols allow, by SamplingRules.
struct SamplingBounds {
  double temperature;
  double bias;
  bool biases_texts;
  int least_top_k;
};
constexpr SamplingBounds kBounds[] = {{2, 100, false, -1}, {1, 100, false, 0}, {kMost, kMost, true, -1}};

uint32_t RandomSeed() {
  thread_local std::mt19937 random{std::random_device{}()};
  return static_cast<uint32_t>(random());
}

bool KnowsTools(const ServedModel& model) { return model.chat_template.find("tools") != std::string::npos; }

// llama-server's {"15043": -1.5, "text": 1} or [[15043, -1.5], [2, false], ["text", 1]]; OpenAI's is the first without
// texts.
void ReadBias(JsonReader& reader, const ServedModel& model, const SamplingBounds& bounds, SamplerOptions& sampling) {
  const Json* value = reader.Find("logit_bias");
  if (value == nullptr) return;
  const auto add = [&](int64_t token, const Json& bias) {
    if (token < 0 || token >= model.info.num_vocab) {
      return reader.Fail("logit_bias", fmt::format("has the token {}, but the vocabulary goes from 0 to {}", token,
                                                   model.info.num_vocab - 1));
    }
    if (bias.is_boolean() && !bias.get<bool>()) {
      sampling.logit_bias.emplace_back(static_cast<int32_t>(token), kForbidden);
    } else if (bias.is_number() && std::abs(bias.get<double>()) <= bounds.bias) {
      // OpenAI's -100 forbids a token.
      const double number = bias.get<double>();
      sampling.logit_bias.emplace_back(static_cast<int32_t>(token),
                                       number <= -100 ? kForbidden : static_cast<float>(number));
    } else {
      reader.Fail("logit_bias", fmt::format("must map tokens to numbers from {} to {}", -bounds.bias, bounds.bias));
    }
  };
  const auto add_text = [&](const std::string& text, const Json& bias) {
    const auto tokens = model.text->Tokenize(text, false, true);
    if (!tokens) return reader.Fail("logit_bias", tokens.error().message);
    for (const int32_t token : *tokens) add(token, bias);
  };
  if (value->is_object()) {
    for (const auto& [key, bias] : value->items()) {
      if (!key.empty() && key.size() < 10 && key.find_first_not_of("0123456789") == std::string::npos) {
        add(std::stoll(key), bias);
      } else if (bounds.biases_texts && !key.empty()) {
        add_text(key, bias);
      } else {
        return reader.Fail("logit_bias",
                           fmt::format("must map token numbers to numbers, and has \"{}\"", Escaped(key)));
      }
    }
  } else if (value->is_array()) {
    for (const Json& pair : *value) {
      if (!pair.is_array() || pair.size() != 2)
        return reader.Fail("logit_bias", "must have pairs of a token and a number");
      if (pair[0].is_number_integer()) {
        add(pair[0].get<int64_t>(), pair[1]);
      } else if (pair[0].is_string()) {
        add_text(pair[0].get<std::string>(), pair[1]);
      } else {
        return reader.Fail("logit_bias", "must have pairs of a token and a number");
      }
    }
  } else {
    reader.Fail("logit_bias", "must be an object of tokens and numbers");
  }
  if (sampling.logit_bias.size() > static_cast<size_t>(model.info.num_vocab))
    reader.Fail("logit_bias", "has more entries than there are tokens");
}

// Any of 64 bits, with or without a sign. -1 and what libllama takes for it draw one, as in llama-server. Of larger
// ones all bits count.
void ReadSeed(JsonReader& reader, SamplerOptions& sampling) {
  const Json* value = reader.Find("seed");
  if (value == nullptr) return;
  uint64_t seed = 0;
  if (value->is_number_unsigned()) {
    seed = value->get<uint64_t>();
  } else {
    std::optional<int64_t> number;
    reader.Integer64("seed", number);
    if (!number || *number == -1) return;
    seed = static_cast<uint64_t>(*number);
  }
  constexpr uint32_t kDrawn = 0xffffffff;
  if (seed != kDrawn) sampling.seed = static_cast<uint32_t>(seed ^ (seed >> 32) * 0x9e3779b1);
}

// llama-server's "samplers": names, or a letter for each; it takes no notice of those that it does not know.
void ReadSamplers(JsonReader& reader, SamplerOptions& sampling) {
  const Json* value = reader.Find("samplers");
  if (value == nullptr) return;
  std::vector<std::string> names;
  if (value->is_array()) {
    reader.Texts("samplers", names);
  } else if (value->is_string()) {
    constexpr std::pair<char, const char*> kLetters[] = {
        {'e', "penalties"}, {'d', "dry"},   {'s', "top_n_sigma"}, {'k', "top_k"},       {'y', "typ_p"},
        {'p', "top_p"},     {'m', "min_p"}, {'x', "xtc"},         {'t', "temperature"}, {'i', "infill"}};
    for (const char letter : value->get_ref<const std::string&>()) {
      const auto found = std::ranges::find(kLetters, letter, &std::pair<char, const char*>::first);
      if (found != std::end(kLetters)) names.emplace_back(found->second);
    }
  } else {
    return reader.Fail("samplers", "must be an array of names, or a text with a letter for each");
  }
  if (names.size() > kMostSamplers) return reader.Fail("samplers", fmt::format("has more than {}", kMostSamplers));
  sampling.sequence.clear();
  for (const std::string& name : names) {
    if (const auto known = ParseSequence(name); known && known->size() == 1)
      sampling.sequence.push_back(known->front());
  }
}

// Where a template refuses roles: the system message goes into the user's first, and what one side says twice is one.
std::vector<ChatMessage> Merged(const std::vector<ChatMessage>& messages) {
  std::vector<ChatMessage> out;
  for (const ChatMessage& message : messages) {
    ChatMessage one = message;
    if (one.role == "system") one.role = "user";
    if (!out.empty() && out.back().role == one.role && out.back().tool_calls.empty() && one.tool_calls.empty()) {
      out.back().content += "\n\n" + one.content;
    } else {
      out.push_back(std::move(one));
    }
  }
  return out;
}

Result<std::string> Render(const ServedModel& model, const std::vector<ChatMessage>& messages, bool opens_answer,
                           const std::string& tools) {
  const auto write = [&](const std::vector<ChatMessage>& list) {
    return tools.empty() ? model.text->Render(list, opens_answer)
                         : model.text->RenderWithTools(list, opens_answer, tools);
  };
  Result<std::string> text = write(messages);
  if (text) return text;
  Result<std::string> merged = write(Merged(messages));
  return merged ? merged : text;
}

// Tokens that two prompts begin with alike.
size_t CommonFront(const std::vector<int32_t>& a, const std::vector<int32_t>& b) {
  return static_cast<size_t>(std::ranges::mismatch(a, b).in1 - a.begin());
}

// The front of the prompt up to the first message that is not the system's: what does not change when that message
// does.
Result<size_t> NumPinned(const ServedModel& model, const ChatRequest& request, const std::vector<int32_t>& prompt) {
  const auto first =
      std::ranges::find_if(request.messages, [](const ChatMessage& one) { return one.role != "system"; });
  const bool has_system = first != request.messages.begin();
  if (!request.pin || (!has_system && !request.uses_tools())) return 0;
  ChatRequest other = request;
  other.messages.assign(request.messages.begin(), first);
  other.messages.push_back({"user", "7316"});
  size_t pinned = prompt.size();
  for (const char* content : {"7316", "\xc3\xa9t"}) {
    other.messages.back().content = content;
    PITH_ASSIGN_OR_RETURN(const std::string text, RenderPrompt(model, other, true));
    PITH_ASSIGN_OR_RETURN(const std::vector<int32_t> tokens, model.text->Tokenize(text, true, true));
    pinned = std::min(pinned, CommonFront(prompt, tokens));
  }
  return pinned;
}

Status MakeGrammar(const ServedModel& model, ChatRequest& request) {
  std::string& grammar = request.base.sampling.grammar;
  if (!grammar.empty() && !request.schema.empty()) {
    return InvalidArgument("an answer keeps to one grammar or schema: give one of them");
  }
  if (!grammar.empty()) return CheckGrammarBounds(grammar);
  if (!request.schema.empty()) {
    if (request.uses_tools() && request.tool_choice == ToolChoice::kRequired)
      return InvalidArgument("a call that is required cannot keep to 'response_format', too");
    PITH_ASSIGN_OR_RETURN(grammar, GrammarOfJsonSchema(request.schema));
    return CheckGrammarBounds(grammar);
  }
  if (!request.uses_tools()) return {};
  const bool native = KnowsTools(model);
  // A template's own way of writing calls is left to the model unless one must be made.
  if (native && request.tool_choice == ToolChoice::kAuto) return {};
  const ToolSyntax syntax = native ? SyntaxOfTemplate(model.chat_template) : ToolSyntax::kTags;
  std::vector<ToolSpec> tools = request.tools;
  if (!request.named_tool.empty())
    std::erase_if(tools, [&](const ToolSpec& tool) { return tool.name != request.named_tool; });
  PITH_ASSIGN_OR_RETURN(grammar, ToolGrammar(tools, request.tool_choice, syntax, request.parallel_calls));
  return CheckGrammarBounds(grammar);
}

// When and to what a recipe works.
void ReadCompression(JsonReader& reader, ChatRequest& request) {
  std::string compress;
  reader.Text("compress", compress);
  if (compress == "after") request.base.compress = CompressMode::kAfter;
  if (compress == "block") request.base.compress = CompressMode::kBlock;
  if (!compress.empty() && !request.base.compress) reader.Fail("compress", "must be \"after\" or \"block\"");
  if (reader.Find("keep") == nullptr) return;
  float keep = 0;
  reader.Number("keep", 0, 1, keep);
  request.base.keep = static_cast<double>(keep);
  if (!(keep > 0)) return reader.Fail("keep", "must be a share above 0");
  if (compress == "block") return reader.Fail("keep", "is of a whole prompt: leave \"compress\": \"block\" out");
  request.base.compress = CompressMode::kAfter;
}

}  // namespace

ChatRequest NewRequest(const ServedModel& model, std::string tenant) {
  ChatRequest request;
  request.base.sampling = model.sampling;
  request.base.sampling.seed = RandomSeed();
  request.ping_seconds = model.ping_seconds;
  request.base.tenant = std::move(tenant);
  return request;
}

void ReadSampling(JsonReader& reader, const ServedModel& model, SamplingRules rules, SamplerOptions& sampling) {
  const SamplingBounds& bounds = kBounds[static_cast<size_t>(rules)];
  reader.Number("temperature", 0, bounds.temperature, sampling.temperature);
  reader.Number("dynatemp_range", 0, kMost, sampling.dynatemp_range);
  reader.Number("dynatemp_exponent", 0, kMost, sampling.dynatemp_exponent);
  reader.Integer("top_k", bounds.least_top_k, INT32_MAX, sampling.top_k);
  sampling.top_k = std::max(sampling.top_k, 0);
  reader.Number("top_p", 0, 1, sampling.top_p);
  if (sampling.top_p <= 0) sampling.top_p = 1e-6f;  // the likeliest alone
  reader.Number("min_p", 0, 1, sampling.min_p);
  reader.Number("typical_p", 0, 1, sampling.typical_p);
  if (sampling.typical_p <= 0) sampling.typical_p = 1;
  reader.Number("top_n_sigma", -kMost, kMost, sampling.top_n_sigma);
  reader.Number("xtc_probability", 0, 1, sampling.xtc_probability);
  reader.Number("xtc_threshold", 0, 1, sampling.xtc_threshold);
  reader.Integer("repeat_last_n", -1, INT32_MAX, sampling.repeat_last_n);
  reader.Number("repeat_penalty", 1e-3, kMost, sampling.repeat_penalty);
  reader.Number("presence_penalty", -2, 2, sampling.presence_penalty);
  reader.Number("frequency_penalty", -2, 2, sampling.frequency_penalty);
  reader.Number("dry_multiplier", 0, kMost, sampling.dry_multiplier);
  reader.Number("dry_base", 1, kMost, sampling.dry_base);
  reader.Integer("dry_allowed_length", 0, INT32_MAX, sampling.dry_allowed_length);
  reader.Integer("dry_penalty_last_n", -1, INT32_MAX, sampling.dry_last_n);
  reader.Texts("dry_sequence_breakers", sampling.dry_breakers);
  // Each is compared with every token.
  if (sampling.dry_breakers.size() > kMostBreakers)
    reader.Fail("dry_sequence_breakers", fmt::format("has more than {} strings", kMostBreakers));
  reader.Integer("mirostat", 0, 2, sampling.mirostat);
  reader.Number("mirostat_tau", 0, kMost, sampling.mirostat_tau);
  reader.Number("mirostat_eta", 0, kMost, sampling.mirostat_eta);
  reader.Bool("ignore_eos", sampling.ignore_eos);
  reader.Text("grammar", sampling.grammar);
  ReadSeed(reader, sampling);
  ReadBias(reader, model, bounds, sampling);
  ReadSamplers(reader, sampling);
}

void ReadStreaming(JsonReader& reader, ChatRequest& request) {
  reader.Bool("timings_per_token", request.timings_per_token);
  reader.Bool("return_progress", request.returns_progress);
  reader.Integer("sse_ping_interval", -1, INT32_MAX, request.ping_seconds);
}

void ReadLlamaLimits(JsonReader& reader, int most_choices, ChatRequest& chat) {
  Request& request = chat.base;
  ReadStreaming(reader, chat);
  reader.Integer("n", 1, most_choices, request.num_choices);
  reader.Integer("n_cmpl", 1, most_choices, request.num_choices);
  std::optional<int64_t> milliseconds;
  reader.Integer64("t_max_predict_ms", milliseconds);
  if (milliseconds && *milliseconds < -1) reader.Fail("t_max_predict_ms", "must be a number of milliseconds, or -1");
  if (milliseconds) request.generation.max_seconds = std::max(1e-3 * static_cast<double>(*milliseconds), 0.0);
}

void ReadStops(JsonReader& reader, const char* name, std::vector<std::string>& stops) {
  reader.Texts(name, stops);
  if (stops.size() > kMostStops) return reader.Fail(name, fmt::format("has more than {} strings", kMostStops));
  for (const std::string& stop : stops) {
    if (stop.empty()) return reader.Fail(name, "must not have an empty string");
    if (stop.size() > 1000) return reader.Fail(name, "has a string of more than 1000 bytes");
  }
}

Status ReadOwnFields(JsonReader& reader, const ServedModel& model, ChatRequest& request) {
  if (const Json* budget = reader.Find("kv_budget"); budget != nullptr) {
    if (budget->is_number_unsigned() && budget->get<uint64_t>() > 0 && budget->get<uint64_t>() < (uint64_t{1} << 50)) {
      request.base.kv_budget_bytes = budget->get<uint64_t>();
    } else if (budget->is_string()) {
      const Result<size_t> bytes = model.parse_budget(budget->get<std::string>());
      if (bytes)
        request.base.kv_budget_bytes = *bytes;
      else
        reader.Fail("kv_budget", "is no size: " + bytes.error().message);
    } else {
      reader.Fail("kv_budget", "must be a number of bytes, a size such as \"64MiB\" or a percentage such as \"20%\"");
    }
  }
  std::string recipe;
  reader.Text("recipe", recipe);
  if (!recipe.empty()) {
    // The server's own may name files; a client's may not.
    Result<Recipe> parsed = recipe == model.recipe.text ? Result<Recipe>(model.recipe) : ParseUntrustedRecipe(recipe);
    if (parsed) {
      if (recipe == "full") request.is_evict_off = true;
      request.base.recipe = std::move(*parsed);
    } else {
      reader.Fail("recipe", "is none: " + parsed.error().message);
    }
  } else if (model.drops_nothing()) {
    request.is_evict_off = true;
  }
  ReadCompression(reader, request);
  reader.Text("session", request.session);
  reader.Bool("pin", request.pin);
  const Json* const map = reader.Find("kv_map");
  const bool has_layers = map != nullptr && map->is_string() && map->get<std::string>() == "layers";
  if (has_layers)
    request.base.reports_positions = request.base.reports_layers = true;
  else if (map != nullptr && !map->is_boolean())
    reader.Fail("kv_map", "must be true, false or \"layers\"");
  else
    reader.Bool("kv_map", request.base.reports_positions);
  reader.Text("prompt_cache_key", request.base.cache_key);
  if (!request.session.empty()) request.base.cache_key = request.session;
  if (request.base.cache_key.size() > kLongestName)  // kept with the prefix
    reader.Fail(request.session.empty() ? "prompt_cache_key" : "session",
                fmt::format("is longer than {} bytes", kLongestName));
  reader.Bool("cache_prompt", request.base.reuse_prefix);
  int cache_reuse = -1;
  reader.Integer("n_cache_reuse", 0, INT32_MAX, cache_reuse);
  if (cache_reuse >= 0) request.base.cache_reuse = cache_reuse;
  reader.Integer("id_slot", -1, INT32_MAX, request.base.slot);
  if (request.base.slot >= model.num_slots) {
    reader.Fail("id_slot", fmt::format("must be a slot from 0 to {}, or -1", model.num_slots - 1));
  }
  request.base.refuse_eviction = request.is_evict_off;
  return reader.status();
}

Status ReadFormat(const Json& format, const std::string& path, std::string& schema) {
  if (!format.is_object()) return InvalidArgument(fmt::format("'{}' must be an object", path));
  JsonReader reader(format, path + ".");
  std::string type;
  reader.Require("type");
  reader.Text("type", type);
  PITH_RETURN_IF_ERROR(reader.status());
  if (type == "text") return {};
  if (type == "json_object") {
    const Json* wanted = reader.Object("schema");  // llama-server's
    PITH_RETURN_IF_ERROR(reader.status());
    schema = wanted == nullptr ? R"({"type":"object"})" : JsonText(*wanted);
    return {};
  }
  if (type != "json_schema") {
    return InvalidArgument(fmt::format("'{}.type' must be \"text\", \"json_object\" or \"json_schema\"", path));
  }
  const Json* inner = reader.Object("json_schema");
  const Json* wanted = nullptr;
  if (inner != nullptr) {
    JsonReader nested(*inner, path + ".json_schema.");
    std::string name;
    bool is_strict = false;
    nested.Text("name", name);
    nested.Bool("strict", is_strict);
    nested.Require("schema");
    wanted = nested.Object("schema");
    PITH_RETURN_IF_ERROR(nested.status());
  } else {
    reader.Require("schema");
    wanted = reader.Object("schema");
  }
  PITH_RETURN_IF_ERROR(reader.status());
  schema = JsonText(*wanted);
  return {};
}

namespace {

// The beginning of the answer that the client has written itself: the last message, if it is the assistant's.
std::string TakeBeginning(ChatRequest& request) {
  const ChatMessage& last = request.messages.back();
  if (!request.continues_last || request.messages.size() < 2 || last.role != "assistant" || !last.tool_calls.empty())
    return {};
  std::string beginning = last.content;
  if (!beginning.empty()) request.messages.pop_back();
  return beginning;
}

// Of the request's recipe, else of the server's.
const std::optional<TurnOptions>& TurnsOf(const ServedModel& model, const ChatRequest& request) {
  return (request.base.recipe ? *request.base.recipe : model.recipe).turns;
}

Status FindTopic(const ServedModel& model, ChatRequest& request) {
  const std::optional<TurnOptions>& turns = TurnsOf(model, request);
  if (!turns || turns->method != TurnMethod::kEpiCache || model.topics == nullptr) return {};
  PITH_ASSIGN_OR_RETURN(request.base.guide, model.topics->GuideFor(*turns, request.messages));
  return {};
}

// Where the assistant's answers end, but for one that the prompt goes on from.
Result<std::vector<size_t>> TurnEnds(ServerContext& context, const ChatRequest& request,
                                     const std::vector<int32_t>& prompt) {
  std::vector<size_t> ends;
  ChatRequest front = request;
  for (size_t i = 1; i + 1 < request.messages.size(); ++i) {
    const ChatMessage& message = request.messages[i];
    if (message.role != "assistant" || !message.tool_calls.empty() || message.content.empty()) continue;
    front.messages.assign(request.messages.begin(), request.messages.begin() + static_cast<std::ptrdiff_t>(i) + 1);
    PITH_ASSIGN_OR_RETURN(const std::string text, RenderPrompt(context.model, front, true));
    if (!request.prompt_text.starts_with(text)) continue;  // the template changes what is past
    PITH_ASSIGN_OR_RETURN(const std::vector<int32_t> tokens,
                          context.memory.Tokenize(*context.model.text, request.base.tenant, text));
    const size_t end = CommonFront(prompt, tokens);
    if (end > (ends.empty() ? 0 : ends.back())) ends.push_back(end);
  }
  return ends;
}

}  // namespace

Result<std::string> RenderPrompt(const ServedModel& model, const ChatRequest& request, bool opens_answer) {
  if (request.messages.size() > static_cast<size_t>(model.num_ctx)) {  // templates are slow
    return OutOfContext(fmt::format("the request has {} messages, more than the {} tokens of the context",
                                    request.messages.size(), model.num_ctx));
  }
  if (opens_answer && !request.messages.empty() && request.messages.back().role == "assistant") {
    ChatRequest front = request;
    if (const std::string beginning = TakeBeginning(front); !beginning.empty()) {
      PITH_ASSIGN_OR_RETURN(std::string text, RenderPrompt(model, front, true));
      return text + beginning;
    }
  }
  if (!model.text->has_template())
    return Unsupported("this model has no chat template, so that it takes prompts but no messages");
  const std::vector<ToolSpec> tools = request.uses_tools() ? request.tools : std::vector<ToolSpec>();
  if (KnowsTools(model)) {
    Result<std::string> text = Render(model, request.messages, opens_answer, ToolsJson(tools));
    if (tools.empty() || (text && text->find(tools.front().name) != std::string::npos)) return text;
  }
  return Render(model, WithoutToolRoles(request.messages, tools), opens_answer, "");
}

Status CheckTextBytes(const ServedModel& model, ChatRequest& request, size_t num_bytes) {
  const size_t most = model.most_token_bytes > 0 ? model.most_token_bytes : kMostTokenBytes;
  const size_t tokens = (num_bytes + most - 1) / most;
  if (tokens < static_cast<size_t>(model.num_ctx)) return {};
  request.least_tokens = tokens;
  return OutOfContext(
      fmt::format("the request has {} bytes of text, which are {} tokens or more, and the context of {} tokens has no "
                  "room for them and an answer",
                  num_bytes, tokens, model.num_ctx));
}

Status CheckTextLength(size_t num_bytes) {
  if (num_bytes <= kMostTokenized) return {};
  return InvalidArgument(
      fmt::format("the text has {} bytes, more than the {} that are tokenised at once", num_bytes, kMostTokenized));
}

Result<std::vector<int32_t>> TokenizePrompt(const ServedModel& model, ChatRequest& request, std::string_view text,
                                            bool begins) {
  PITH_RETURN_IF_ERROR(CheckTextBytes(model, request, text.size()));
  return model.text->Tokenize(text, begins, true);
}

Status CheckLength(const ServedModel& model, size_t num_tokens) {
  if (num_tokens == 0) return InvalidArgument("the prompt is empty");
  if (num_tokens < static_cast<size_t>(model.num_ctx)) return {};
  return OutOfContext(
      fmt::format("the request has {} tokens, and the context of {} tokens has no room for them and an answer",
                  num_tokens, model.num_ctx));
}

namespace {

// Log probabilities of an answer wait until it ends: as numbers where it is streamed, else as JSON, too.
Status CheckLogprobs(const ServedModel& model, const ChatRequest& request) {
  const GeneratorOptions& generation = request.base.generation;
  if (generation.num_logprobs < 0) return {};
  double tokens = 0;
  for (const auto& prompt : request.prompts) {
    const size_t room = static_cast<size_t>(model.num_ctx) - prompt.size();
    const size_t most = generation.max_tokens < 0 ? room : std::min(room, static_cast<size_t>(generation.max_tokens));
    const size_t echoed = request.base.prompt_logprobs >= 0 ? prompt.size() : 0;
    tokens += static_cast<double>(echoed + most * static_cast<size_t>(request.base.num_choices));
  }
  const double count = tokens * (1 + generation.num_logprobs);
  const double most = kMostLogprobBytes / (request.stream ? kLogprobBytes : kLogprobJsonBytes);
  if (count <= most) return {};
  return InvalidArgument(fmt::format(
      "the answer may have {:.0f} log probabilities, more than {:.0f}: ask for fewer tokens or fewer of each{}", count,
      most, request.stream ? "" : ", or for a stream"));
}

}  // namespace

Status Prepare(ServerContext& context, ChatRequest& request) {
  const ServedModel& model = context.model;
  PITH_RETURN_IF_ERROR(CheckTools(request.tools));
  PITH_RETURN_IF_ERROR(MakeGrammar(model, request));
  if (!request.messages.empty()) {
    PITH_ASSIGN_OR_RETURN(request.prompt_text, RenderPrompt(model, request, request.opens_answer));
    PITH_RETURN_IF_ERROR(CheckTextBytes(model, request, request.prompt_text.size()));
    PITH_ASSIGN_OR_RETURN(std::vector<int32_t> tokens,
                          context.memory.Tokenize(*model.text, request.base.tenant, request.prompt_text));
    request.prompts.push_back(std::move(tokens));
    const std::vector<int32_t>& prompt = request.prompts.front();
    PITH_RETURN_IF_ERROR(CheckLength(model, prompt.size()));
    PITH_ASSIGN_OR_RETURN(const size_t pinned, NumPinned(model, request, prompt));
    request.base.num_pinned = std::min(pinned, prompt.size() - 1);
    if (TurnsOf(model, request)) {
      PITH_ASSIGN_OR_RETURN(request.base.turn_ends, TurnEnds(context, request, prompt));
    }
    PITH_RETURN_IF_ERROR(FindTopic(model, request));
  }
  for (const auto& prompt : request.prompts) PITH_RETURN_IF_ERROR(CheckLength(model, prompt.size()));
  PITH_RETURN_IF_ERROR(CheckLogprobs(model, request));
  PITH_RETURN_IF_ERROR(CheckSampling(request.base.sampling));
  return {};
}

}  // namespace pith::server
