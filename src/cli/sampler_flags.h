// Flags of sampling and of what is said to a model, as "pith run" and "pith chat" have them; names are llama.cpp's.
#ifndef PITH_CLI_SAMPLER_FLAGS_H_
#define PITH_CLI_SAMPLER_FLAGS_H_

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "cli/command.h"
#include "cli/options.h"
#include "host/sampler.h"
#include "pith/types.h"

namespace pith::cli {

struct SamplerFlags {
  SamplerOptions given;  // of flags that were given; the others have no meaning here
  int64_t seed = 0;      // < 0: from the system
  std::vector<std::string> logit_bias;
  std::string sequence;
  std::string grammar_file;
  std::string json_schema;
  std::string json_schema_file;
  std::vector<std::function<void(SamplerOptions&)>> overrides;  // each changes what its flag was given

  Status Check() const;
  // The model's defaults with what was given; fixes the seed. num_ctx: what -1 means to penalties.
  Result<SamplerOptions> Make(const HostModel& model, int num_ctx);
};
void AddSamplerFlags(CLI::App& command, SamplerFlags& flags);

// --system --chat-template-file --reverse-prompt --no-special-in-prompt
struct PromptFlags {
  std::string system;
  std::string system_file;
  std::string template_file;
  std::vector<std::string> stops;
  bool no_special = false;

  // Reads the files: the system message, and the chat template into `model`. kNotFound, kIo, kInvalidArgument.
  Status ReadFiles(ModelFlags& model);
};
void AddPromptFlags(CLI::App& command, PromptFlags& flags);

// "15043+1", "29905-inf": a token and what is added to its logit.
Result<std::pair<int32_t, float>> ParseLogitBias(const std::string& text);

}  // namespace pith::cli

#endif  // PITH_CLI_SAMPLER_FLAGS_H_
