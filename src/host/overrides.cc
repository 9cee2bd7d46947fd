#include "host/overrides.h"

#include <fmt/format.h>

#include <algorithm>
#include <optional>
#include <set>
#include <utility>

#include "base/escaped.h"
#include "base/parse_number.h"
#include "host/llama_util.h"

namespace pith {
namespace {

// Of libllama's llama_model_kv_override, without the zero.
constexpr size_t kMostBytes = sizeof(llama_model_kv_override::val_str) - 1;
static_assert(sizeof(llama_model_kv_override::key) == kMostBytes + 1);

constexpr const char* kTypes[] = {"int", "float", "bool", "str"};  // by index of the variant

// As llama.cpp splits them: quotes at the beginning of an item hold it together, two of them in it are one.
std::vector<std::string> SplitItems(std::string_view text) {
  std::vector<std::string> items(1);
  bool quoted = false;
  for (size_t i = 0; i < text.size(); ++i) {
    std::string& item = items.back();
    if (text[i] == '"' && quoted && i + 1 < text.size() && text[i + 1] == '"') {
      item += text[i++];
    } else if (text[i] == '"' && (quoted || item.empty())) {
      quoted = !quoted;
    } else if (text[i] == ',' && !quoted) {
      items.emplace_back();
    } else {
      item += text[i];
    }
  }
  return items;
}

Result<MetadataOverride> ParseOverride(const std::string& item) {
  const auto refused = [&item](std::string_view why) {
    return InvalidArgument(fmt::format("override-kv takes KEY=TYPE:VALUE, and \"{}\" {}", Escaped(item, 200), why));
  };
  const size_t equals = item.find('='), colon = item.find(':', equals == std::string::npos ? 0 : equals);
  if (equals == std::string::npos || equals == 0 || colon == std::string::npos) return refused("is none of that");
  const std::string type = item.substr(equals + 1, colon - equals - 1), value = item.substr(colon + 1);
  MetadataOverride made{.key = item.substr(0, equals), .value = int64_t{0}};
  if (made.key.size() > kMostBytes) return refused(fmt::format("has a key of more than {} bytes", kMostBytes));
  if (type == "int") {
    const auto number = ParseNumber<int64_t>(value);
    if (!number) return refused("has no whole number");
    made.value = *number;
  } else if (type == "float") {
    const auto number = ParseNumber<double>(value);
    if (!number) return refused("has no number");
    made.value = *number;
  } else if (type == "bool") {
    if (value != "true" && value != "false") return refused("has neither true nor false");
    made.value = value == "true";
  } else if (type == "str") {
    if (value.size() > kMostBytes) return refused(fmt::format("has a text of more than {} bytes", kMostBytes));
    made.value = value;
  } else {
    return refused(fmt::format("has the type {}: there are int, float, bool and str", Escaped(type, 40)));
  }
  return made;
}

std::string TextOf(const MetadataOverride& one) {
  if (const auto* text = std::get_if<std::string>(&one.value)) return *text;
  if (const auto* yes = std::get_if<bool>(&one.value)) return *yes ? "true" : "false";
  if (const auto* number = std::get_if<double>(&one.value)) return fmt::format("{}", *number);
  return fmt::format("{}", std::get<int64_t>(one.value));
}

std::string WithKey(const MetadataOverride& one) {
  return fmt::format("{}={}:{}", one.key, kTypes[one.value.index()], TextOf(one));
}

std::string TextOf(const RopeOptions& rope) {
  if (rope == RopeOptions()) return {};
  return fmt::format("rope {} {} {} yarn {} {} {} {} {}", static_cast<int>(rope.scaling), rope.freq_base,
                     rope.freq_scale, rope.yarn_orig_ctx, rope.yarn_ext_factor, rope.yarn_attn_factor,
                     rope.yarn_beta_slow, rope.yarn_beta_fast);
}

// Of those that `wanted`, in any order the same.
template <typename Wanted>
std::string TextOf(const ModelOverrides& overrides, const Wanted& wanted) {
  std::set<std::string> items;
  for (const MetadataOverride& one : overrides.metadata) {
    if (wanted(one.key) && overrides.Find(one.key) == &one) items.insert(WithKey(one));
  }
  std::string text = TextOf(overrides.rope);
  for (const std::string& item : items) text += fmt::format("|{}:{}", item.size(), item);
  return text;
}

// The index of what an override of this type would be.
std::optional<size_t> TypeOf(gguf_type type) {
  switch (type) {
    case GGUF_TYPE_BOOL:
      return 2;
    case GGUF_TYPE_STRING:
      return 3;
    case GGUF_TYPE_FLOAT32:
    case GGUF_TYPE_FLOAT64:
      return 1;
    case GGUF_TYPE_ARRAY:
      return std::nullopt;
    default:
      return 0;
  }
}

// As snprintf.
template <typename Write>
std::string TextOfCall(const Write& write) {
  std::string text(static_cast<size_t>(std::max(write(nullptr, size_t{0}), 0)), '\0');
  (void)write(text.data(), text.size() + 1);
  return text;
}

constexpr double kMostFactor = 1e4;

// A factor from 1 / kMostFactor on.
Status SetFactor(std::string_view name, std::string_view value, float& to) {
  const auto number = ParseNumber<double>(value);
  if (!number || *number < 1 / kMostFactor || *number > kMostFactor) {
    return InvalidArgument(fmt::format("{} takes a number from {:g} to {:g}", name, 1 / kMostFactor, kMostFactor));
  }
  to = static_cast<float>(*number);
  return {};
}

Status SetFrequencyScale(std::string_view name, std::string_view value, RopeOptions& rope) {
  if (name == "rope-freq-scale" && ParseNumber<double>(value) == 0) return {};  // the file's, as in llama.cpp
  float scale = 0;
  PITH_RETURN_IF_ERROR(SetFactor(name, value, scale));
  if (name == "rope-scale") scale = 1.0f / scale;  // as llama.cpp, so that it is the same number
  if (rope.freq_scale != 0 && rope.freq_scale != scale) {
    return InvalidArgument("rope-scale N is rope-freq-scale 1/N: one of them is enough");
  }
  rope.freq_scale = scale;
  return {};
}

// Negative: the file's.
Status SetYarn(std::string_view name, std::string_view value, bool may_be_zero, float& to) {
  const auto number = ParseNumber<float>(value);
  if (!number || *number > static_cast<float>(kMostFactor) || (*number == 0 && !may_be_zero)) {
    return InvalidArgument(fmt::format("{} takes a number {} to {:g}, or -1 for the file's", name,
                                       may_be_zero ? "from 0" : "above 0, up", kMostFactor));
  }
  to = *number < 0 ? -1 : *number;
  return {};
}

}  // namespace

const std::array<RopeSetting, 9> kRopeSettings = {{
    {"rope-scaling", "{none,linear,yarn}",
     "RoPE frequency scaling method (default: the model's, linear where it names none)"},
    {"rope-scale", "N", "RoPE context scaling factor: expands the context by a factor of N"},
    {"rope-freq-base", "N", "RoPE base frequency, used by NTK-aware scaling (default: the model's)"},
    {"rope-freq-scale", "N", "RoPE frequency scaling factor: expands the context by a factor of 1/N"},
    {"yarn-orig-ctx", "N",
     "YaRN: original context size of the model (default 0: the model's); with --rope-scale N, the context it is then "
     "trained for is N times that"},
    {"yarn-ext-factor", "N", "YaRN: extrapolation mix factor, 0 for full interpolation (default -1: the model's)"},
    {"yarn-attn-factor", "N", "YaRN: scale sqrt(t) or attention magnitude (default -1: the model's)"},
    {"yarn-beta-slow", "N", "YaRN: high correction dim or alpha (default -1: the model's)"},
    {"yarn-beta-fast", "N", "YaRN: low correction dim or beta (default -1: the model's)"},
}};

const MetadataOverride* ModelOverrides::Find(std::string_view key) const {
  const auto at = std::ranges::find(metadata, key, &MetadataOverride::key);
  return at == metadata.end() ? nullptr : &*at;
}

Result<std::vector<MetadataOverride>> ParseMetadataOverrides(std::string_view text) {
  std::vector<MetadataOverride> all;
  for (const std::string& item : SplitItems(text)) {
    PITH_ASSIGN_OR_RETURN(MetadataOverride one, ParseOverride(item));
    all.push_back(std::move(one));
  }
  return all;
}

Status SetRope(std::string_view name, std::string_view value, RopeOptions& rope) {
  if (name == "rope-scaling") {
    constexpr std::string_view kNames[] = {"none", "linear", "yarn"};
    const auto at = std::ranges::find(kNames, value);
    if (at == std::end(kNames)) {
      return InvalidArgument(
          fmt::format("rope-scaling takes none, linear or yarn, not \"{}\"", Escaped(std::string(value), 40)));
    }
    rope.scaling = static_cast<RopeScaling>(at - std::begin(kNames));
    return {};
  }
  if (name == "rope-scale" || name == "rope-freq-scale") return SetFrequencyScale(name, value, rope);
  if (name == "rope-freq-base") {
    constexpr float kMostBase = 1e12f;
    const auto number = ParseNumber<float>(value);
    if (!number || (*number <= 1 && *number != 0) || *number > kMostBase) {
      return InvalidArgument(
          fmt::format("rope-freq-base takes a number above 1, up to {:g}, or 0 for the file's", kMostBase));
    }
    rope.freq_base = *number;
    return {};
  }
  if (name == "yarn-orig-ctx") {
    const auto number = ParseNumber<int>(value);
    if (!number || *number < 0)
      return InvalidArgument("yarn-orig-ctx takes a whole number of tokens, 0 for the file's");
    rope.yarn_orig_ctx = *number;
    return {};
  }
  if (name == "yarn-ext-factor") return SetYarn(name, value, true, rope.yarn_ext_factor);
  if (name == "yarn-attn-factor") return SetYarn(name, value, false, rope.yarn_attn_factor);
  if (name == "yarn-beta-slow") return SetYarn(name, value, false, rope.yarn_beta_slow);
  if (name == "yarn-beta-fast") return SetYarn(name, value, false, rope.yarn_beta_fast);
  std::string names;
  for (const RopeSetting& setting : kRopeSettings)
    names += fmt::format("{}{}", names.empty() ? "" : ", ", setting.name);
  return InvalidArgument(
      fmt::format("RoPE has no setting \"{}\": there are {}", Escaped(std::string(name), 40), names));
}

Result<RopeOptions> ParseRope(std::string_view text) {
  RopeOptions rope;
  for (size_t from = 0; from < text.size();) {
    const size_t end = std::min(text.find(',', from), text.size());
    const std::string_view item = text.substr(from, end - from);
    from = end + 1;
    const size_t equals = std::min(item.find('='), item.size());
    PITH_RETURN_IF_ERROR(SetRope(item.substr(0, equals), item.substr(std::min(equals + 1, item.size())), rope));
  }
  return rope;
}

std::string IdentityOf(const ModelOverrides& overrides) {
  return TextOf(overrides, [](std::string_view key) {
    return key == "general.architecture" || !(key.starts_with("general.") || key.starts_with("tokenizer."));
  });
}

std::string TextOf(const ModelOverrides& overrides) {
  return TextOf(overrides, [](std::string_view) { return true; });
}

Status CheckTypes(const ModelOverrides& overrides, const std::string& path) {
  if (overrides.metadata.empty()) return {};
  const GgufContextPtr gguf(gguf_init_from_file(path.c_str(), {.no_alloc = true, .ctx = nullptr}));
  if (gguf == nullptr) return {};  // libllama says why
  for (const MetadataOverride& one : overrides.metadata) {
    const int64_t at = gguf_find_key(gguf.get(), one.key.c_str());
    if (at < 0) continue;
    const std::optional<size_t> type = TypeOf(gguf_get_kv_type(gguf.get(), at));
    if (type == one.value.index()) continue;
    return InvalidArgument(fmt::format("the override of {} has the type {}, and {} has {} there", Escaped(one.key, 127),
                                       kTypes[one.value.index()], path,
                                       type ? kTypes[*type] : "a list, which none can replace"));
  }
  return {};
}

std::vector<llama_model_kv_override> LlamaOverrides(const ModelOverrides& overrides) {
  std::vector<llama_model_kv_override> all;
  for (const MetadataOverride& one : overrides.metadata) {
    llama_model_kv_override& to = all.emplace_back();
    one.key.copy(to.key, kMostBytes);
    if (const auto* text = std::get_if<std::string>(&one.value)) {
      to.tag = LLAMA_KV_OVERRIDE_TYPE_STR;
      text->copy(to.val_str, kMostBytes);
    } else if (const auto* yes = std::get_if<bool>(&one.value)) {
      to.tag = LLAMA_KV_OVERRIDE_TYPE_BOOL;
      to.val_bool = *yes;
    } else if (const auto* number = std::get_if<double>(&one.value)) {
      to.tag = LLAMA_KV_OVERRIDE_TYPE_FLOAT;
      to.val_f64 = *number;
    } else {
      to.tag = LLAMA_KV_OVERRIDE_TYPE_INT;
      to.val_i64 = std::get<int64_t>(one.value);
    }
  }
  all.emplace_back();
  return all;
}

std::string MetadataOf(const llama_model* model, const ModelOverrides& overrides, const char* key) {
  if (const MetadataOverride* one = overrides.Find(key); one != nullptr) return TextOf(*one);
  return TextOfCall([&](char* to, size_t size) { return llama_model_meta_val_str(model, key, to, size); });
}

std::vector<std::pair<std::string, std::string>> ListMetadataOf(const llama_model* model,
                                                                const ModelOverrides& overrides) {
  std::vector<std::pair<std::string, std::string>> all;
  for (int i = 0; i < llama_model_meta_count(model); ++i) {
    std::string key =
        TextOfCall([&](char* to, size_t size) { return llama_model_meta_key_by_index(model, i, to, size); });
    std::string value = MetadataOf(model, overrides, key.c_str());
    all.emplace_back(std::move(key), std::move(value));
  }
  for (const MetadataOverride& one : overrides.metadata) {
    if (std::ranges::find(all, one.key, &std::pair<std::string, std::string>::first) == all.end())
      all.emplace_back(one.key, TextOf(one));
  }
  return all;
}

}  // namespace pith
