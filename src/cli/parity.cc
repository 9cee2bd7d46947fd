// pith parity: the same logits as libllama?
//
// Three readers go through the same tokens in the same blocks: pith with the
// recipe `full`, libllama with flash attention off (the reference) and libllama
// with flash attention on (whose distance from the reference is the noise
// floor). After each block the rows are compared and forgotten, so that memory
// is three blocks of logits. The last tokens are decoded one by one.
#include <algorithm>
#include <memory>
#include <span>
#include <utility>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "base/json_text.h"
#include "base/logits.h"
#include "cli/command.h"
#include "cli/terminal.h"
#include "lab/measure.h"

namespace pith::cli {
namespace {

constexpr const char* kParityExamples = R"(
The reference is libllama with flash attention off; libllama with flash attention on against it is the noise floor.
The bounds: on weights without activation quantisation (F32, F16, BF16) a mean KL of at most 1e-5 and top-1 agreement
of at least 99.9%; on quantised weights at most twice the floor's KL and twice its disagreement. Out of bounds, the exit
code is 1.

Examples:
  pith parity -f book.txt -n 1024
  pith parity -m model.gguf -f book.txt --block 100 --uneven --json
  pith parity -f book.txt --ignore-history        # the control: must look bad
)";

constexpr int kDefaultTokens = 2048;
constexpr size_t kMaxBlockLogits = size_t{1} << 25;  // of one reader: 128 MiB

struct ParityFlags {
  ModelFlags model;
  OutputFlags output;
  std::string file;
  int num_tokens = 0;
  int block = 256;
  int decode = 64;
  std::string format;
  bool uneven = false;
  bool ignore_history = false;
};

struct Tally {
  DifferenceSum pith;
  DifferenceSum floor;
  DifferenceSum pith_decode;  // of the tokens decoded one by one
  DifferenceSum floor_decode;
};

class Parity {
 public:
  static Result<std::unique_ptr<Parity>> Create(const ParityFlags& flags, std::shared_ptr<HostModel> model,
                                                size_t num_tokens) {
    std::unique_ptr<Parity> parity(new Parity(flags.ignore_history));
    const auto vocab = static_cast<size_t>(model->info().num_vocab);
    parity->vocab_ = vocab;
    parity->block_ = std::clamp<size_t>(kMaxBlockLogits / vocab, 1, static_cast<size_t>(flags.block));
    const int num_ctx = static_cast<int>(num_tokens) + 1;
    const int threads = flags.model.num_threads();
    EngineOptions options;
    options.num_ctx = num_ctx;
    options.block_tokens = static_cast<int>(parity->block_);
    options.num_threads = threads;
    PITH_ASSIGN_OR_RETURN(options.format, ParseFormats(flags.format));
    PITH_ASSIGN_OR_RETURN(options.recipe, ParseRecipe("full"));
    const auto block = static_cast<int>(parity->block_);
    PITH_ASSIGN_OR_RETURN(parity->off_, PlainContext::Create(*model, num_ctx, block, false, threads));
    PITH_ASSIGN_OR_RETURN(parity->on_, PlainContext::Create(*model, num_ctx, block, true, threads));
    PITH_ASSIGN_OR_RETURN(parity->engine_, Engine::Create(std::move(model), options));
    PITH_ASSIGN_OR_RETURN(parity->sequence_, parity->engine_->NewSequence());
    return parity;
  }

  size_t block() const { return block_; }
  Engine& engine() { return *engine_; }
  const Tally& tally() const { return tally_; }

  Status Block(std::span<const int32_t> tokens) {
    PITH_RETURN_IF_ERROR(ForgetIfControl());
    reference_.clear();
    other_.clear();
    PITH_RETURN_IF_ERROR(off_->Decode(0, tokens, &reference_));
    PITH_RETURN_IF_ERROR(on_->Decode(0, tokens, &other_));
    PITH_RETURN_IF_ERROR(CheckLogits(reference_));
    PITH_RETURN_IF_ERROR(CheckLogits(other_));
    Add(tally_.floor);
    other_.clear();
    PITH_RETURN_IF_ERROR(engine_->Prefill(sequence_, tokens, false, &other_));
    PITH_RETURN_IF_ERROR(CheckLogits(other_));
    Add(tally_.pith);
    return {};
  }

  Status DecodeOne(int32_t token) {
    PITH_RETURN_IF_ERROR(ForgetIfControl());
    PITH_RETURN_IF_ERROR(off_->Decode(0, std::span(&token, 1)));
    PITH_RETURN_IF_ERROR(on_->Decode(0, std::span(&token, 1)));
    PITH_RETURN_IF_ERROR(engine_->Decode(sequence_, token));
    for (const std::span<const float> logits : {off_->logits(), on_->logits(), engine_->logits(sequence_)}) {
      PITH_RETURN_IF_ERROR(CheckLogits(logits));
    }
    const Difference pith = Compare(off_->logits(), engine_->logits(sequence_));
    const Difference floor = Compare(off_->logits(), on_->logits());
    tally_.pith.Add(pith);
    tally_.pith_decode.Add(pith);
    tally_.floor.Add(floor);
    tally_.floor_decode.Add(floor);
    return {};
  }

 private:
  explicit Parity(bool ignore_history) : ignore_history_(ignore_history) {}

  void Add(DifferenceSum& sum) const {
    for (size_t at = 0; at + vocab_ <= reference_.size(); at += vocab_) {
      sum.Add(Compare(std::span(reference_).subspan(at, vocab_), std::span(other_).subspan(at, vocab_)));
    }
  }

  // The control begins every block with an empty cache.
  Status ForgetIfControl() {
    if (!ignore_history_) return {};
    engine_->Free(sequence_);
    PITH_ASSIGN_OR_RETURN(sequence_, engine_->NewSequence());
    return {};
  }

  bool ignore_history_;
  size_t vocab_ = 0;
  size_t block_ = 0;
  std::unique_ptr<PlainContext> off_;
  std::unique_ptr<PlainContext> on_;
  std::unique_ptr<Engine> engine_;
  SequenceId sequence_ = 0;
  std::vector<float> reference_;  // [block, vocab]
  std::vector<float> other_;
  Tally tally_;
};

// Sizes of blocks that visit ends of pages and of windows from all sides.
size_t UnevenSize(size_t index, size_t block) {
  constexpr size_t kSizes[] = {1, 31, 64, 7, 33, 128, 2, 95, 17, 250, 3, 65};
  return std::min(block, kSizes[index % std::size(kSizes)]);
}

bool WithinBounds(const Tally& tally, bool quantised) {
  if (!quantised) return tally.pith.mean_kl() <= 1e-5 && tally.pith.top1() >= 0.999;
  return tally.pith.mean_kl() <= 2 * tally.floor.mean_kl() && 1 - tally.pith.top1() <= 2 * (1 - tally.floor.top1());
}

nlohmann::ordered_json ToJson(const ParityFlags& flags, const ModelInfo& info, const Tally& tally, size_t block,
                              size_t num_tokens) {
  return {{"architecture", info.architecture},
          {"layers", info.num_layers},
          {"kv_layers", std::count_if(info.layers.begin(), info.layers.end(), HoldsCache)},
          {"tokens", tally.pith.rows()},
          {"max_abs_logit_diff", tally.pith.max_abs()},
          {"mean_kl", tally.pith.mean_kl()},
          {"max_kl", tally.pith.max_kl()},
          {"top1_agreement", tally.pith.top1()},
          {"floor_kl", tally.floor.mean_kl()},
          {"floor_max_kl", tally.floor.max_kl()},
          {"floor_top1", tally.floor.top1()},
          {"floor_max_abs_logit_diff", tally.floor.max_abs()},
          {"decode_tokens", tally.pith_decode.rows()},
          {"decode_mean_kl", tally.pith_decode.mean_kl()},
          {"decode_top1_agreement", tally.pith_decode.top1()},
          {"decode_floor_kl", tally.floor_decode.mean_kl()},
          {"within_bounds", WithinBounds(tally, info.quantised)},
          {"quantised", info.quantised},
          {"block", block},
          {"uneven", flags.uneven},
          {"ignore_history", flags.ignore_history},
          {"complete", static_cast<size_t>(tally.pith.rows()) == num_tokens},
          {"model", info.description}};
}

void PrintText(const ModelInfo& info, const Tally& tally, size_t block) {
  fmt::print("{} ({}), {} tokens in blocks of up to {}, {} of them decoded one by one\n", info.description,
             info.architecture, tally.pith.rows(), block, tally.pith_decode.rows());
  fmt::print("{:<34}{:>12}{:>12}{:>12}{:>14}\n", "against libllama, FA off", "mean KL", "max KL", "top-1",
             "max |dlogit|");
  const auto row = [](const char* name, const DifferenceSum& sum) {
    fmt::print("{:<34}{:>12.3e}{:>12.3e}{:>11.2f}%{:>14.3e}\n", name, sum.mean_kl(), sum.max_kl(), 100 * sum.top1(),
               sum.max_abs());
  };
  row("pith, recipe full", tally.pith);
  row("  decoded one by one", tally.pith_decode);
  row("libllama, FA on (the noise floor)", tally.floor);
  row("  decoded one by one", tally.floor_decode);
  fmt::print("{}\n", WithinBounds(tally, info.quantised) ? "within bounds" : "OUT OF BOUNDS");
}

Status Measure(const ParityFlags& flags, Parity& parity, std::span<const int32_t> tokens) {
  const size_t num_decoded = std::min(tokens.size() - 1, static_cast<size_t>(flags.decode));
  const size_t num_prefilled = tokens.size() - num_decoded;
  ProgressLine progress("comparing", flags.output.progress);
  size_t at = 0;
  for (size_t index = 0; at < num_prefilled; ++index) {
    if (Interrupted()) return {};
    const size_t wanted = flags.uneven ? UnevenSize(index, parity.block()) : parity.block();
    const size_t size = std::min(wanted, num_prefilled - at);
    PITH_RETURN_IF_ERROR(parity.Block(tokens.subspan(at, size)));
    at += size;
    progress.Update(static_cast<double>(at), static_cast<double>(tokens.size()));
  }
  for (; at < tokens.size(); ++at) {
    if (Interrupted()) return {};
    PITH_RETURN_IF_ERROR(parity.DecodeOne(tokens[at]));
    progress.Update(static_cast<double>(at), static_cast<double>(tokens.size()));
  }
  return {};
}

Result<int> RunParity(ParityFlags& flags) {
  PITH_ASSIGN_OR_RETURN(const std::string text, ReadFile(flags.file));
  PITH_RETURN_IF_ERROR(RequireUtf8(text, flags.file));
  PITH_ASSIGN_OR_RETURN(const std::shared_ptr<HostModel> model, LoadModel(flags.model, flags.output));
  const ModelInfo& info = model->info();
  PITH_ASSIGN_OR_RETURN(std::vector<int32_t> tokens, model->Tokenize(text, true, false));
  if (tokens.size() < 2) return InvalidArgument(fmt::format("{} gives fewer than two tokens", flags.file));
  const int limit = flags.num_tokens > 0 ? flags.num_tokens : std::min(kDefaultTokens, ContextOf(info, 0));
  if (tokens.size() < static_cast<size_t>(flags.num_tokens)) {
    return InvalidArgument(fmt::format("{} has {} tokens, fewer than the {} of -n", flags.file, tokens.size(),
                                       flags.num_tokens));
  }
  tokens.resize(std::min(tokens.size(), static_cast<size_t>(limit)));
  PITH_ASSIGN_OR_RETURN(const std::unique_ptr<Parity> parity, Parity::Create(flags, model, tokens.size()));
  {
    const CancelOnInterrupt cancel(parity->engine());
    const Status status = Measure(flags, *parity, tokens);
    if (!status && !Interrupted()) return tl::unexpected<Error>(status.error());
  }
  const Tally& tally = parity->tally();
  if (flags.output.json) {
    PrintJson(JsonText(ToJson(flags, info, tally, parity->block(), tokens.size()), 2));
  } else {
    PrintText(info, tally, parity->block());
  }
  if (Interrupted()) return kExitInterrupted;
  return WithinBounds(tally, info.quantised) ? kExitOk : kExitError;
}

Status CheckParity(const ParityFlags& flags) {
  PITH_RETURN_IF_ERROR(flags.model.Check());
  PITH_RETURN_IF_ERROR(ParseFormats(flags.format));
  if (flags.num_tokens == 1) return InvalidArgument("-n takes at least 2 tokens");
  return {};
}

}  // namespace

void AddParity(CLI::App& app, Command& chosen) {
  auto flags = std::make_shared<ParityFlags>();
  CLI::App* command =
      AddCommand(app, "parity", "Compare logits with plain libllama on the same tokens", kParityExamples);
  Require(AddOption(*command, "-f,--file", flags->file, "Text to read", "FILE"));
  AddNumber(*command, "-n,--tokens", flags->num_tokens, 1, 100'000'000,
            fmt::format("Tokens of the text (default: all, at most {})", kDefaultTokens), "N");
  AddNumber(*command, "-b,--block", flags->block, 1, 65536,
            "Tokens read at once (default 256; fewer where the vocabulary is large)", "N");
  AddFlag(*command, "--uneven", flags->uneven, "Blocks of uneven sizes, from 1 to that of --block");
  AddNumber(*command, "--decode", flags->decode, 0, 100'000'000, "Last tokens that are decoded one by one (default 64)",
            "N");
  AddOption(*command, "--cache-type-k", flags->format,
            fmt::format("-ctk: pith's format of keys and values, {} or comp[:F] (default f16)",
                        ListKvFormats(&KvFormatInfo::flag, ", ")),
            "TYPE");
  AddFlag(*command, "--ignore-history", flags->ignore_history,
          "The control: pith forgets everything before each block, which must show");
  AddModelFlags(*command, flags->model);
  AddOutputFlags(*command, flags->output);
  OnCommand(*command, [flags, &chosen] {
    chosen.check = [flags] { return CheckParity(*flags); };
    chosen.run = [flags] { return RunParity(*flags); };
  });
}

}  // namespace pith::cli
