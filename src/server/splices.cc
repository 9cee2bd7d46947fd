// An edit in the middle of a prompt costs the edit: pieces of at least so many tokens that a resting prefix has read,
// too, and that stand elsewhere now, are taken over (Engine::Splice) instead of being read.
//
//   resting  [ system ][ question ][ a long document          ][ answer ]
//   prompt   [ system ][ another, longer question ][ a long document          ][ the end ]
//              shared    read                        taken over                  read
//
// While a job reads, it holds a fork of that prefix, its donor.
#include <algorithm>
#include <utility>

#include "server/scheduler_impl.h"

namespace pith::server {
namespace {

// Between two steps, so that those who decode wait some milliseconds at most.
constexpr size_t kSplicedAtOnce = 512;
// Prefixes whose entries are looked at.
constexpr size_t kMostLooked = 3;

}  // namespace

size_t SchedulerImpl::LeastPiece(const Job& job) const {
  const Request& request = job.request;
  if (options_.deterministic_reuse || !request.reuse_prefix || request.wants_rows()) return 0;
  return static_cast<size_t>(std::max(request.cache_reuse.value_or(options_.cache_reuse), 0));
}

// Of the text from `done` on; what is there already.
void SchedulerImpl::FindDonor(Job& job, size_t done) {
  DropDonor(job);
  const size_t least = LeastPiece(job);
  if (least == 0 || job.text.size() < done + least) return;
  std::vector<std::pair<size_t, int>> candidates;  // tokens that they would save, index
  for (size_t i = 0; i < prefixes_.size(); ++i) {
    const Prefix& prefix = prefixes_.prefixes()[i];
    if (!(prefix.key == job.key)) continue;
    const std::pair<int32_t, int32_t> all(0, static_cast<int32_t>(prefix.tokens.size()));
    const size_t tokens = TokensOf(FindPieces(job.text, done, job.text.size() - 1, prefix.tokens, {&all, 1}, least));
    if (tokens > 0) candidates.emplace_back(tokens, static_cast<int>(i));
  }
  std::ranges::sort(candidates, std::greater<>());
  if (candidates.size() > kMostLooked) candidates.resize(kMostLooked);
  for (const auto& [tokens, index] : candidates) {
    const Prefix& prefix = prefixes_.prefixes()[static_cast<size_t>(index)];
    const SpliceSource holds = engine_->Spliceable(prefix.sequence);
    const size_t reread = std::max(static_cast<size_t>(holds.reread), size_t{1});
    if (job.text.size() < done + reread) continue;
    job.pieces = FindPieces(job.text, done, job.text.size() - reread, prefix.tokens, holds.ranges, least);
    if (job.pieces.empty()) continue;
    // It must not go for the room that its fork takes.
    Prefix held = prefixes_.Take(index);
    if (MakeRoom(job.bytes.first_page + job.bytes.page)) job.donor = ForkBeside(*engine_, held.sequence).value_or(-1);
    AddPrefix(std::move(held));
    if (job.donor < 0) job.pieces.clear();
    return;
  }
}

void SchedulerImpl::DropDonor(Job& job) {
  job.pieces.clear();
  if (job.donor >= 0) engine_->Free(std::exchange(job.donor, -1));
}

// False: the next token of the job's text is to be read.
bool SchedulerImpl::IsAtPiece(const Job& job) {
  return !job.pieces.empty() && !job.generates && !job.is_compressing && job.pieces.front().at == job.prompt_done;
}

void SchedulerImpl::SplicePieces() {
  if (std::ranges::none_of(running_, [](const JobPtr& job) { return IsAtPiece(*job); })) return;
  size_t left = std::min(kSplicedAtOnce, static_cast<size_t>(engine_->block_tokens()));
  const std::vector<JobPtr> running = running_;
  for (const JobPtr& job : running) {
    while (left > 0 && IsAtPiece(*job) && !job->is_cancelled()) {
      const Piece& piece = job->pieces.front();
      const size_t count = std::min({left, piece.count, PieceEnd(*job) - job->prompt_done});
      const size_t end = job->prompt_done + count;
      const auto from = static_cast<int>(piece.from);
      const Status status = engine_->Splice(job->choices.front().sequence, job->donor, from,
                                            from + static_cast<int>(count), end <= job->request.num_pinned);
      if (!status) {  // it is read instead
        const size_t missing = TokensOf(job->pieces);
        job->usage.cached_tokens -= static_cast<int>(missing);
        counters_.cached_tokens -= missing, counters_.prompt_tokens += missing;
        DropDonor(*job);
        break;
      }
      left -= count;
      job->has_pieces = true;
      job->prompt_done = end;
      DropBefore(end, job->pieces);
      if (job->pieces.empty()) DropDonor(*job);
      AfterPiece(*job);
    }
  }
}

}  // namespace pith::server
