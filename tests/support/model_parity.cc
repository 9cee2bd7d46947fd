#include "tests/support/model_parity.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <random>
#include <span>
#include <utility>

#include <fmt/format.h>

#include "engine/engine.h"
#include "host/context.h"
#include "policy/policy.h"

namespace pith::testing {
namespace {

constexpr double kKlResolution = 1e-10;
constexpr double kControlFactor = 30;

using TokenLists = std::map<int, std::vector<int32_t>>;  // by sequence
using RowLists = std::map<int, std::vector<float>>;      // by sequence, [tokens, vocab]

TokenLists RandomTokens(const Reading& reading, int num_vocab, uint32_t seed) {
  std::mt19937 random(seed);
  std::uniform_int_distribution<int32_t> any(0, std::min(num_vocab, 100) - 1);
  TokenLists tokens;
  for (const ReadingStep& step : reading) {
    for (const int sequence : step.sequences) {
      for (int i = 0; i < step.count; ++i) tokens[sequence].push_back(any(random));
    }
  }
  return tokens;
}

int LargestBlock(const Reading& reading) {
  int most = 1;
  for (const ReadingStep& step : reading) most = std::max(most, step.count * static_cast<int>(step.sequences.size()));
  return most;
}

int LongestSequence(const TokenLists& tokens) {
  size_t most = 0;
  for (const auto& [sequence, list] : tokens) most = std::max(most, list.size());
  return static_cast<int>(most);
}

// A reader's place in each sequence.
class Cursor {
 public:
  explicit Cursor(const TokenLists& tokens) : tokens_(tokens) {}
  int position(int sequence) { return at_[sequence]; }
  std::span<const int32_t> Take(int sequence, int count) {
    const auto from = static_cast<size_t>(std::exchange(at_[sequence], at_[sequence] + count));
    return std::span(tokens_.at(sequence)).subspan(from, static_cast<size_t>(count));
  }

 private:
  const TokenLists& tokens_;
  std::map<int, int> at_;
};

void Append(std::span<const float> row, std::vector<float>& rows) { rows.insert(rows.end(), row.begin(), row.end()); }

Result<RowLists> ReadPlain(const HostModel& model, const Reading& reading, const TokenLists& tokens,
                           bool flash_attention, int num_threads) {
  const int num_sequences = static_cast<int>(tokens.size());
  PITH_ASSIGN_OR_RETURN(const auto plain,
                        PlainContext::Create(model, (LongestSequence(tokens) + 64) * num_sequences,
                                             LargestBlock(reading), flash_attention, num_threads, num_sequences));
  RowLists rows;
  Cursor cursor(tokens);
  for (const ReadingStep& step : reading) {
    for (const int sequence : step.sequences) {
      PITH_RETURN_IF_ERROR(plain->Decode(sequence, cursor.Take(sequence, step.count), &rows[sequence]));
    }
  }
  return rows;
}

Result<RowLists> ReadEngine(const std::shared_ptr<HostModel>& model, const Reading& reading, const TokenLists& tokens,
                            int num_threads) {
  EngineOptions options;
  options.num_ctx = LongestSequence(tokens) + 1;
  options.block_tokens = LargestBlock(reading);
  options.num_threads = num_threads;
  options.max_sequences = static_cast<int>(tokens.size());
  PITH_ASSIGN_OR_RETURN(options.recipe, ParseRecipe("full"));
  PITH_ASSIGN_OR_RETURN(const auto engine, Engine::Create(model, options));
  std::map<int, SequenceId> ids;
  for (const auto& [sequence, list] : tokens) {
    PITH_ASSIGN_OR_RETURN(ids[sequence], engine->NewSequence());
  }
  RowLists rows;
  Cursor cursor(tokens);
  for (const ReadingStep& step : reading) {
    if (!step.decode) {
      const int sequence = step.sequences.front();
      std::vector<float> block;
      PITH_RETURN_IF_ERROR(engine->Prefill(ids[sequence], cursor.Take(sequence, step.count), false, &block));
      Append(block, rows[sequence]);
      continue;
    }
    std::vector<SequenceId> batch;
    std::vector<int32_t> next;
    for (const int sequence : step.sequences) {
      batch.push_back(ids[sequence]);
      next.push_back(cursor.Take(sequence, 1).front());
    }
    if (batch.size() == 1) {
      PITH_RETURN_IF_ERROR(engine->Decode(batch.front(), next.front()));
    } else {
      PITH_RETURN_IF_ERROR(engine->DecodeBatch(batch, next));
    }
    for (const int sequence : step.sequences) Append(engine->logits(ids[sequence]), rows[sequence]);
  }
  return rows;
}

class NoSink final : public AttentionSink {
 public:
  void OnAttention(const AttentionCall&, const Team&) override {}
};

// In short blocks whatever the reading, so that there is a history to ignore.
Result<RowLists> ReadControl(const HostModel& model, const TokenLists& tokens, int num_threads) {
  constexpr int kBlock = 16;
  NoSink sink;
  PITH_ASSIGN_OR_RETURN(const auto context,
                        HostContext::Create(model, kBlock, static_cast<int>(tokens.size()), num_threads, &sink));
  context->IgnoreHistory(true);
  const ModelInfo& info = model.info();
  const bool attends = CountLayers(info, LayerKind::kNone) < static_cast<int>(info.layers.size());
  RowLists rows;
  Cursor cursor(tokens);
  for (const auto& [sequence, list] : tokens) {
    while (cursor.position(sequence) < static_cast<int>(list.size())) {
      if (!attends) context->ClearSlot(sequence);  // its history is its state
      const int from = cursor.position(sequence);
      const int count = std::min(kBlock, static_cast<int>(list.size()) - from);
      std::vector<int32_t> positions;
      for (int i = 0; i < count; ++i) positions.push_back(from + i);
      const std::vector<int32_t> slots(static_cast<size_t>(count), sequence);
      const std::vector<uint8_t> wanted(static_cast<size_t>(count), 1);
      PITH_RETURN_IF_ERROR(context->Decode(
          {.tokens = cursor.Take(sequence, count), .positions = positions, .slots = slots, .wants_logits = wanted}));
      for (int i = 0; i < count; ++i) Append(context->logits(i), rows[sequence]);
    }
  }
  return rows;
}

Status Add(const RowLists& reference, const RowLists& other, size_t vocab, const char* who, DifferenceSum& sum) {
  for (const auto& [sequence, rows] : reference) {
    const std::vector<float>& others = other.at(sequence);
    if (others.size() != rows.size())
      return Corrupt(fmt::format("{} gives {} logits for {}", who, others.size(), rows.size()));
    for (const float logit : others) {
      if (!std::isfinite(logit)) return Corrupt(fmt::format("{} gives logits that are not finite", who));
    }
    for (size_t at = 0; at < rows.size(); at += vocab) {
      sum.Add(Compare(std::span(rows).subspan(at, vocab), std::span(others).subspan(at, vocab)));
    }
  }
  return {};
}

}  // namespace

Reading OneBlock(int num_tokens) { return {{.sequences = {0}, .count = num_tokens}}; }

Reading UnevenBlocks(int num_tokens, int most) {
  constexpr int kSizes[] = {33, 1, 31, 2, 64, 7, 32, 17, 3, 65};
  Reading reading;
  for (size_t i = 0; num_tokens > 0; ++i) {
    const int size = std::min({kSizes[i % std::size(kSizes)], most, num_tokens});
    reading.push_back({.sequences = {0}, .count = size});
    num_tokens -= size;
  }
  return reading;
}

Reading TokenByToken(int num_tokens, int first_block) {
  Reading reading = OneBlock(first_block);
  for (int i = first_block; i < num_tokens; ++i) reading.push_back({.sequences = {0}, .count = 1, .decode = true});
  return reading;
}

Reading TwoSequences(int num_tokens_each, int num_decoded, bool hybrid) {
  Reading reading;
  for (const ReadingStep& step : UnevenBlocks(num_tokens_each - num_decoded, 64)) {
    for (const int sequence : {0, 1}) reading.push_back({.sequences = {sequence}, .count = step.count});
  }
  // Of different lengths, so that positions of a batch differ.
  reading.push_back({.sequences = {1}, .count = 5});
  for (int i = 0; i < num_decoded; ++i) {
    if (hybrid) {
      for (const int sequence : {0, 1}) reading.push_back({.sequences = {sequence}, .count = 1, .decode = true});
    } else {
      reading.push_back({.sequences = {0, 1}, .count = 1, .decode = true});
    }
  }
  return reading;
}

bool Parity::exact() const {
  return pith.mean_kl() <= 2 * floor.mean_kl() + kKlResolution && pith.max_abs() <= 2 * floor.max_abs();
}

bool Parity::telling() const {
  return control.mean_kl() >= kControlFactor * (pith.mean_kl() + kKlResolution);
}

std::string Parity::ToString() const {
  return fmt::format(
      "mean KL {:.3g} (floor {:.3g}, control {:.3g}), largest difference {:.3g} (floor {:.3g}, control {:.3g})",
      pith.mean_kl(), floor.mean_kl(), control.mean_kl(), pith.max_abs(), floor.max_abs(), control.max_abs());
}

Result<Parity> CompareReaders(const std::shared_ptr<HostModel>& model, const Reading& reading, int num_threads,
                              uint32_t seed) {
  const TokenLists tokens = RandomTokens(reading, model->info().num_vocab, seed);
  const auto vocab = static_cast<size_t>(model->info().num_vocab);
  PITH_ASSIGN_OR_RETURN(const RowLists reference, ReadPlain(*model, reading, tokens, false, num_threads));
  PITH_ASSIGN_OR_RETURN(const RowLists flash, ReadPlain(*model, reading, tokens, true, num_threads));
  PITH_ASSIGN_OR_RETURN(const RowLists pith, ReadEngine(model, reading, tokens, num_threads));
  PITH_ASSIGN_OR_RETURN(const RowLists control, ReadControl(*model, tokens, num_threads));
  Parity parity;
  DifferenceSum itself;
  PITH_RETURN_IF_ERROR(Add(reference, reference, vocab, "libllama", itself));
  PITH_RETURN_IF_ERROR(Add(reference, flash, vocab, "libllama with flash attention", parity.floor));
  PITH_RETURN_IF_ERROR(Add(reference, pith, vocab, "pith", parity.pith));
  PITH_RETURN_IF_ERROR(Add(reference, control, vocab, "the control", parity.control));
  return parity;
}

}  // namespace pith::testing
