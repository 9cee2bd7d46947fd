// What is taken in place of what a model's file says: metadata (llama.cpp's --override-kv), and how positions turn
// queries and keys (its --rope-... and --yarn-...).
//
// libllama applies overrides of metadata where it reads a file, but tells what the file has. So whoever asks for
// metadata asks MetadataOf(), and whoever makes a context takes ContextParams() (llama_util.h). How a layer turns its
// keys is read off the graph (rotation_probe.h), which follows from that.
#ifndef PITH_HOST_OVERRIDES_H_
#define PITH_HOST_OVERRIDES_H_

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "pith/types.h"

struct llama_model;
struct llama_model_kv_override;

namespace pith {

struct MetadataOverride {
  std::string key;
  std::variant<int64_t, double, bool, std::string> value;
};

enum class RopeScaling : int8_t { kOfFile = -1, kNone, kLinear, kYarn };

// As llama_context_params has them: what is not given is the file's.
struct RopeOptions {
  RopeScaling scaling = RopeScaling::kOfFile;
  float freq_base = 0;   // 0: the file's
  float freq_scale = 0;  // of angles, 1 / the factor by which a context grows; 0: the file's
  int yarn_orig_ctx = 0;
  float yarn_ext_factor = -1;  // below 0: the file's, as those that follow
  float yarn_attn_factor = -1;
  float yarn_beta_slow = -1;
  float yarn_beta_fast = -1;

  friend bool operator==(const RopeOptions&, const RopeOptions&) = default;
};

struct ModelOverrides {
  std::vector<MetadataOverride> metadata;  // of a key that is there twice the first counts, as in libllama
  RopeOptions rope;

  const MetadataOverride* Find(std::string_view key) const;  // null: none
};

// "KEY=TYPE:VALUE", several between commas, as llama.cpp takes them: an item in double quotes may have commas.
// kInvalidArgument: one sentence.
Result<std::vector<MetadataOverride>> ParseMetadataOverrides(std::string_view text);

struct RopeSetting {
  const char* name;  // llama.cpp's flag without its dashes
  const char* type;
  const char* help;
};
extern const std::array<RopeSetting, 9> kRopeSettings;

// One of kRopeSettings. kInvalidArgument: one sentence.
Status SetRope(std::string_view name, std::string_view value, RopeOptions& rope);
// "rope-scaling=yarn,rope-scale=4".
Result<RopeOptions> ParseRope(std::string_view text);

// The same for all that compute the same from the same tokens; empty where nothing of that is overridden. Tokenizer,
// template and what describes the file (general.*, but for the architecture) compute nothing.
std::string IdentityOf(const ModelOverrides& overrides);
// Of all of them.
std::string TextOf(const ModelOverrides& overrides);

// kInvalidArgument: the file has another type there, where libllama would take the file's value.
Status CheckTypes(const ModelOverrides& overrides, const std::string& path);

// As libllama takes them, with what ends them.
std::vector<llama_model_kv_override> LlamaOverrides(const ModelOverrides& overrides);

// Of a loaded model's metadata as text, with what stands in place of it; empty: there is none.
std::string MetadataOf(const llama_model* model, const ModelOverrides& overrides, const char* key);
// Keys and values, arrays left out.
std::vector<std::pair<std::string, std::string>> ListMetadataOf(const llama_model* model,
                                                                const ModelOverrides& overrides);

}  // namespace pith

#endif  // PITH_HOST_OVERRIDES_H_
