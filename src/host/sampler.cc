#include "host/sampler.h"

#include <time.h>

#include <algorithm>
#include <cctype>
#include <charconv>
#include <cmath>
#include <exception>
#include <iterator>
#include <limits>
#include <string_view>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "host/grammar_bounds.h"
#include "host/grammar_guard.h"
#include "host/llama_util.h"
#include "host/model.h"

namespace pith {
namespace {

// Processor time that a grammar may take to accept one token. Of an ambiguous one libllama holds more with each
// character, several times as much; milliseconds are plenty for others.
constexpr double kSlowestSeconds = 0.02;
// What it may take in a whole text, and stacks times tokens of the vocabulary where it has to look at all of them.
constexpr double kMostSeconds = 30;
constexpr double kMostLookedAt = 1e8;
constexpr const char* kTooSlow = "the grammar takes too long: too many of its rules fit the same text";

double ThreadSeconds() {
  timespec now{};
  ::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

std::string Metadata(const HostModel& model, const char* key) {
  return MetadataOf(model.handle(), model.info().overrides, key);
}

template <typename T>
void TakeNumber(const HostModel& model, llama_model_meta_key key, T& value) {
  const std::string text = Metadata(model, llama_model_meta_key_str(key));
  T number{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error == std::errc() && end != text.data()) value = number;
}

// The model card of SmolLM2 says temperature 0.2 and top-p 0.9. With these the smallest one falls into loops, of whole
// paragraphs, too (scripts/first_questions.py), which a mild penalty ends that looks back far enough.
bool IsSmolLm2(const HostModel& model) {
  std::string name = Metadata(model, "general.basename") + " " + Metadata(model, "general.name");
  std::ranges::transform(name, name.begin(), [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return name.find("smollm2") != std::string::npos && model.has_chat_template();
}

Status CheckRange(double value, double low, double high, std::string_view flag) {
  if (std::isfinite(value) && value >= low && value <= high) return {};
  return InvalidArgument(fmt::format("{} takes a number from {:g} to {:g}", flag, low, high));
}

// What libllama takes for "draw a seed of your own": here every seed is one. Any other number in its place will do.
constexpr uint32_t kOtherSeed = 0x9e3779b9;

// libllama makes room for as many tokens as it is told, whether they come or not.
constexpr int kMostLookBack = 1 << 16;

int LookBack(int last_n, const SamplerOptions& options) {
  return last_n < 0 ? options.repeat_context : std::min(last_n, std::max(options.repeat_context, kMostLookBack));
}

}  // namespace

SamplerOptions SamplingDefaults(const HostModel& model) {
  SamplerOptions options;
  if (IsSmolLm2(model)) {
    options.temperature = 0.2f;
    options.top_p = 0.9f;
    options.repeat_penalty = 1.1f;
    options.repeat_last_n = 256;
  }
  TakeNumber(model, LLAMA_MODEL_META_KEY_SAMPLING_TEMP, options.temperature);
  TakeNumber(model, LLAMA_MODEL_META_KEY_SAMPLING_TOP_K, options.top_k);
  TakeNumber(model, LLAMA_MODEL_META_KEY_SAMPLING_TOP_P, options.top_p);
  TakeNumber(model, LLAMA_MODEL_META_KEY_SAMPLING_MIN_P, options.min_p);
  TakeNumber(model, LLAMA_MODEL_META_KEY_SAMPLING_XTC_PROBABILITY, options.xtc_probability);
  TakeNumber(model, LLAMA_MODEL_META_KEY_SAMPLING_XTC_THRESHOLD, options.xtc_threshold);
  TakeNumber(model, LLAMA_MODEL_META_KEY_SAMPLING_PENALTY_LAST_N, options.repeat_last_n);
  TakeNumber(model, LLAMA_MODEL_META_KEY_SAMPLING_PENALTY_REPEAT, options.repeat_penalty);
  TakeNumber(model, LLAMA_MODEL_META_KEY_SAMPLING_MIROSTAT, options.mirostat);
  TakeNumber(model, LLAMA_MODEL_META_KEY_SAMPLING_MIROSTAT_TAU, options.mirostat_tau);
  TakeNumber(model, LLAMA_MODEL_META_KEY_SAMPLING_MIROSTAT_ETA, options.mirostat_eta);
  const std::string sequence = Metadata(model, llama_model_meta_key_str(LLAMA_MODEL_META_KEY_SAMPLING_SEQUENCE));
  if (auto parsed = ParseSequence(sequence); parsed && !parsed->empty()) options.sequence = std::move(*parsed);
  return CheckSampling(options) ? options : SamplerOptions();
}

Result<std::vector<std::string>> ParseSequence(const std::string& text) {
  // As llama.cpp writes them, with a dash or without anything in place of "_", too.
  std::vector<std::string> known = SamplerOptions().sequence;
  known.emplace_back("infill");  // in none but those that name it
  const std::pair<std::string_view, std::string_view> others[] = {
      {"nucleus", "top_p"}, {"temp", "temperature"}, {"typ", "typ_p"}, {"typical", "typ_p"}};
  std::vector<std::string> sequence;
  for (size_t from = 0; from < text.size();) {
    const size_t end = std::min(text.find(';', from), text.size());
    std::string name = text.substr(from, end - from);
    from = end + 1;
    std::ranges::transform(name, name.begin(), [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
    const auto is_meant = [&name](std::string one) {
      if (name == one) return true;
      std::string dashed = one;
      std::ranges::replace(dashed, '_', '-');
      std::erase(one, '_');
      return name == dashed || name == one;
    };
    const auto other =
        std::ranges::find(others, std::string_view(name), &std::pair<std::string_view, std::string_view>::first);
    if (other != std::end(others)) name = other->second;
    const auto found = std::ranges::find_if(known, is_meant);
    if (found == known.end())
      return InvalidArgument(fmt::format("\"{}\" is no sampler; llama.cpp's are {}", name, fmt::join(known, ", ")));
    sequence.push_back(*found);
  }
  return sequence;
}

Status CheckSampling(const SamplerOptions& options) {
  constexpr double kMany = std::numeric_limits<int>::max();
  constexpr double kLarge = 1e6;
  const struct {
    double value, low, high;
    std::string_view flag;
  } ranges[] = {
      {options.temperature, 0, 100, "--temp"},
      {options.dynatemp_range, 0, 100, "--dynatemp-range"},
      {options.dynatemp_exponent, 0, 100, "--dynatemp-exp"},
      {static_cast<double>(options.top_k), 0, kMany, "--top-k"},
      {options.top_p, 0, 1, "--top-p"},
      {options.min_p, 0, 1, "--min-p"},
      {options.typical_p, 0, 1, "--typical"},
      {options.top_n_sigma, -1, kLarge, "--top-n-sigma"},
      {options.xtc_probability, 0, 1, "--xtc-probability"},
      {options.xtc_threshold, 0, 1, "--xtc-threshold"},
      {static_cast<double>(options.repeat_last_n), -1, kMany, "--repeat-last-n"},
      {options.repeat_penalty, 1e-3, 1e3, "--repeat-penalty"},
      {options.presence_penalty, -kLarge, kLarge, "--presence-penalty"},
      {options.frequency_penalty, -kLarge, kLarge, "--frequency-penalty"},
      {options.dry_multiplier, 0, kLarge, "--dry-multiplier"},
      {options.dry_base, 0, kLarge, "--dry-base"},
      {static_cast<double>(options.dry_allowed_length), 0, kMany, "--dry-allowed-length"},
      {static_cast<double>(options.dry_last_n), -1, kMany, "--dry-penalty-last-n"},
      {static_cast<double>(options.mirostat), 0, 2, "--mirostat"},
      {options.mirostat_tau, 0, kLarge, "--mirostat-ent"},
      {options.mirostat_eta, 0, kLarge, "--mirostat-lr"},
  };
  for (const auto& range : ranges) PITH_RETURN_IF_ERROR(CheckRange(range.value, range.low, range.high, range.flag));
  return {};
}

// The softmax over what the chain left. greedy: it took the likeliest of all, which no other could have been.
void ReadProbabilities(const llama_token_data_array& array, bool is_greedy, int num_top,
                       std::vector<TokenProbability>& drawn_from) {
  const llama_token_data chosen = array.data[array.selected];
  drawn_from.assign(1, {chosen.id, 1.0f});
  if (is_greedy) {
    if (num_top > 0) drawn_from.push_back(drawn_from.front());
    return;
  }
  std::vector<llama_token_data> left(array.data, array.data + array.size);
  std::erase_if(left, [](const llama_token_data& one) { return !std::isfinite(one.logit); });
  const auto is_before = [](const llama_token_data& a, const llama_token_data& b) {
    return a.logit != b.logit ? a.logit > b.logit : a.id < b.id;
  };
  const size_t count = std::min(left.size(), static_cast<size_t>(std::max(num_top, 1)));
  std::partial_sort(left.begin(), left.begin() + static_cast<std::ptrdiff_t>(count), left.end(), is_before);
  double sum = 0;
  const auto weight = [&](float logit) { return std::exp(static_cast<double>(logit - left.front().logit)); };
  for (const llama_token_data& one : left) sum += weight(one.logit);
  drawn_from.front().probability = static_cast<float>(weight(chosen.logit) / sum);
  for (size_t i = 0; i < std::min(count, static_cast<size_t>(num_top)); ++i) {
    const auto probability = static_cast<float>(weight(left[i].logit) / sum);
    if (probability > 0) drawn_from.push_back({left[i].id, probability});
  }
}

struct HostSampler::Private {
  LlamaSamplerPtr bias;       // null: none
  LlamaSamplerPtr penalties;  // where they come first; likewise
  LlamaSamplerPtr grammar;
  std::unique_ptr<GrammarGuard> guard;  // of the grammar
  double grammar_seconds = 0;           // of processor time, in this text
  LlamaSamplerPtr chain;      // the rest, which selects
  std::vector<llama_sampler*> restarted;     // those of the chain that a new generation begins anew
  std::vector<llama_token_data> seen;        // of the tokens in `recent`, each once
  std::vector<int32_t> recent;               // ring of the tokens that penalties look back on
  size_t num_recent_max = 0;
  size_t next_recent = 0;
  bool is_greedy = false;
  // While Sample() is asked for them.
  std::vector<TokenProbability>* drawn_from = nullptr;
  int num_top = 0;

  Status MakeBias(const HostModel& model, const SamplerOptions& options);
  Status MakeGrammar(const HostModel& model, const SamplerOptions& options);
  static llama_sampler* Make(const std::string& name, const HostModel& model, const SamplerOptions& options);
  void MakeChain(const HostModel& model, const SamplerOptions& options);

  static llama_token_data_array Candidates(std::span<const float> logits);
  void Penalise(llama_token_data_array& array);
  Result<int32_t> Choose(std::span<const float> logits, bool by_grammar);
  Result<int32_t> ChooseByGrammar(const HostModel& model, std::span<const float> logits);
  void Accept(int32_t token);
};

Status HostSampler::Private::MakeBias(const HostModel& model, const SamplerOptions& options) {
  const int32_t num_vocab = model.info().num_vocab;
  std::vector<llama_logit_bias> biases;
  for (const auto& [token, value] : options.logit_bias) {
    if (token < 0 || token >= num_vocab) {
      return InvalidArgument(
          fmt::format("--logit-bias names token {}, and the vocabulary ends before {}", token, num_vocab));
    }
    biases.push_back({token, value});
  }
  int32_t num_suppressed = 0;  // by the file itself
  const llama_token* suppressed =
      llama_vocab_get_suppress_tokens(llama_model_get_vocab(model.handle()), &num_suppressed);
  constexpr float kNever = -std::numeric_limits<float>::infinity();
  for (int32_t i = 0; i < num_suppressed; ++i) biases.push_back({suppressed[i], kNever});
  for (int32_t token = 0; options.ignore_eos && token < num_vocab; ++token) {
    if (model.IsEndOfGeneration(token)) biases.push_back({token, kNever});
  }
  if (!biases.empty()) {
    bias.reset(llama_sampler_init_logit_bias(num_vocab, static_cast<int32_t>(biases.size()), biases.data()));
  }
  return {};
}

Status HostSampler::Private::MakeGrammar(const HostModel& model, const SamplerOptions& options) {
  if (options.grammar.empty()) return {};
  PITH_RETURN_IF_ERROR(CheckGrammarBounds(options.grammar));
  guard = GrammarGuard::Parse(options.grammar);
  if (guard == nullptr) return InvalidArgument("the grammar is not valid GBNF with a rule \"root\"");
  if (!guard->Start()) return InvalidArgument(kTooSlow);
  try {
    grammar.reset(llama_sampler_init_grammar(llama_model_get_vocab(model.handle()), options.grammar.c_str(), "root"));
  } catch (const std::exception&) {
    grammar.reset();
  }
  if (grammar) return {};
  return InvalidArgument("the grammar is not valid GBNF with a rule \"root\"");
}

// Null: it would do nothing.
llama_sampler* HostSampler::Private::Make(const std::string& name, const HostModel& model,
                                          const SamplerOptions& options) {
  if (name == "penalties") {
    const bool is_on = options.repeat_penalty != 1 || options.presence_penalty != 0 || options.frequency_penalty != 0;
    const int last_n = LookBack(options.repeat_last_n, options);
    if (!is_on || last_n == 0) return nullptr;
    return llama_sampler_init_penalties(model.info().num_vocab, last_n, options.repeat_penalty,
                                        options.frequency_penalty, options.presence_penalty);
  }
  if (name == "dry") {
    const int last_n = LookBack(options.dry_last_n, options);
    if (options.dry_multiplier == 0 || options.dry_base < 1 || last_n == 0) return nullptr;
    std::vector<const char*> breakers;
    for (const std::string& breaker : options.dry_breakers) breakers.push_back(breaker.c_str());
    return llama_sampler_init_dry(llama_model_get_vocab(model.handle()), options.dry_multiplier, options.dry_base,
                                  options.dry_allowed_length, last_n, breakers.data(), breakers.size());
  }
  if (name == "top_n_sigma")
    return options.top_n_sigma > 0 ? llama_sampler_init_top_n_sigma(options.top_n_sigma) : nullptr;
  if (name == "top_k") return options.top_k > 0 ? llama_sampler_init_top_k(options.top_k) : nullptr;
  if (name == "typ_p") return options.typical_p < 1 ? llama_sampler_init_typical(options.typical_p, 1) : nullptr;
  if (name == "top_p") return options.top_p < 1 ? llama_sampler_init_top_p(options.top_p, 1) : nullptr;
  if (name == "min_p") return options.min_p > 0 ? llama_sampler_init_min_p(options.min_p, 1) : nullptr;
  if (name == "xtc") {
    if (options.xtc_probability <= 0) return nullptr;
    return llama_sampler_init_xtc(options.xtc_probability, options.xtc_threshold, 1, options.seed);
  }
  if (name == "infill") return llama_sampler_init_infill(llama_model_get_vocab(model.handle()));
  return llama_sampler_init_temp_ext(options.temperature, options.dynatemp_range, options.dynatemp_exponent);
}

void HostSampler::Private::MakeChain(const HostModel& model, const SamplerOptions& given) {
  SamplerOptions options = given;
  if (options.seed == LLAMA_DEFAULT_SEED) options.seed = kOtherSeed;
  chain.reset(llama_sampler_chain_init(llama_sampler_chain_default_params()));
  const auto add = [this](llama_sampler* sampler) { llama_sampler_chain_add(chain.get(), sampler); };
  if (options.mirostat > 0 && options.temperature > 0) {
    add(llama_sampler_init_temp(options.temperature));
    add(options.mirostat == 1
            ? llama_sampler_init_mirostat(model.info().num_vocab, options.seed, options.mirostat_tau,
                                          options.mirostat_eta, 100)
            : llama_sampler_init_mirostat_v2(options.seed, options.mirostat_tau, options.mirostat_eta));
    return;
  }
  // Of the others only two may take away the likeliest token.
  is_greedy = options.temperature <= 0 && options.typical_p >= 1 && options.xtc_probability <= 0;
  for (const std::string& name : options.sequence) {
    const bool looks_back = name == "penalties" || name == "dry";
    if (is_greedy && !looks_back) continue;
    llama_sampler* sampler = Make(name, model, options);
    if (sampler == nullptr) continue;
    if (name == "penalties" && llama_sampler_chain_n(chain.get()) == 0) {
      penalties.reset(sampler);
      num_recent_max = static_cast<size_t>(LookBack(options.repeat_last_n, options));
      continue;
    }
    add(sampler);
    if (looks_back) restarted.push_back(sampler);
  }
  add(is_greedy ? llama_sampler_init_greedy() : llama_sampler_init_dist(options.seed));
}

HostSampler::HostSampler(const HostModel& model) : model_(model), private_(std::make_unique<Private>()) {}
HostSampler::~HostSampler() = default;

Result<std::unique_ptr<HostSampler>> HostSampler::Create(const HostModel& model, const SamplerOptions& options) {
  PITH_RETURN_IF_ERROR(CheckSampling(options));
  std::unique_ptr<HostSampler> sampler(new HostSampler(model));
  Private& made = *sampler->private_;
  PITH_RETURN_IF_ERROR(made.MakeBias(model, options));
  PITH_RETURN_IF_ERROR(made.MakeGrammar(model, options));
  made.MakeChain(model, options);
  return sampler;
}

// Of the calling thread: samplers of requests that wait would each hold one otherwise, 3 MiB with 256,000 tokens.
llama_token_data_array HostSampler::Private::Candidates(std::span<const float> logits) {
  thread_local std::vector<llama_token_data> candidates;  // [vocab], reused
  candidates.resize(logits.size());
  for (size_t i = 0; i < logits.size(); ++i) candidates[i] = {static_cast<llama_token>(i), logits[i], 0.0f};
  return {candidates.data(), candidates.size(), -1, false};
}

// libllama's penalties look for each token of the vocabulary among the recent ones, which costs more than a small
// model's attention: they get the recent ones alone. Token i is candidate i here.
void HostSampler::Private::Penalise(llama_token_data_array& array) {
  if (!penalties || recent.empty()) return;
  seen.clear();
  for (const int32_t token : recent) seen.push_back(array.data[token]);
  std::ranges::sort(seen, {}, &llama_token_data::id);
  const auto is_same = [](const llama_token_data& a, const llama_token_data& b) { return a.id == b.id; };
  seen.erase(std::unique(seen.begin(), seen.end(), is_same), seen.end());
  llama_token_data_array few{seen.data(), seen.size(), -1, false};
  llama_sampler_apply(penalties.get(), &few);
  for (const llama_token_data& one : seen) array.data[one.id].logit = one.logit;
}

Result<int32_t> HostSampler::Private::Choose(std::span<const float> logits, bool by_grammar) {
  llama_token_data_array array = Candidates(logits);
  if (bias) llama_sampler_apply(bias.get(), &array);
  if (by_grammar) {
    llama_sampler_apply(grammar.get(), &array);
    const auto is_allowed = [](const llama_token_data& one) { return std::isfinite(one.logit); };
    if (!std::any_of(array.data, array.data + array.size, is_allowed)) {
      return Unsupported("the grammar allows none of the model's tokens here");
    }
  }
  Penalise(array);
  llama_sampler_apply(chain.get(), &array);
  if (array.selected < 0) return Unsupported("libllama's samplers left no token to choose from");
  if (drawn_from != nullptr) ReadProbabilities(array, is_greedy, num_top, *drawn_from);
  return array.data[array.selected].id;
}

void HostSampler::Private::Accept(int32_t token) {
  if (grammar) llama_sampler_accept(grammar.get(), token);
  if (penalties) {
    llama_sampler_accept(penalties.get(), token);
    if (recent.size() < num_recent_max) {
      recent.push_back(token);
    } else {
      recent[next_recent] = token;
      next_recent = (next_recent + 1) % num_recent_max;
    }
  }
  llama_sampler_accept(chain.get(), token);
}

// As llama.cpp does it: grammars are slow over a whole vocabulary, and most tokens fit without being asked to.
Result<int32_t> HostSampler::Private::ChooseByGrammar(const HostModel& model, std::span<const float> logits) {
  const double start = ThreadSeconds();
  PITH_ASSIGN_OR_RETURN(int32_t token, Choose(logits, false));
  llama_token_data one{token, 1.0f, 0.0f};
  llama_token_data_array only{&one, 1, -1, false};
  llama_sampler_apply(grammar.get(), &only);
  if (!std::isfinite(one.logit)) {
    const double looked_at = static_cast<double>(guard->num_stacks()) * static_cast<double>(logits.size());
    if (looked_at > kMostLookedAt) return Unsupported(kTooSlow);
    PITH_ASSIGN_OR_RETURN(token, Choose(logits, true));
  }
  if (!model.IsEndOfGeneration(token) && !guard->Accept(model.Piece(token))) return Unsupported(kTooSlow);
  const double accepts = ThreadSeconds();
  Accept(token);
  const double end = ThreadSeconds();
  grammar_seconds += end - start;
  if (end - accepts > kSlowestSeconds || grammar_seconds > kMostSeconds) return Unsupported(kTooSlow);
  return token;
}

Result<int32_t> HostSampler::Sample(std::span<const float> logits) {
  const auto num_vocab = static_cast<size_t>(model_.info().num_vocab);
  if (logits.size() != num_vocab)
    return InvalidArgument(fmt::format("there are {} logits, and the model has {} tokens", logits.size(), num_vocab));
  try {
    if (private_->grammar) return private_->ChooseByGrammar(model_, logits);
    PITH_ASSIGN_OR_RETURN(const int32_t token, private_->Choose(logits, false));
    private_->Accept(token);
    return token;
  } catch (const std::exception& error) {
    return Unsupported(fmt::format("libllama's sampler failed: {}", error.what()));
  }
}

Result<int32_t> HostSampler::Sample(std::span<const float> logits, int num_top,
                                    std::vector<TokenProbability>& drawn_from) {
  private_->drawn_from = &drawn_from;
  private_->num_top = num_top;
  Result<int32_t> token = Sample(logits);
  private_->drawn_from = nullptr;
  return token;
}

void HostSampler::StartOver() {
  if (private_->grammar) {
    llama_sampler_reset(private_->grammar.get());
    (void)private_->guard->Start();
    private_->grammar_seconds = 0;
  }
  if (private_->penalties) llama_sampler_reset(private_->penalties.get());
  for (llama_sampler* sampler : private_->restarted) llama_sampler_reset(sampler);
  private_->recent.clear();
  private_->next_recent = 0;
}

}  // namespace pith
