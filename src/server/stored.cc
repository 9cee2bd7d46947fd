// The store behind the resting prefixes: where a prompt finds nothing here, a prefix of an earlier time or process may
// stand for its beginning; and what rests is kept before it goes, or when nobody waits for the engine.
#include <algorithm>
#include <utility>

#include "server/scheduler_impl.h"
#include "session/stored_prefixes.h"

namespace pith::server {
namespace {

// Of a token, until prompts were measured.
constexpr double kSecondsPerToken = 0.001;

}  // namespace

ReadingKey SchedulerImpl::ReadingOf(const PrefixKey& key) const {
  return {.recipe = key.recipe,
          .format = StoredFormat(*engine_),
          .compress = key.topic.empty() ? key.compress : key.compress + " topic=" + key.topic,
          .budget_bytes = key.kv_budget_bytes > 0 ? key.kv_budget_bytes : total_bytes_,
          .tenant = key.tenant};
}

// More than `at_least` tokens of the job's prompt, in a sequence of their own; -1: there is no such prefix.
SequenceId SchedulerImpl::TakeStored(Job& job, size_t at_least) {
  if (options_.store == nullptr || options_.deterministic_reuse || job.text.size() < 2) return -1;
  if (std::exchange(job.asked_store, true)) return -1;
  // The last token is read again in any case, for its logits.
  const std::span<const int32_t> text = std::span(job.text).first(job.text.size() - 1);
  SequenceId sequence = -1;
  const auto adopt = [&](std::span<const std::byte> saved, size_t tokens) -> Result<size_t> {
    SequenceOptions options = job.options;
    options.floor_bytes = 1;
    options.ceiling_bytes = job.bytes.limit;
    Result<RestoredSequence> restored = engine_->RestoreFromMemory(saved, options);
    while (!restored && restored.error().code == ErrorCode::kOutOfBudget && DropPrefix()) {
      restored = engine_->RestoreFromMemory(saved, options);
    }
    if (!restored) return tl::unexpected<Error>(restored.error());
    const std::vector<int32_t>& read = restored->note.tokens;
    const bool is_it = read.size() >= tokens && std::ranges::equal(std::span(read).first(tokens), text.first(tokens)) &&
                       engine_->num_tokens(restored->sequence) == static_cast<int>(read.size());
    const int kept = is_it ? engine_->RewindTarget(restored->sequence, static_cast<int>(tokens)) : 0;
    if (kept > 0 && engine_->Rewind(restored->sequence, kept) && GiveBudget(job, restored->sequence)) {
      sequence = restored->sequence;
      return static_cast<size_t>(kept);
    }
    engine_->Free(restored->sequence);
    return 0;
  };
  const auto taken =
      options_.store->Take(ReadingOf(job.key), text, std::min(job.request.num_pinned, text.size()), at_least, adopt);
  if (!taken) return -1;
  job.prompt_done = taken->tokens;
  return sequence;
}

void SchedulerImpl::KeepInStore(const Prefix& prefix) {
  if (options_.store == nullptr || prefix.stored || prefix.has_pieces) return;
  const double measured = counters_.prompt_tokens > 0
                              ? counters_.prompt_seconds / static_cast<double>(counters_.prompt_tokens)
                              : 0;
  const double seconds = (measured > 0 ? measured : kSecondsPerToken) * static_cast<double>(prefix.tokens.size());
  (void)options_.store->Keep(*engine_, prefix.sequence, ReadingOf(prefix.key), prefix.tokens, prefix.num_pinned,
                             seconds, prefix.checkpoint);
}

bool SchedulerImpl::KeepOneInStore() {
  if (options_.store == nullptr) return false;
  const std::span<const Prefix> all = prefixes_.prefixes();
  const auto next = std::ranges::find(all, false, &Prefix::stored);
  if (next == all.end()) return options_.store->PlaceNext(*engine_);
  KeepInStore(*next);
  prefixes_.MarkStored(static_cast<size_t>(next - all.begin()));
  return true;
}

size_t SchedulerImpl::StoredCut(const Job& job) const {
  if (options_.store == nullptr || options_.deterministic_reuse) return 0;
  return options_.store->NextCut(ReadingOf(job.key), job.text, job.request.num_pinned, job.prompt_done);
}

}  // namespace pith::server
