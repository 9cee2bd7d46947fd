#include "cli/sampler_flags.h"

#include <charconv>
#include <cmath>
#include <limits>
#include <random>
#include <utility>

#include <CLI/CLI.hpp>
#include <fmt/format.h>

#include "base/text.h"
#include "host/json_schema.h"

namespace pith::cli {
namespace {

// One flag for one member of SamplerOptions. The parser is gone when overrides are asked for.
class Adder {
 public:
  Adder(CLI::App& command, SamplerFlags& flags) : command_(command), flags_(flags) {}

  template <typename T>
  void operator()(const char* names, T SamplerOptions::*member, const char* type, const std::string& help) {
    const std::function<void(const T&)> take = [member, &flags = flags_](const T& value) {
      flags.given.*member = value;
      flags.overrides.push_back([member, value](SamplerOptions& options) { options.*member = value; });
    };
    command_.add_option_function<T>(names, take, help)->type_name(type)->allow_extra_args(false);
  }

 private:
  CLI::App& command_;
  SamplerFlags& flags_;
};

void AddPenaltyFlags(Adder& add) {
  add("--repeat-penalty", &SamplerOptions::repeat_penalty, "F",
      "Logits of recent tokens are divided by this, 1 for off (default: the model's own, 1.1 for SmolLM2, else 1)");
  add("--repeat-last-n", &SamplerOptions::repeat_last_n, "N",
      "Tokens of the answer that penalties look back on; 0: off, -1: the context (default: the model's own, 256 for "
      "SmolLM2, else 64)");
  add("--presence-penalty", &SamplerOptions::presence_penalty, "F", "Taken from logits of recent tokens (default 0)");
  add("--frequency-penalty", &SamplerOptions::frequency_penalty, "F",
      "Taken from logits of recent tokens for each time (default 0)");
  add("--dry-multiplier", &SamplerOptions::dry_multiplier, "F",
      "DRY: penalty of tokens that go on with a repetition (default 0: off)");
  add("--dry-base", &SamplerOptions::dry_base, "F", "DRY: grows with the repetition's length by this (default 1.75)");
  add("--dry-allowed-length", &SamplerOptions::dry_allowed_length, "N",
      "DRY: repetitions up to here are free (default 2)");
  add("--dry-penalty-last-n", &SamplerOptions::dry_last_n, "N",
      "DRY: tokens to look back; -1: the context (default 64)");
  add("--dry-sequence-breaker", &SamplerOptions::dry_breakers, "TEXT",
      "DRY: a repetition ends here; may be given more than once (default: line end, colon, quote, star)");
}

void AddShapeFlags(Adder& add) {
  add("--temp", &SamplerOptions::temperature, "T",
      "Temperature, 0 for greedy (default: the model's own, 0.2 for SmolLM2, which ships with pith, else 0.8)");
  add("--top-k", &SamplerOptions::top_k, "K",
      "Sample among the K likeliest tokens, 0 for all (default: the model's own, else 40)");
  add("--top-p", &SamplerOptions::top_p, "P",
      "Sample within this probability mass (default: the model's own, 0.9 for SmolLM2, else 0.95)");
  add("--min-p", &SamplerOptions::min_p, "P",
      "Least probability relative to the likeliest (default: the model's own, else 0.05)");
  add("--typical,--typical-p", &SamplerOptions::typical_p, "P", "Locally typical sampling, 1 for off (default 1)");
  add("--top-n-sigma,--top-nsigma", &SamplerOptions::top_n_sigma, "N",
      "Within N standard deviations of the likeliest logit, -1 for off (default -1)");
  add("--xtc-probability", &SamplerOptions::xtc_probability, "P",
      "XTC: how often top choices are left out (default 0)");
  add("--xtc-threshold", &SamplerOptions::xtc_threshold, "P", "XTC: all but the least of those above it (default 0.1)");
  add("--dynatemp-range", &SamplerOptions::dynatemp_range, "T",
      "Temperature moves so far with the entropy (default 0)");
  add("--dynatemp-exp", &SamplerOptions::dynatemp_exponent, "F", "How the entropy maps to it (default 1)");
  add("--mirostat", &SamplerOptions::mirostat, "N",
      "Mirostat 1 or 2 in place of what cuts the distribution (default 0: off)");
  add("--mirostat-ent", &SamplerOptions::mirostat_tau, "F", "Mirostat: entropy aimed at (default 5)");
  add("--mirostat-lr", &SamplerOptions::mirostat_eta, "F", "Mirostat: learning rate (default 0.1)");
}

}  // namespace

void AddSamplerFlags(CLI::App& command, SamplerFlags& flags) {
  Adder add(command, flags);
  AddShapeFlags(add);
  AddPenaltyFlags(add);
  command
      .add_option(
          "--samplers", flags.sequence,
          "Samplers in their order between semicolons (default penalties;dry;top_n_sigma;top_k;typ_p;top_p;min_p;"
          "xtc;temperature, or the model's own)")
      ->type_name("NAMES");
  command.add_option("-s,--seed", flags.seed,
                     "Seed of sampling (default 0: the same command gives the same text; -1: another one each time)")
      ->type_name("SEED");
  command
      .add_option("--logit-bias", flags.logit_bias,
                  "-l: token and what is added to its logit, such as 15043+1 or 29905-inf; may be given more than once")
      ->type_name("TOKEN+BIAS")
      ->allow_extra_args(false);
  add("--grammar", &SamplerOptions::grammar, "GBNF", "The answer keeps to this grammar");
  command.add_option("--grammar-file", flags.grammar_file, "The same from a file")->type_name("FILE");
  command.add_option("-j,--json-schema", flags.json_schema, "The answer is JSON of this schema ({} for any)")
      ->type_name("SCHEMA");
  command.add_option("--json-schema-file", flags.json_schema_file, "-jf: the same from a file")->type_name("FILE");
  command.add_flag("--ignore-eos", flags.given.ignore_eos, "Generate up to -n tokens, whatever the model thinks");
}

Result<std::pair<int32_t, float>> ParseLogitBias(const std::string& text) {
  const auto bad = [&text] {
    return InvalidArgument(
        fmt::format("--logit-bias takes a token and a number, such as 15043+1 or 29905-inf, not \"{}\"", text));
  };
  const char* end = text.data() + text.size();
  int32_t token = 0;
  const auto [sign, error] = std::from_chars(text.data(), end, token);
  if (error != std::errc() || token < 0 || sign == end || (*sign != '+' && *sign != '-')) return bad();
  float bias = 0;
  const auto [last, wrong] = std::from_chars(sign + 1, end, bias);
  if (wrong != std::errc() || last != end || std::isnan(bias) || std::signbit(bias)) return bad();
  if (*sign == '+' && std::isinf(bias)) return bad();
  return std::pair(token, *sign == '-' ? -bias : bias);
}

Status SamplerFlags::Check() const {
  PITH_RETURN_IF_ERROR(CheckSampling(given));
  for (const std::string& text : logit_bias) PITH_RETURN_IF_ERROR(ParseLogitBias(text));
  PITH_RETURN_IF_ERROR(ParseSequence(sequence));
  const int num_grammars = int{!given.grammar.empty()} + int{!grammar_file.empty()} + int{!json_schema.empty()} +
                           int{!json_schema_file.empty()};
  if (num_grammars > 1) return InvalidArgument("an answer keeps to one grammar or schema: give one of them");
  if (seed < -1 || seed > std::numeric_limits<uint32_t>::max()) {
    return InvalidArgument("--seed takes a whole number from 0 to 4294967295, or -1");
  }
  return {};
}

Result<SamplerOptions> SamplerFlags::Make(const HostModel& model, int num_ctx) {
  SamplerOptions options = SamplingDefaults(model);
  for (const auto& override_by : overrides) override_by(options);
  options.ignore_eos = given.ignore_eos;
  if (!sequence.empty()) {
    PITH_ASSIGN_OR_RETURN(options.sequence, ParseSequence(sequence));
  }
  for (const std::string& text : logit_bias) {
    PITH_ASSIGN_OR_RETURN(const auto bias, ParseLogitBias(text));
    options.logit_bias.push_back(bias);
  }
  if (!grammar_file.empty()) {
    PITH_ASSIGN_OR_RETURN(options.grammar, ReadFile(grammar_file));
  }
  std::string schema = json_schema;
  if (!json_schema_file.empty()) {
    PITH_ASSIGN_OR_RETURN(schema, ReadFile(json_schema_file));
  }
  if (!schema.empty()) {
    PITH_ASSIGN_OR_RETURN(options.grammar, GrammarOfJsonSchema(schema));
  }
  if (seed < 0) seed = std::random_device{}();
  options.seed = static_cast<uint32_t>(seed);
  options.repeat_context = num_ctx;
  return options;
}

void AddPromptFlags(CLI::App& command, PromptFlags& flags) {
  command.add_option("--system,--system-prompt", flags.system, "-sys: system message, pinned in the cache")
      ->type_name("TEXT");
  command.add_option("--system-prompt-file", flags.system_file, "-sysf: the same from a file")->type_name("FILE");
  command.add_option("--chat-template-file", flags.template_file, "Chat template from a file, as --chat-template")
      ->type_name("FILE");
  command.add_option("-r,--reverse-prompt", flags.stops,
                     "The answer ends before this text; may be given more than once")
      ->type_name("TEXT")
      ->allow_extra_args(false);
  command.add_flag("--no-special-in-prompt", flags.no_special,
                   "Control tokens in a prompt or message, such as <|im_end|>, are read as text");
}

Status PromptFlags::ReadFiles(ModelFlags& model) {
  if (!template_file.empty()) {
    if (!model.chat_template.empty()) return InvalidArgument("give --chat-template or --chat-template-file, not both");
    PITH_ASSIGN_OR_RETURN(model.chat_template, ReadFile(template_file));
    if (model.chat_template.empty())
      return InvalidArgument(fmt::format("the chat template {} is empty", template_file));
  }
  if (!system_file.empty()) {
    if (!system.empty()) return InvalidArgument("give --system or --system-prompt-file, not both");
    PITH_ASSIGN_OR_RETURN(system, ReadFile(system_file));
  }
  for (const std::string& stop : stops) PITH_RETURN_IF_ERROR(RequireUtf8(stop, "a reverse prompt"));
  return RequireUtf8(system, "the system prompt");
}

}  // namespace pith::cli
