// Turns of a conversation, where they are over, by recipes with turns=; and prompts, once they are whole, by recipes
// that want it so: those that read a prompt again, or that prune keys, or that were asked to.
//
//   read whole, in f16 -> (read again) -> compressed -> the answer goes on
//
// Reading and compressing go by pieces, beside others' steps.
//
// A conversation that goes on is compressed again when it holds more than it may by a tenth, and an answer that
// outgrows its bytes is compressed on its way.
#include <fmt/format.h>

#include <algorithm>
#include <functional>
#include <string_view>
#include <utility>

#include "engine/full_cache.h"
#include "server/scheduler_impl.h"

namespace pith::server {
namespace {

// Beyond what it may hold a sequence grows by so much before it is compressed again, since that may take a reading.
constexpr double kSlack = 1.1;
// Where what is left does not fit, so much less is tried, and so often.
constexpr double kLess = 0.85;
constexpr int kMostTries = 4;

}  // namespace

size_t SchedulerImpl::HeldLimit(const Job& job) const {
  const size_t wanted = job.request.kv_budget_bytes;
  return wanted > 0 ? std::min(wanted, total_bytes_) : total_bytes_;
}

std::string SchedulerImpl::CompressKeyOf(const Job& job) const {
  if (!job.compresses) return {};
  return job.request.keep > 0              ? fmt::format("keep={}", job.request.keep)
         : job.request.kv_budget_bytes > 0 ? "budget"
                                           : fmt::format("keep={}", options_.keep);
}

std::string SchedulerImpl::TopicOf(const Job& job) {
  const std::vector<int32_t>& guide = job.request.guide;
  if (guide.empty() || !job.options.recipe.turns || job.bytes.MostTokens() >= job.text.size() + kTokensAhead) return {};
  const std::string_view bytes(reinterpret_cast<const char*>(guide.data()), guide.size() * sizeof(int32_t));
  return fmt::format("{:016x}", std::hash<std::string_view>()(bytes));
}

size_t SchedulerImpl::FloorFor(const Job& job, size_t used, size_t num_tokens) const {
  // A page that is begun, and one for the first tokens of the answer.
  const size_t growth = job.bytes.Of(num_tokens) - job.bytes.first_page + 2 * job.bytes.page;
  return std::max(used, job.bytes.first_page) + growth + job.bytes.reread;
}

size_t SchedulerImpl::AnswerBytes(const Job& job) const {
  const int most = job.request.generation.max_tokens;
  const size_t written = job.choices.front().generator->result().tokens.size();
  const auto limited = static_cast<size_t>(std::max(most, 0));
  const size_t left = most < 0 ? kTokensAhead : limited - std::min(limited, written);
  // Of a small budget not more than a quarter, since text must stay, too.
  const size_t limit = HeldLimit(job);
  const size_t room = (limit - std::min(limit, job.bytes.first_page)) / 4;
  return std::min(job.bytes.Of(std::min(left, kTokensAhead)) - job.bytes.first_page, room) + job.bytes.page;
}

double SchedulerImpl::ShareToKeep(const Job& job) const {
  const SequenceId sequence = job.choices.front().sequence;
  const SequenceStats stats = engine_->stats(sequence);
  const Request& request = job.request;
  const double held = engine_->KeptBytes(sequence);  // of the f16 bytes of all its tokens
  double keep = request.keep > 0 ? request.keep : request.kv_budget_bytes > 0 ? 1.0 : options_.keep;
  bool is_too_much = held > keep * kSlack;
  const size_t limit = HeldLimit(job), growth = AnswerBytes(job);
  double most = 1;
  if (stats.used_bytes + growth > limit) {
    is_too_much = true;
    // Heads are ragged: each has a page that is not full.
    const double full = static_cast<double>(BytesPerToken(engine_->model().info(), KvFormat::kF16)) * stats.num_tokens;
    const size_t beside = job.bytes.first_page + growth;
    keep = std::min(keep, static_cast<double>(limit - std::min(limit, beside)) / full);
    most = static_cast<double>(limit - std::min(limit, growth)) / static_cast<double>(stats.used_bytes);
  }
  if (!is_too_much || stats.entries == 0) return 1;
  int heads = 0;
  for (const LayerShape& layer : engine_->model().info().layers) {
    if (layer.kind == LayerKind::kGlobal) heads += layer.num_kv_heads;
  }
  // Compress() counts from the entries that there are.
  const double mean = static_cast<double>(stats.entries) / std::max(heads, 1);
  return std::clamp(std::min(keep * stats.num_tokens / mean, most), 1e-6, 1.0);
}

bool SchedulerImpl::BeginCompression(Job& job) {
  if (!job.compresses || job.num_compressions >= kMostTries) return false;
  const double share = ShareToKeep(job);
  if (share >= 1) return false;
  job.compress_share = share;
  job.is_compressing = true;
  job.generates = false;
  return true;
}

bool SchedulerImpl::IsTurnEnd(const Job& job, size_t num_tokens) {
  return job.options.recipe.turns && std::ranges::binary_search(job.request.turn_ends, num_tokens);
}

size_t SchedulerImpl::NextTurnEnd(const Job& job) {
  if (!job.options.recipe.turns) return 0;
  const auto next = std::ranges::upper_bound(job.request.turn_ends, job.prompt_done);
  return next == job.request.turn_ends.end() ? 0 : *next;
}

void SchedulerImpl::BeginTurnEnd(Job& job) { job.is_compressing = job.ends_turn = true; }

bool SchedulerImpl::BeginRoom(Job& job, int rows) {
  if (!job.options.recipe.turns || job.choices.size() > 1) return false;
  const SequenceId sequence = job.choices.front().sequence;
  if (engine_->num_tokens(sequence) == job.room_tried_at || engine_->HasRoomFor(sequence, rows)) return false;
  // Prefixes go before anything of it does.
  (void)MakeRoom(BorrowedBy(job, sequence, static_cast<size_t>(rows)));
  if (engine_->HasRoomFor(sequence, rows)) return false;
  job.room_tried_at = engine_->num_tokens(sequence);
  job.room_rows = rows;
  BeginTurnEnd(job);
  return true;
}

JobPtr SchedulerImpl::NextToCompress() const {
  // An answer that waits for room in the middle of a turn waits for no prompt that is read again.
  auto next = std::ranges::find_if(running_, [](const JobPtr& job) { return job->is_compressing && job->generates; });
  if (next == running_.end()) next = std::ranges::find_if(running_, &Job::is_compressing);
  return next == running_.end() ? nullptr : *next;
}

bool SchedulerImpl::CompressOn(Job& job, int rows) {
  const SequenceId sequence = job.choices.front().sequence;
  const Recipe& recipe = job.options.recipe;
  const Result<bool> read = engine_->ReadAgain(sequence, recipe, rows);
  if (read && !*read) return true;
  Status status = read ? Status() : Status(tl::unexpected<Error>(read.error()));
  if (status) {
    const Result<bool> done = job.room_rows > 0 ? engine_->MakeRoomOn(sequence, job.room_rows)
                              : job.ends_turn   ? engine_->EndTurnOn(sequence)
                                                : engine_->CompressOn(sequence, recipe, job.compress_share);
    if (done && !*done) return false;
    if (!done) status = tl::unexpected<Error>(done.error());
  }
  job.ends_turn ? EndTurnOf(job, status) : EndCompression(job, status);
  return false;
}

void SchedulerImpl::EndTurnOf(Job& job, const Status& status) {
  if (job.is_cancelled()) return;
  // Where it cannot be compressed now, it goes on with the next one.
  if (!status && status.error().code != ErrorCode::kOutOfBudget && status.error().code != ErrorCode::kUnsupported)
    return Fail(job, status.error());
  job.is_compressing = job.ends_turn = false;
  job.room_rows = 0;
}

void SchedulerImpl::EndCompression(Job& job, const Status& status) {
  if (job.is_cancelled()) return;
  const ErrorCode code = status ? ErrorCode::kIo : status.error().code;
  if (!status && code == ErrorCode::kOutOfBudget && PromiseMore(job)) return;
  const bool cannot = !status && (code == ErrorCode::kOutOfBudget || code == ErrorCode::kUnsupported);
  if (cannot && RestartByBlocks(job)) return;
  if (!status) return Fail(job, status.error());
  ++counters_.compressed;
  ++job.num_compressions;
  if (SettleBudget(job)) {
    job.is_compressing = false;
    job.num_compressions = 0;
    room_changed_ = true;
    StartGenerating(job);
  } else if (job.num_compressions < kMostTries) {
    job.compress_share = kLess;
  } else {
    Fail(job, {ErrorCode::kOutOfBudget,
               fmt::format("{:.2f} MiB do not hold what {} leaves of the prompt",
                           static_cast<double>(HeldLimit(job)) / (1 << 20), job.options.recipe.text)});
  }
}

// Where the server's budget does not hold what its recipe takes to compress the whole prompt, or the model's positions
// end before a second reading would.
bool SchedulerImpl::RestartByBlocks(Job& job) {
  if (NeedsWholePrompt(job.options.recipe) || job.generates || job.choices.size() > 1) return false;
  job.is_by_blocks = true;
  SendBack(job);
  return true;
}

// It took more than was thought: prefixes go, or who came last, and it begins anew.
bool SchedulerImpl::PromiseMore(Job& job) {
  const SequenceId sequence = job.choices.front().sequence;
  job.bytes.reread += job.bytes.reread / 2 + job.bytes.page;
  for (;;) {
    const size_t floor = FloorFor(job, engine_->stats(sequence).used_bytes, 0);
    if (floor > job.bytes.limit) return false;
    if (engine_->SetBudget(sequence, floor, job.bytes.limit)) return true;
    if (DropPrefix()) continue;
    const auto other = std::ranges::find_if(running_.rbegin(), running_.rend(), [&](const JobPtr& one) {
      return one.get() != &job && one->choices.size() == 1 && !one->choices.front().generator->done();
    });
    if (other == running_.rend()) return false;
    SendBack(**other);
  }
}

// Once its prompt is compressed, or need not be: what was asked for.
bool SchedulerImpl::SettleBudget(Job& job) {
  const SequenceId sequence = job.choices.front().sequence;
  const SequenceStats stats = engine_->stats(sequence);
  const size_t limit = HeldLimit(job), further = (job.choices.size() - 1) * job.bytes.fork_floor;
  const size_t wanted = stats.used_bytes + AnswerBytes(job) + further;
  const size_t floor = std::min({wanted, std::max(stats.used_bytes, stats.floor_bytes), limit});
  if (!engine_->SetBudget(sequence, floor, limit)) return false;
  job.bytes.floor = floor - std::min(floor, further);
  job.bytes.fork_floor = std::min(job.bytes.fork_floor, job.bytes.floor);
  job.options.ceiling_bytes = limit;
  return true;
}

}  // namespace pith::server
