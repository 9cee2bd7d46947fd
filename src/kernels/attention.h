// Attention over a ragged, paged cache, and the row codecs of its pages.
//
// All functions here run on the threads of a Team; each has a scalar reference
// in attention_reference.h. SIMD code is compiled once per target and chosen
// at run time.
#ifndef PITH_KERNELS_ATTENTION_H_
#define PITH_KERNELS_ATTENTION_H_

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "base/team.h"
#include "kernels/page_layout.h"

namespace pith::kernels {

// The entries of one kv head in one storage format, in time order. Page i holds
// entries i*P .. i*P + P-1; the last one may be partly filled.
struct Segment {
  const PageLayout* layout = nullptr;
  const std::byte* const* pages = nullptr;
  int num_entries = 0;
};

// All that one kv head holds: its segments, in no particular order of time.
struct HeadEntries {
  std::span<const Segment> segments;
  // Segments whose layout has fewer channels of keys than the task hold these alone (key_channels.h). Null: none does.
  const uint16_t* key_channels = nullptr;
  // Of entries that are gone (feature_maps.h), with AttentionTask::features. Null: nothing.
  const float* state = nullptr;
  int num_entries() const {
    int count = 0;
    for (const Segment& segment : segments) count += segment.num_entries;
    return count;
  }
  // Channels of such segments of a head whose keys have `dim`; empty without them.
  std::span<const uint16_t> PrunedChannels(int dim) const {
    for (const Segment& segment : segments) {
      if (segment.layout->key_dim < dim && segment.num_entries > 0)
        return {key_channels, static_cast<size_t>(segment.layout->key_dim)};
    }
    return {};
  }
};

enum class MaskKind : uint8_t {
  kCausal,  // visible: position <= query position
  kWindow,  // and query position - position < window
  kChunk,   // and position >= query position / window * window
};

// What the task's queries paid to the entries of one kv head, gathered while attention runs. [n] each, in the
// order of the head's segments; null: not wanted.
struct EntryAttention {
  float* sum = nullptr;      // over queries: the mean over the group's query heads
  float* squares = nullptr;  // over queries: the square of that mean
  float* largest = nullptr;  // over queries and query heads
};

// One layer's attention for consecutive queries of one sequence.
// H query heads, G = H / num_kv_heads query heads per kv head, T queries.
struct AttentionTask {
  int num_queries = 0;   // T
  int num_heads = 0;     // H
  int num_kv_heads = 0;
  int key_dim = 0;       // D
  int value_dim = 0;     // Dv

  const float* queries = nullptr;  // element (t, h, d) at t*query_token_stride + h*query_head_stride + d
  size_t query_token_stride = 0;   // in floats
  size_t query_head_stride = 0;
  const int32_t* query_positions = nullptr;  // [T], ascending

  const HeadEntries* heads = nullptr;  // [num_kv_heads]

  float scale = 1.0f;
  float soft_cap = 0.0f;               // 0: none. score = cap * tanh(scale * q.k / cap)
  const float* alibi_slopes = nullptr;  // [H] or null. score -= slope * (query position - position)
  const float* sinks = nullptr;         // [H] or null: one more logit per head, without a value
  MaskKind mask = MaskKind::kCausal;
  int window = 0;
  // Features of the queries, [T, H, R], where heads have a state of entries that are gone: these take part in output,
  // and in nothing else (log_sum_exp, observed). All queries come after them.
  const float* features = nullptr;
  int rank = 0;  // R

  // Results. Element (t, h, d) at t*output_token_stride + h*output_head_stride + d.
  // A query that sees nothing gets zeros.
  float* output = nullptr;
  size_t output_token_stride = 0;
  size_t output_head_stride = 0;
  float* log_sum_exp = nullptr;  // [H, T] or null; sinks included; -inf where nothing is seen
  // Into how many equal stretches work is cut, each as if a thread did it: the same number gives the same bits on any
  // number of threads. 0, or fewer than threads: one for each thread.
  int num_parts = 0;
  const EntryAttention* observed = nullptr;  // [num_kv_heads] or null
  double* observe_seconds = nullptr;         // thread 0 adds what gathering took it; or null
};

// The most parts that a thread is given where bits are not to depend on the number of threads.
inline constexpr int kMaxMembers = 8;

// Bytes of scratch that RunAttention needs for these tasks on nth threads, or on fewer.
size_t AttentionScratchBytes(std::span<const AttentionTask> tasks, int nth);
size_t AttentionScratchBytes(const AttentionTask& task, int nth);

// Computes output (and log_sum_exp if asked for) of all tasks, which need have nothing in common. Called by every
// member of the team with the same arguments; on return of all members the results are complete (callers sync).
// The work of a task is split over kv heads, query tiles and ranges of pages by (ith, max(nth, task.num_parts))
// alone, so that number fixes its result, whatever other tasks there are. One barrier for all tasks together, two
// if any is observed. Allocates nothing.
// scratch: 64-byte aligned, shared by the team, AttentionScratchBytes long.
void RunAttention(std::span<const AttentionTask> tasks, std::byte* scratch, const Team& team);
void RunAttention(const AttentionTask& task, std::byte* scratch, const Team& team);

// Softmax probabilities of all task queries over the entries of every kv head, in
// the order of its segments: probabilities[kv head] is [G, T, n] float32 with
// n = task.heads[kv head].num_entries(); 0 where masked. task.output is not
// used. Sinks take part in the denominator.
struct ProbabilityTask {
  const AttentionTask* task = nullptr;
  float* const* probabilities = nullptr;  // [num_kv_heads]
};

// The rules of RunAttention, with as many parts as threads; one barrier for all tasks together.
void RunProbabilities(std::span<const ProbabilityTask> tasks, const Team& team);
void RunProbabilities(const AttentionTask& task, float* const* probabilities, const Team& team);

// Writes one entry into slot `slot` of a page: its key [D], value [Dv] and position.
// Columns are zeroed. Source rows are f16 bits (libllama's cache) or float32.
void WriteEntryF16(const PageLayout& layout, std::byte* page, int slot, const uint16_t* key, const uint16_t* value,
                   int32_t position);
void WriteEntryF32(const PageLayout& layout, std::byte* page, int slot, const float* key, const float* value,
                   int32_t position);

// Writes `count` consecutive entries (slots slot .. slot+count-1 of one page) from f16 rows
// `key_stride` and `value_stride` halves apart: the fast path of a block's append.
void WriteEntriesF16(const PageLayout& layout, std::byte* page, int slot, int count, const uint16_t* keys,
                     size_t key_stride, const uint16_t* values, size_t value_stride, const int32_t* positions);

// Copies an entry, columns and position included, between pages of the same
// layout. Exact: nothing is converted.
void CopyEntry(const PageLayout& layout, std::byte* to, int to_slot, const std::byte* from, int from_slot);

// Reads entries 0 .. count-1 of a page as float32 rows: keys [count, D], values [count, Dv].
void ReadKeys(const PageLayout& layout, const std::byte* page, int count, float* keys);
void ReadValues(const PageLayout& layout, const std::byte* page, int count, float* values);

// Name of the SIMD target in use ("AVX3_ZEN4", "AVX2", ...). PITH_FORCE_TARGET picks one.
const char* TargetName();
// The same, and the processor's matrix unit where attention of many rows runs in it: "AVX3_DL and AMX".
std::string UnitsInUse();

}  // namespace pith::kernels

#endif  // PITH_KERNELS_ATTENTION_H_
