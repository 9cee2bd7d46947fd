#include "lab/bench_runner.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "base/logits.h"
#include "base/stopwatch.h"
#include "base/text.h"
#include "engine/full_cache.h"
#include "engine/resolved.h"
#include "lab/machine.h"

namespace pith {

std::string PlainTypeOf(KvFormat format) {
  const bool has = !IsCoded(format) && InfoOf(format).plain_bits > 0;
  return has ? std::string(InfoOf(format).flag) : std::string();
}

namespace {

// The bytes of libllama's cache.
size_t PlainBytes(const ModelInfo& info, KvFormat format, int num_tokens) {
  const double share = InfoOf(format).plain_bits / 16;
  return static_cast<size_t>(share * static_cast<double>(FullCacheBytes(info, num_tokens)));
}

int64_t CachedHeads(const ModelInfo& info) {
  int64_t heads = 0;
  for (const LayerShape& layer : info.layers) heads += HoldsCache(layer) ? layer.num_kv_heads : 0;
  return heads;
}

}  // namespace

Result<std::unique_ptr<BenchRunner>> BenchRunner::Create(const BenchConfig& config, const BenchCase& bench,
                                                         const std::shared_ptr<HostModel>& model) {
  std::unique_ptr<BenchRunner> runner(new BenchRunner);
  const size_t before = CurrentRssBytes();
  PITH_RETURN_IF_ERROR(config.engine == "libllama" ? runner->CreatePlain(config, bench, *model)
                                                   : runner->CreateEngine(config, bench, model));
  runner->entry_bytes_ = static_cast<double>(BytesPerToken(model->info(), config.format)) /
                         static_cast<double>(std::max<int64_t>(CachedHeads(model->info()), 1));
  runner->batch_tokens_.resize(static_cast<size_t>(runner->num_sequences_));
  runner->added_ = runner->peak_added_ = static_cast<int64_t>(CurrentRssBytes()) - static_cast<int64_t>(before);
  return runner;
}

Status BenchRunner::CreatePlain(const BenchConfig& config, const BenchCase& bench, const HostModel& model) {
  const int num_ctx = bench.ctx + bench.num_decoded + 1;
  const size_t one = PlainBytes(model.info(), config.format.key, num_ctx);
  num_sequences_ = config.batch;
  if (bench.kv_budget > 0) {
    num_sequences_ = static_cast<int>(
        std::min<size_t>(static_cast<size_t>(config.batch), bench.kv_budget / std::max<size_t>(one, 1)));
  }
  if (num_sequences_ == 0) {
    return OutOfBudget(
        fmt::format("libllama's full cache of {} tokens does not fit into {}", num_ctx, FormatBytes(bench.kv_budget)));
  }
  kv_bytes_ = one * static_cast<size_t>(num_sequences_);
  PITH_ASSIGN_OR_RETURN(plain_, PlainContext::Create(model, PlainOptions{.num_ctx = num_ctx,
                                                                         .block_tokens = bench.block,
                                                                         .num_threads = config.threads,
                                                                         .max_sequences = num_sequences_,
                                                                         .flash_attention = config.flash_attention,
                                                                         .cache_type = PlainTypeOf(config.format.key),
                                                                         .separate_streams = true,
                                                                         .for_benchmark = bench.synthetic}));
  return {};
}

Status BenchRunner::CreateEngine(const BenchConfig& config, const BenchCase& bench,
                                 const std::shared_ptr<HostModel>& model) {
  EngineOptions options;
  options.num_ctx = bench.ctx + bench.num_decoded + 1;
  ctx_ = bench.ctx;
  options.block_tokens = bench.block;
  options.num_threads = config.threads;
  options.format = config.format;
  options.budget_bytes = bench.kv_budget;
  PITH_ASSIGN_OR_RETURN(options.recipe, ParseRecipe(config.recipe));
  if (config.keep < 1) KeepShare(model->info(), Recipe(options.recipe), bench.ctx, config.keep, &options);
  if (config.keep >= 1 && bench.kv_budget > 0) {
    // Nothing may be evicted, so each sequence needs its full cache, whatever a plan would make of less.
    const auto one = static_cast<double>(BytesPerToken(model->info(), config.format)) * options.num_ctx;
    num_sequences_ = std::min(config.batch, static_cast<int>(static_cast<double>(bench.kv_budget) / one));
    options.budget_bytes = 0;
  } else {
    num_sequences_ = config.batch;
  }
  for (; num_sequences_ > 0; --num_sequences_) {
    options.max_sequences = num_sequences_;
    auto engine = Engine::Create(model, options);
    if (engine) {
      engine_ = std::move(*engine);
      break;
    }
    if (engine.error().code != ErrorCode::kOutOfBudget || options.budget_bytes == 0)
      return tl::unexpected<Error>(engine.error());
  }
  if (num_sequences_ <= 0) {
    return OutOfBudget(fmt::format("{} does not hold one sequence of {} tokens with {:.3g} kept",
                                   FormatBytes(bench.kv_budget), options.num_ctx, config.keep));
  }
  for (int i = 0; i < num_sequences_; ++i) {
    PITH_ASSIGN_OR_RETURN(const SequenceId id, engine_->NewSequence());
    ids_.push_back(id);
  }
  return {};
}

template <typename Step>
Status BenchRunner::Timed(size_t tokens, std::span<PhaseTimes* const> phases, const Step& step) {
  const size_t memory = CurrentRssBytes();
  const EngineTimes before = engine_ ? engine_->times() : EngineTimes{};
  const Stopwatch watch;
  PITH_RETURN_IF_ERROR(step());
  const double seconds = watch.seconds();
  const EngineTimes after = engine_ ? engine_->times() : EngineTimes{};
  for (PhaseTimes* phase : phases) {
    phase->wall += seconds;
    phase->tokens += tokens;
    const double attention = after.attention - before.attention, policy = after.policy - before.policy;
    phase->attention += attention;
    phase->policy += policy;
    phase->host += after.total - before.total - attention - policy;
  }
  added_ += static_cast<int64_t>(CurrentRssBytes()) - static_cast<int64_t>(memory);
  peak_added_ = std::max(peak_added_, added_);
  return {};
}

Status BenchRunner::Fill(int num_tokens) {
  if (num_tokens == 0) return {};
  return Timed(0, {}, [&]() -> Status {
    for (int i = 0; i < num_sequences_; ++i) {
      PITH_RETURN_IF_ERROR(plain_ ? plain_->FillForBenchmark(i, num_tokens)
                                  : engine_->FillForBenchmark(ids_[static_cast<size_t>(i)], num_tokens));
    }
    return {};
  });
}

Status BenchRunner::Prefill(std::span<const int32_t> tokens, bool tail) {
  PhaseTimes* const phases[] = {&prefill_, &tail_};
  return Timed(tokens.size() * static_cast<size_t>(num_sequences_), std::span(phases, tail ? 2 : 1), [&]() -> Status {
    for (int i = 0; i < num_sequences_; ++i) {
      if (plain_) {
        PITH_RETURN_IF_ERROR(plain_->Decode(i, tokens));
        continue;
      }
      const SequenceId id = ids_[static_cast<size_t>(i)];
      // prefill=criti leaves the end of a prompt whole, and blocks come one by one.
      engine_->SetPromptContinues(
          id, static_cast<size_t>(engine_->num_tokens(id)) + tokens.size() < static_cast<size_t>(ctx_));
      PITH_RETURN_IF_ERROR(engine_->Prefill(id, tokens));
    }
    return {};
  });
}

Status BenchRunner::DecodeOne(int32_t token) {
  if (num_sequences_ == 1) return plain_ ? plain_->Decode(0, std::span(&token, 1)) : engine_->Decode(ids_[0], token);
  std::fill(batch_tokens_.begin(), batch_tokens_.end(), token);
  return plain_ ? plain_->DecodeBatch(batch_tokens_) : engine_->DecodeBatch(ids_, batch_tokens_);
}

Status BenchRunner::Decode(std::span<const int32_t> tokens) {
  PhaseTimes* const phases[] = {&decode_};
  const auto all = [&]() -> Status {
    for (const int32_t token : tokens) PITH_RETURN_IF_ERROR(DecodeOne(token));
    return {};
  };
  PITH_RETURN_IF_ERROR(Timed(tokens.size() * static_cast<size_t>(num_sequences_), phases, all));
  if (!tokens.empty()) PITH_RETURN_IF_ERROR(CheckLogits(plain_ ? plain_->logits() : engine_->logits(ids_[0])));
  if (engine_) {
    decode_.kv_bytes_read +=
        static_cast<double>(engine_->stats().entries) * entry_bytes_ * static_cast<double>(tokens.size());
  }
  return {};
}

}  // namespace pith
