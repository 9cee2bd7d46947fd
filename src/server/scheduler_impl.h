// How the scheduler is made: one thread, a queue, jobs that are read and that decode, prefixes that rest.
//
//   Submit() -> inbox -> waiting -> reading -> generating -> gone
//                          |           ^
//                          v           | taken up
//                        failed      resting prefixes <- what a finished job has read
//
// A turn of the thread: take what came, let go whose client left, admit, run one step, tell the sinks.
#ifndef PITH_SERVER_SCHEDULER_IMPL_H_
#define PITH_SERVER_SCHEDULER_IMPL_H_

#include <chrono>
#include <condition_variable>
#include <deque>
#include <map>
#include <mutex>
#include <thread>

#include "base/stopwatch.h"
#include "server/pieces.h"
#include "server/prefixes.h"
#include "server/scheduler.h"
#include "server/step_plan.h"
#include "session/stored_prefixes.h"

namespace pith::server {

// One text that goes on from a job's prompt.
struct Choice {
  int index = 0;
  int slot = -1;
  SequenceId sequence = -1;  // -1: none, or none any more
  std::unique_ptr<HostSampler> sampler;
  std::optional<Generator> generator;
  int32_t next = -1;    // sampled, to be decoded
  size_t num_fed = 0;   // of the generator's tokens, those that the sequence has read
  size_t num_told = 0;  // of them, those that the sink knows
  bool ended = false;
  std::string stop_message;
  SteadyClock::time_point first_token, last_token;
};

// What a job's tokens take, and what it is promised.
// Of an answer without a limit: what there is room for at its start.
inline constexpr size_t kTokensAhead = 256;

struct JobBytes {
  size_t first_page = 0;  // with a token, everything beside pages included
  size_t page = 0;        // more for each further page of positions
  size_t limit = 0;       // of a sequence
  size_t reread = 0;      // more while a prompt is read again
  size_t floor = 0;       // of a sequence
  size_t fork_floor = 0;  // of each further choice

  size_t Of(size_t num_tokens) const;
  // Tokens that the limit holds.
  size_t MostTokens() const;
};

struct Job {
  RequestId id = 0;
  Request request;
  std::shared_ptr<RequestSink> sink;
  std::vector<Choice> choices;
  SteadyClock::time_point submitted, started, first_logits;

  // Known from Intake() on.
  std::vector<int32_t> text;  // to be read before it (goes on) to generate: the prompt, and what was generated before
                              // it had to make room for others
  size_t num_generated_before = 0;  // of the first choice's tokens, those in `text`
  SequenceOptions options;
  bool drops = false;  // its recipe drops entries
  bool compresses = false;    // once its prompt is whole; until then nothing is dropped
  bool is_by_blocks = false;  // though its recipe would compress a whole prompt, which the budget does not hold
  PrefixKey key;
  JobBytes bytes;

  SequenceId donor = -1;      // a fork of what has read `pieces`; -1: none
  bool has_pieces = false;    // its sequence has taken over some
  std::vector<Piece> pieces;  // of `text` behind prompt_done, to be taken over from it

  size_t likely_unread = 0;  // tokens of `text` that no prefix had when it came
  size_t prompt_done = 0;    // tokens of `text` that the first choice's sequence has read
  size_t progress = 0;       // of the prompt, as its sink knows
  size_t checkpoint_at = 0;  // tokens after which a fork rests for others; 0: none
  bool follows_turn = false;    // what it has taken up ends with a turn that is over
  bool is_compressing = false;  // what was read is to be compressed before anything goes on
  bool ends_turn = false;       // then: what was read of `text` up to the end of a turn; else all of it
  int room_rows = 0;            // then: in the middle of a turn, since there is no room for so many rows
  int room_tried_at = -1;       // tokens that it had when that was done last
  double compress_share = 0;    // then: of the entries that it holds
  int num_compressions = 0;     // of `text`, tried
  int num_restarts = 0;         // since bytes were missing that it should have been promised: more are each time
  bool generates = false;       // `text` is read, and compressed if it has to be
  bool told = false;         // that it has started
  bool asked_store = false;  // for its prompt's beginning: once
  bool finished = false;     // its sink is about to hear so
  std::optional<Error> failure;  // of sampling
  RequestUsage usage;
  CacheReport cache;
  int64_t dropped_before = 0;  // entries that its prefix had lost
  // Of prompt rows that were read, where they are wanted; told once.
  std::vector<TokenLogprobs> prompt_logprobs;
  std::vector<double> pooled;
  bool rows_told = false;
  bool wants_rows() const { return request.wants_rows() && !rows_told; }
  bool decodes() const { return generates && !is_compressing; }

  // A sink is called with it held; Cancel() comes from any thread, the sink's calls included.
  std::recursive_mutex mutex;
  bool cancelled = false;                // by mutex
  std::vector<SequenceId> live;          // by mutex: what a step may be giving up

  bool is_cancelled() {
    const std::lock_guard lock(mutex);
    return cancelled;
  }
};
using JobPtr = std::shared_ptr<Job>;

class SchedulerImpl final : public Scheduler {
 public:
  SchedulerImpl(std::shared_ptr<Engine> engine, std::shared_ptr<const TextModel> text, const SchedulerOptions& options);
  ~SchedulerImpl() override;
  void Start();

  Result<RequestId> Submit(Request request, std::shared_ptr<RequestSink> sink) override;
  void Cancel(RequestId request) override;
  SchedulerStats stats() override;
  Result<SavedSlot> SaveSlot(int slot, const std::string& file_name) override;
  Result<SavedSlot> RestoreSlot(int slot, const std::string& file_name) override;
  Result<SlotToken> TokenInSlot(int slot, int position, const std::string& tenant) override;
  Result<int> EraseSlot(int slot) override;
  void Drain(double seconds) override;

 private:
  // The thread (scheduler.cc).
  void Run();
  bool TakeInbox();  // waits while there is nothing to do; false: the end
  bool IsIdle();  // nobody asks for anything
  void DropCancelled();
  void DropLeft(Job& job);  // whose client has left
  void FailAll(const Error& error);
  // Runs fn between steps and waits for it.
  template <typename T>
  T OnEngine(const std::function<T()>& fn);
  template <typename Fn>
  void Tell(Job& job, const Fn& fn) {
    const std::lock_guard lock(job.mutex);
    if (!job.cancelled) fn(*job.sink);
  }
  // The running step gives its sequences up.
  void StopSteps(Job& job);
  void Publish();
  // Its bytes are free and its sink is let go.
  void Remove(Job& job);
  void Fail(Job& job, const Error& error);

  // Admission (admission.cc).
  void Intake(const JobPtr& job);
  Status PlanJob(Job& job);
  void AdmitWaiting();
  // When its turn to be read comes, in seconds of the steady clock.
  double TurnAt(const Job& job) const;
  enum class Verdict : uint8_t { kAdmitted, kWaits, kGone };
  Verdict TryAdmit(const JobPtr& job);
  bool TakeSlots(Job& job);
  Result<SequenceId> SequenceFor(Job& job);
  void PlanCheckpoint(Job& job) const;
  // Neither in use nor promised.
  size_t UncommittedBytes() const;
  // Prefixes go until so many bytes are uncommitted, or none is left.
  bool MakeRoom(size_t bytes);
  bool DropPrefix();
  void Hold(Job& job, SequenceId sequence);
  void Release(Job& job, SequenceId sequence);

  // Reuse of prefixes (reuse.cc).
  // A sequence that has read prompt_done tokens of the job's prompt, within its budget; -1: none can be had.
  SequenceId TakePrefix(Job& job);
  SequenceId TakeResting(Job& job, int index, size_t cached);
  SequenceId ForkLive(Job& job, const Job& source, size_t cached);
  Status GiveBudget(Job& job, SequenceId sequence);
  // Tokens that resting prefixes would save.
  size_t LikelySavings(const Job& job) const;
  // Tokens of `tokens`, read by `sequence`, that the job need not read.
  size_t Savings(const Job& job, const PrefixKey& key, std::span<const int32_t> tokens, size_t num_prompt_tokens,
                 size_t num_pinned, SequenceId sequence) const;
  size_t Savings(const Job& job, const Prefix& prefix) const;
  // Of a choice's sequence.
  std::vector<int32_t> ReadTokens(const Job& job, const Choice& choice) const;
  void Rest(Job& job, Choice& choice);
  void Checkpoint(Job& job);
  void AddPrefix(Prefix prefix);

  // Pieces of prefixes that stand elsewhere now (splices.cc).
  size_t LeastPiece(const Job& job) const;  // 0: none are taken
  void FindDonor(Job& job, size_t done);
  void DropDonor(Job& job);
  static bool IsAtPiece(const Job& job);
  void SplicePieces();

  // The store behind them (stored.cc).
  ReadingKey ReadingOf(const PrefixKey& key) const;
  SequenceId TakeStored(Job& job, size_t at_least);
  void KeepInStore(const Prefix& prefix);
  bool KeepOneInStore();  // false: there is nothing to keep
  size_t StoredCut(const Job& job) const;  // where a checkpoint would serve others; 0: nowhere

  // Steps (scheduler_step.cc).
  void StepOnce();
  void PlanStep();
  void PlanPrompts(std::vector<Job*> reading, int rows);
  size_t PieceEnd(const Job& job) const;
  size_t BorrowedBy(const Job& job, SequenceId sequence, size_t num_rows) const;
  void MakeRoomForStep();
  void EndStep();
  // A decode found no bytes. True: a job made room, this one or a younger one, and comes back later.
  bool Preempt(Job& job);
  void SendBack(Job& job);
  // Its sequence cannot go on for want of bytes, which it may have when it begins anew. False: they are not there even
  // where it is alone.
  bool Restart(Job& job, const Error& error);
  void AfterPiece(Job& job);
  void StartGenerating(Job& job);
  // Rows of prompts whose logits or hidden states are wanted, in a step at most.
  int MostWantedRows() const;
  // The same of a piece that was read; then all of it for the sink.
  void TakeRows(Job& job, std::span<const int32_t> tokens);
  void TellRows(Job& job);
  Status ForkChoices(Job& job);
  // What was sampled since the last time, and this text.
  void Say(Job& job, Choice& choice, std::string text);
  void Sample(Job& job, Choice& choice, std::span<const float> logits);
  void EndChoice(Job& job, Choice& choice, bool rests);
  void FinishJob(Job& job);
  void Report(Job& job, const Choice& choice);
  void Observe(Histogram& histogram, double value);

  // Prompts that are compressed once they are whole, and turns once they are over (compress.cc).
  // The size that the job's sequence may have when its prompt is compressed.
  size_t HeldLimit(const Job& job) const;
  std::string CompressKeyOf(const Job& job) const;
  // Of a job whose sequence cannot hold all: what names its question's topic.
  static std::string TopicOf(const Job& job);
  // Bytes that a job must be promised that holds `used` bytes and reads so many tokens more.
  size_t FloorFor(const Job& job, size_t used, size_t num_tokens) const;
  // What it may hold before its answer goes on, of what it holds; 1: all of it.
  double ShareToKeep(const Job& job) const;
  // True: it has begun, or goes on.
  bool BeginCompression(Job& job);
  // Of a recipe with turns=: a turn is over after so many tokens of the job's text.
  static bool IsTurnEnd(const Job& job, size_t num_tokens);
  static size_t NextTurnEnd(const Job& job);  // after those that are read; 0: none
  static void BeginTurnEnd(Job& job);
  // Where its recipe has turns= and there is no room for so many rows: what their step would do first comes before it,
  // by pieces. False: there is room, or that was tried.
  bool BeginRoom(Job& job, int rows);
  JobPtr NextToCompress() const;  // null: none
  // By so many rows of a second reading, or by a piece of what comes then. True: rows were read.
  bool CompressOn(Job& job, int rows);
  void EndTurnOf(Job& job, const Status& status);
  void EndCompression(Job& job, const Status& status);
  bool PromiseMore(Job& job);
  bool RestartByBlocks(Job& job);  // false: the recipe cannot
  bool SettleBudget(Job& job);
  // That are left free for the answer, as far as its length is known.
  size_t AnswerBytes(const Job& job) const;

  // Slots (slots.cc).
  Status CheckSlot(int slot) const;
  Result<std::string> SlotPath(const std::string& file_name) const;
  int RestingIn(int slot) const;  // index of its newest prefix, -1: none
  int EraseResting(int slot);

  const std::shared_ptr<Engine> engine_;
  const std::shared_ptr<const TextModel> text_;
  const SchedulerOptions options_;
  Recipe whole_recipe_;     // the engine's as it was given, of which the engine keeps what works by blocks
  size_t total_bytes_ = 0;  // that sequences may have between steps

  // Between threads, by mutex_.
  std::mutex mutex_;
  std::condition_variable wake_, idle_;
  std::vector<JobPtr> inbox_;
  std::deque<std::function<void()>> commands_;
  std::map<RequestId, JobPtr> jobs_;  // all that are not gone
  size_t num_waiting_ = 0;
  RequestId next_id_ = 1;
  bool drains_ = false, stops_ = false, has_cancels_ = false;
  uint64_t num_refused_ = 0, num_cancelled_ = 0;
  SchedulerStats published_;

  // The engine's thread alone.
  std::deque<JobPtr> waiting_;
  std::vector<JobPtr> running_;      // in the order in which they were admitted
  std::vector<const Job*> slots_;    // [max_running], null: free
  bool room_changed_ = true;         // since the first of waiting_ was refused
  PrefixStore prefixes_;
  PromptPacer pacer_;
  SchedulerStats counters_;
  SteadyClock::time_point published_at_;
  std::map<std::string, uint64_t> evicted_by_recipe_;
  struct Row {
    Job* job = nullptr;
    Choice* choice = nullptr;
    bool of_prompt = false;
  };
  std::vector<Row> rows_;
  std::vector<StepItem> items_;
  std::vector<float> row_logits_, row_hidden_;  // of the step's one prompt whose rows are wanted
  int compress_rows_ = 0;                       // of a prompt that is read again after this step
  bool compressed_last_ = false;                // whether it was such a one's turn in the last step
  bool takes_rows_ = false;  // whether it was their turn in the last step
  size_t turn_ = 0;  // of decodes that take steps of their own
  std::vector<Status> statuses_;

  std::thread thread_;
};

}  // namespace pith::server

#endif  // PITH_SERVER_SCHEDULER_IMPL_H_
