// A small sequence to save and restore without a model: two heads of a global layer with columns and low pages, a
// layer without a cache, a head of a window layer. Shared by tests and fuzz/session_fuzz.cc.
#ifndef PITH_TESTS_SUPPORT_SESSION_SAMPLE_H_
#define PITH_TESTS_SUPPORT_SESSION_SAMPLE_H_

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "base/byte_io.h"
#include "base/check.h"
#include "base/ledger.h"
#include "cache/kv_cache.h"
#include "engine/sequence.h"
#include "engine/session_file.h"
#include "kernels/attention.h"
#include "kernels/feature_maps.h"

namespace pith::testing {

class SessionSample {
 public:
  static constexpr int kContext = 200;
  static constexpr int kVocab = 16;

  // state_rank: of the states of heads (act=less), 0: they have none.
  explicit SessionSample(int state_rank = 0) : ledger_(size_t{1} << 20), state_rank_(state_rank) {
    std::vector<CacheLayer> layers(3);
    layers[0] = {.num_kv_heads = 2, .key_dim = 4, .value_dim = 2, .global = true};
    layers[2] = {.num_kv_heads = 1, .key_dim = 4, .value_dim = 4};
    cache_ = KvCache::Create(&ledger_, std::move(layers));
  }

  KvCache& cache() { return *cache_; }
  size_t page_bytes() const { return ledger_.used_bytes(MemoryTag::kPages); }
  SessionOwner& owner() { return owner_; }

  // Empty, as the engine makes one to restore into. To be freed with cache().Free(sequence.cache_id).
  Sequence NewSequence() {
    Sequence sequence;
    const SequenceLayout layout{
        .entry = PageFormat(), .num_columns = 1, .low = KvFormat::kQ4, .state_rank = state_rank_};
    sequence.cache_id = *cache_->NewSequence(layout, ledger_.common());
    sequence.queries = QueryRing({.num_layers = 1, .num_heads = 2, .key_dim = 4}, 3);
    sequence.merge_thresholds.assign(1, std::nan(""));
    return sequence;
  }

  // One that has read num_tokens tokens; of its global entries the newest are still f16.
  Sequence Filled(int num_tokens) {
    Sequence sequence = NewSequence();
    sequence.next_position = num_tokens;
    sequence.entries_seen = num_tokens * owner_.num_global_heads;
    if (num_tokens > 4) sequence.pinned = {{0, 2}, {3, 4}};
    for (size_t i = 0; i < sequence.queries.data().size(); ++i)
      sequence.queries.data()[i] = static_cast<uint16_t>(7 * i);
    for (int h = 0; h < 2; ++h) Fill(sequence, 0, h, h == 0 ? num_tokens : num_tokens / 2, num_tokens);
    Fill(sequence, 2, 0, std::min(num_tokens, 20), num_tokens);
    // Half of its tokens have left the second head.
    const int gone = num_tokens - num_tokens / 2;
    if (state_rank_ > 0 && gone > 0) {
      const std::vector<float> sums(kernels::StateFloats(state_rank_, 2), 0.25F);
      cache_->head(sequence.cache_id, 0, 1).state().Add(sums, gone);
    }
    return sequence;
  }

  std::vector<std::byte> Body(const Sequence& sequence, const std::optional<CodedForm>& coded = {}) {
    MemoryWriter writer;
    const SessionNote note{.tokens = {1, 2, 3}, .text = "{}"};
    const std::vector<float> logits(kVocab, 0.5F);
    WriteSessionBody(writer, owner_, sequence, *cache_, {{}, logits, note, coded});
    return std::move(writer.bytes());
  }

  Status Read(std::span<const std::byte> body, Sequence& sequence, SessionNote& note) {
    MemoryReader reader(body);
    std::vector<std::byte> recurrent;
    return ReadSessionBody(reader, owner_, *cache_, sequence, recurrent, note);
  }

  static std::vector<std::byte> File(std::span<const std::byte> body) {
    MemoryWriter writer;
    WriteSessionHeader(writer, body.size(), SessionSum(body));
    writer.Write(body);
    return std::move(writer.bytes());
  }

 private:
  // The last `count` of num_tokens positions.
  void Fill(Sequence& sequence, int layer, int head_idx, int count, int num_tokens) {
    HeadCache& head = cache_->head(sequence.cache_id, layer, head_idx);
    std::vector<float> row(8);
    for (int i = 0; i < count; ++i) {
      PITH_CHECK(head.Extend(1).has_value());
      for (size_t d = 0; d < row.size(); ++d) row[d] = std::sin(static_cast<float>(i) + 0.7F * static_cast<float>(d));
      std::byte* page = head.page_of(i);
      kernels::WriteEntryF32(head.layout(), page, i % kPageEntries, row.data(), row.data() + 4, num_tokens - count + i);
      for (int c = 0; c < head.layout().num_columns; ++c) head.layout().column(page, c)[i % kPageEntries] = 0.5F;
      head.Commit(1);
    }
    if (layer == 0) PITH_CHECK(head.Demote(5).has_value());
  }

  Ledger ledger_;
  const int state_rank_;
  std::unique_ptr<KvCache> cache_;
  SessionOwner owner_{.fingerprint = 42, .description = "sample", .recipe = "h2o", .num_ctx = kContext,
                      .num_vocab = kVocab, .num_global_heads = 2, .format = KvFormat::kQ4};
};

}  // namespace pith::testing

#endif  // PITH_TESTS_SUPPORT_SESSION_SAMPLE_H_
