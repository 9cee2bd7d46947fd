// Texts that were read already.
//
// What a job has read rests when its first choice ends: prompt and answer, in the bytes that they hold. A later prompt
// of the same tenant, recipe and kv_budget takes up the sequence, resting or running, with which it has most in common:
//
//   all that it has read begins the prompt      it goes on from there, whatever its recipe has dropped: like a
//   conversation only a part of it does                      it is rewound to that part, where its recipe can
//   (Engine::RewindTarget)
//
// A resting sequence is taken, unless much of it would be lost for others or it was made for them (a checkpoint after
// the pinned tokens, where nothing can be rewound); these, and running ones, are forked.
//
// deterministic_reuse: a prompt is read in blocks of block_tokens rows from its beginning, each in a step of its own,
// so that a block's bits follow from the tokens before it alone. Only whole blocks of prompts are taken up then, and
// bytes are the same whoever else is there.
#include <algorithm>
#include <utility>

#include "server/scheduler_impl.h"

namespace pith::server {
namespace {

// Tokens; less is not worth the trouble. A short prompt that is read anew each time also gives the same text each time,
// which rows that are read in other batches do not.
constexpr size_t kLeastShared = 48;
// A part that is lost is left to others if it is longer, and more than a quarter of the whole.
constexpr size_t kLeastKept = 64;

}  // namespace

size_t SchedulerImpl::Savings(const Job& job, const PrefixKey& key, std::span<const int32_t> tokens,
                              size_t num_prompt_tokens, size_t num_pinned, SequenceId sequence) const {
  const Request& request = job.request;
  if (!(key == job.key)) return 0;
  // The last token is read again in any case, for its logits.
  size_t common = std::min(CommonTokens(tokens, job.text), job.text.size() - 1);
  if (options_.deterministic_reuse) {
    common = std::min(common, num_prompt_tokens);
    common -= common % static_cast<size_t>(engine_->block_tokens());
  }
  if (common < tokens.size()) {
    const auto target = static_cast<size_t>(engine_->RewindTarget(sequence, static_cast<int>(common)));
    if (options_.deterministic_reuse && target != common) return 0;
    common = target;
  }
  if (common < kLeastShared) return 0;
  // What may be dropped must be the same, and pieces of prompts end where pins do.
  const bool same_pins = std::min(num_pinned, common) == std::min(request.num_pinned, common);
  return (job.drops || options_.deterministic_reuse) && !same_pins ? 0 : common;
}

size_t SchedulerImpl::Savings(const Job& job, const Prefix& prefix) const {
  if (prefix.has_pieces && LeastPiece(job) == 0) return 0;
  return Savings(job, prefix.key, prefix.tokens, prefix.num_prompt_tokens, prefix.num_pinned, prefix.sequence);
}

std::vector<int32_t> SchedulerImpl::ReadTokens(const Job& job, const Choice& choice) const {
  std::vector<int32_t> tokens(job.text.begin(), job.text.begin() + static_cast<std::ptrdiff_t>(job.prompt_done));
  const std::vector<int32_t>& more = choice.generator->result().tokens;
  if (job.generates) {
    tokens.insert(tokens.end(), more.begin() + static_cast<std::ptrdiff_t>(job.num_generated_before),
                  more.begin() + static_cast<std::ptrdiff_t>(choice.num_fed));
  }
  return tokens;
}

SequenceId SchedulerImpl::TakePrefix(Job& job) {
  job.prompt_done = 0;
  job.has_pieces = job.follows_turn = false;
  DropDonor(job);
  const Request& request = job.request;
  if (!request.reuse_prefix || request.wants_rows()) return -1;
  const bool takes_pieces = LeastPiece(job) > 0;
  const auto savings = [&](const Prefix& prefix) { return Savings(job, prefix); };
  int resting = prefixes_.Find(request.cache_key, request.slot, savings);
  size_t most = resting < 0 ? 0 : savings(prefixes_.prefixes()[static_cast<size_t>(resting)]);
  const Job* source = nullptr;
  for (const JobPtr& other : running_) {
    const Choice& first = other->choices.front();
    if (first.sequence < 0 || !other->request.reuse_prefix || other->is_compressing) continue;
    if (other->has_pieces && !takes_pieces) continue;
    const size_t saved = Savings(job, other->key, ReadTokens(*other, first), other->prompt_done,
                                 other->request.num_pinned, first.sequence);
    if (saved > most) most = saved, source = other.get();
  }
  if (takes_pieces) {
    FindDonor(job, most);
    resting = prefixes_.Find(request.cache_key, request.slot, savings);  // some may have gone for it
  }
  const size_t of_resting = resting < 0 ? 0 : savings(prefixes_.prefixes()[static_cast<size_t>(resting)]);
  if (source == nullptr) most = of_resting;
  if (const SequenceId stored = TakeStored(job, most); stored >= 0) {
    DropBefore(job.prompt_done, job.pieces);
    return stored;
  }
  SequenceId sequence = source != nullptr ? ForkLive(job, *source, most) : -1;
  if (sequence < 0 && resting >= 0) most = of_resting, sequence = TakeResting(job, resting, most);
  if (sequence >= 0) job.prompt_done = most;
  return sequence;
}

size_t SchedulerImpl::LikelySavings(const Job& job) const {
  if (!job.request.reuse_prefix || job.request.wants_rows()) return 0;
  size_t most = 0;
  for (const Prefix& prefix : prefixes_.prefixes()) {
    most = std::max(most, Savings(job, prefix));
  }
  return most;
}

Status SchedulerImpl::GiveBudget(Job& job, SequenceId sequence) {
  const size_t further = (job.choices.size() - 1) * job.bytes.fork_floor;
  const SequenceStats now = engine_->stats(sequence);
  const size_t unread = job.text.size() - std::min(job.text.size(), static_cast<size_t>(now.num_tokens));
  const size_t own = job.compresses ? FloorFor(job, now.used_bytes, unread) : job.bytes.floor;
  const size_t floor = std::min(own + further, job.bytes.limit);
  const size_t committed = std::max(now.used_bytes, now.floor_bytes);
  if (floor > committed) (void)MakeRoom(floor - committed);
  return engine_->SetBudget(sequence, floor, job.options.ceiling_bytes);
}

SequenceId SchedulerImpl::ForkLive(Job& job, const Job& source, size_t cached) {
  const SequenceId from = source.choices.front().sequence;
  // With room for both, since the source's promise is lifted for a moment.
  if (!MakeRoom(job.bytes.floor + job.bytes.first_page + job.bytes.page)) return -1;
  Result<SequenceId> fork = ForkBeside(*engine_, from);
  if (!fork) return -1;
  Status status;
  if (engine_->num_tokens(*fork) > static_cast<int>(cached)) status = engine_->Rewind(*fork, static_cast<int>(cached));
  if (status) status = GiveBudget(job, *fork);
  if (status) job.has_pieces = source.has_pieces;
  if (status) return *fork;
  engine_->Free(*fork);
  return -1;
}

SequenceId SchedulerImpl::TakeResting(Job& job, int index, size_t cached) {
  Prefix held = prefixes_.Take(index);
  const size_t lost = held.tokens.size() - cached;
  SequenceId sequence = -1;
  if (held.checkpoint || lost > std::max(kLeastKept, held.tokens.size() / 4)) {
    const bool has_room = MakeRoom(job.bytes.floor + job.bytes.first_page + job.bytes.page);
    if (has_room) sequence = ForkBeside(*engine_, held.sequence).value_or(-1);
  }
  const bool forked = sequence >= 0, has_pieces = held.has_pieces;
  if (!forked) sequence = held.sequence;
  Status status;
  if (lost > 0) status = engine_->Rewind(sequence, static_cast<int>(cached));
  // The prompt goes on behind an answer: a turn is over. Where it says itself where turns end, TryAdmit() sees to it.
  const bool is_over = job.request.turn_ends.empty() && cached > held.num_prompt_tokens;
  if (status && !forked) held.tokens.resize(cached), held.num_prompt_tokens = std::min(held.num_prompt_tokens, cached);
  if (status) status = GiveBudget(job, sequence);
  const bool in_its_slot = held.slot >= 0 && slots_[static_cast<size_t>(held.slot)] == nullptr;
  if (status && in_its_slot && job.request.slot < 0 && job.choices.size() == 1) job.choices.front().slot = held.slot;
  if (forked || !status) AddPrefix(std::move(held));
  if (status) job.has_pieces = has_pieces, job.follows_turn = is_over && job.options.recipe.turns.has_value();
  if (status) return sequence;
  if (forked) engine_->Free(sequence);
  return -1;
}

void SchedulerImpl::AddPrefix(Prefix prefix) {
  const SequenceStats stats = engine_->stats(prefix.sequence);
  // It is promised what it holds, and nothing of that is claimed by others: it stays whole or goes.
  if (!engine_->SetBudget(prefix.sequence, std::max<size_t>(stats.used_bytes, 1), stats.ceiling_bytes)) {
    engine_->Free(prefix.sequence);
    return;
  }
  prefix.bytes = stats.used_bytes;
  prefixes_.Add(std::move(prefix));
}

void SchedulerImpl::Rest(Job& job, Choice& choice) {
  const SequenceId sequence = std::exchange(choice.sequence, -1);
  Prefix prefix{.sequence = sequence,
                .tokens = ReadTokens(job, choice),
                .num_prompt_tokens = job.prompt_done,
                .num_pinned = job.request.num_pinned,
                .key = job.key,
                .cache_key = job.request.cache_key,
                .has_pieces = job.has_pieces,
                .slot = choice.slot};
  {
    const std::lock_guard lock(job.mutex);
    std::erase(job.live, sequence);
    // Who asks for positions may come and look at them, however few there are.
    const bool is_of_use = prefix.tokens.size() >= kLeastShared || job.request.reports_positions;
    if (job.cancelled || !is_of_use) {
      engine_->Free(sequence);
      return;
    }
  }
  // What can be rewound makes older ones that it begins with superfluous.
  if (!job.drops && !engine_->model().info().hybrid) {
    for (int i = static_cast<int>(prefixes_.size()) - 1; i >= 0; --i) {
      const Prefix& other = prefixes_.prefixes()[static_cast<size_t>(i)];
      if (prefix.has_pieces && !other.has_pieces) continue;
      if (!(other.key == prefix.key) || CommonTokens(other.tokens, prefix.tokens) < other.tokens.size()) continue;
      engine_->Free(prefixes_.Take(i).sequence);
    }
  }
  while (prefixes_.size() >= static_cast<size_t>(options_.max_retained) && DropPrefix()) {
  }
  AddPrefix(std::move(prefix));
}

// Its pages are the job's until one of the two drops some; then they are there twice.
void SchedulerImpl::Checkpoint(Job& job) {
  const SequenceId source = job.choices.front().sequence;
  const SequenceStats stats = engine_->stats(source);
  if (UncommittedBytes() < stats.used_bytes + job.bytes.first_page + job.bytes.page) return;
  while (prefixes_.size() >= static_cast<size_t>(options_.max_retained) && DropPrefix()) {
  }
  const Result<SequenceId> fork = ForkBeside(*engine_, source);
  if (!fork) return;
  AddPrefix({.sequence = *fork,
             .tokens = {job.text.begin(), job.text.begin() + static_cast<std::ptrdiff_t>(job.prompt_done)},
             .num_prompt_tokens = job.prompt_done,
             .num_pinned = job.request.num_pinned,
             .key = job.key,
             .cache_key = job.request.cache_key,
             .has_pieces = job.has_pieces,
             .checkpoint = true,
             .slot = job.choices.front().slot});
}

}  // namespace pith::server
