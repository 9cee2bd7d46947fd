// The SIMD work of attention, one page or one step of pages at a time.
//
// attention.cc and probabilities.cc decide who computes what; the functions
// here do it. They are compiled once per SIMD target and reached through the
// table of the target in use, so that nothing else needs SIMD.
//
// Queries come packed as [D][R] for R rows ("block"): one channel of all rows
// lies together, so that a kernel walks one pointer. Scores and weights of a row
// are kStepEntries apart. All scores are in units of log2: weights are 2^score.
#ifndef PITH_KERNELS_PAGE_KERNELS_H_
#define PITH_KERNELS_PAGE_KERNELS_H_

#include <cstddef>
#include <cstdint>

#include "kernels/page_layout.h"

namespace pith::kernels {

// Pages whose scores are computed before their softmax: the row maximum, and
// the rescaling of what was accumulated before, are paid once for all of them.
inline constexpr int kStepPages = 4;
inline constexpr int kStepEntries = kStepPages * kPageEntries;

// Most rows of one block on any target.
inline constexpr int kMaxBlockRows = 12;

// Accumulators are padded to this many floats, the most that a kernel touches at once.
inline constexpr size_t kValuePad = 32;

// What a kernel reads: a page's own storage or a page converted to float32
// (keys [D][P] with their scales applied; values [entries][stride] likewise).
enum class Source : uint8_t {
#define PITH_KV_FORMAT(id, ...) k##id,
#include "kernels/kv_formats.inc"
#undef PITH_KV_FORMAT
  kF32,
  kCoded
};
inline constexpr int kNumSources = kNumKvFormats + 2;
inline constexpr bool HasEntryScales(Source source) {
  return source < Source::kF32 && pith::HasEntryScales(static_cast<KvFormat>(source));
}
inline constexpr Source SourceOf(KvFormat format) {
  return IsCoded(format) ? Source::kCoded : static_cast<Source>(format);
}

// Bytes that will be needed soon, fetched while computing. bytes may be 0.
struct Prefetch {
  const std::byte* at = nullptr;
  size_t bytes = 0;
};

// scores[r * kStepEntries + j] = sum over d of queries[d * R + r] * keys[d][j], for all 32 j.
struct ScoreArgs {
  const float* queries;  // [D][R]
  const float* const* query_rows;  // [R][D] for groups: the same times 1 / query_scale, a row at a time
  float query_scale;
  size_t key_dim;        // D
  const void* keys;
  const void* key_scales;  // of bytes: float32 [P]; of groups: bytes [2][D], scales and zeros
  float* scores;
  Prefetch prefetch;
};
using ScoreFn = void (*)(const ScoreArgs& args);

// acc[r * acc_stride + c] += sum over j < count of weights[r * kStepEntries + j] * values[j][c].
// Touches up to kValuePad - 1 columns beyond value_dim of acc, and reads as many
// elements beyond the last value: in a page, positions or scales lie there.
struct AccumulateArgs {
  const float* weights;
  int count;
  const void* values;
  size_t value_stride;       // in elements; of groups: in bytes
  const void* value_scales;  // of groups only: bytes [2][N][P], scales and zeros
  size_t value_dim;     // Dv
  float* acc;
  size_t acc_stride;  // in floats, a multiple of kValuePad
  Prefetch prefetch;
};
using AccumulateFn = void (*)(const AccumulateArgs& args);

// What a row may see: positions first..last, last being the query's own.
struct RowRule {
  int32_t first = 0;
  int32_t last = 0;
  float slope = 0.0f;  // ALiBi, per position, in log2 units
};

// One page of a step, as softmax sees it.
struct StepPage {
  const int32_t* positions;
  const float* value_scales;  // [P], multiplied into the weights; null: none
  int count;                  // entries in use
  bool masked;                // some row sees only a part, or count < P
};

// Online softmax of `rows` rows over one step. scores become weights, and
// max, sum [rows] (of 2^(score - max)) are carried on; alpha [rows] is the
// factor that what was accumulated under the former maximum needs.
struct SoftmaxArgs {
  float* scores;
  int rows;
  const RowRule* rules;
  const StepPage* pages;
  int num_pages;
  float soft_cap;  // in log2 units; 0: none. Scores then come as arguments of tanh
  bool alibi;
  float* max;
  float* sum;
  float* alpha;
};

// Adds the attention of `num_queries` queries times `group` query heads to what was seen of one page's entries.
struct ObserveArgs {
  const float* weights;  // rows (query, query head), kStepEntries apart
  const float* factors;  // [rows] what makes a weight a probability
  int num_queries;
  int group;
  float* sum;      // [P] each, as EntryAttention
  float* squares;  // null: only the sum
  float* largest;  // null with squares
};

// A coded page in integers: few rows of queries, rounded to 16 bits, times its numbers, which never become float32.
// Values come on the way, in 16 bits, for when there are weights.
inline constexpr int kMaxCodedRows = 4;
struct CodedScoreArgs {
  const PageLayout* layout;
  const std::byte* page;
  const float* queries;    // [R][D]
  const int16_t* rounded;  // [R][D rounded up to 2]: the same in units[r]
  const float* units;      // [R]
  float* scores;           // as ScoreArgs
  int16_t* values;         // [P][N * 32], 64-byte aligned, kCodeBias higher
  float* value_steps;      // [P]
  Prefetch prefetch;
  bool is_read;            // false afterwards: a page of float16, of which nothing was read
};
// Pages of one layout, as many as a step has at most.
using CodedScoreFn = void (*)(CodedScoreArgs* pages, int count);

// acc[r * acc_stride + c] += sum over j of weights[r * kStepEntries + j] * value_steps[j] * values[j][c], for all of N
// * 32 channels. Weights are rounded to 16 bits of a row's greatest.
struct CodedAccumulateArgs {
  const float* weights;
  const int16_t* values;  // kCodeBias higher
  const float* value_steps;
  int groups;  // N
  float* acc;
  size_t acc_stride;
};
using CodedAccumulateFn = void (*)(const CodedAccumulateArgs& args);

// What reads pages of one source. Of coded pages: what converts them alone.
struct SourceKernels {
  // Indexed by R (1 .. block_rows).
  ScoreFn score[kMaxBlockRows + 1];
  AccumulateFn accumulate[kMaxBlockRows + 1];

  // A page's keys as float32 [D][P], scales applied. Null for kF32, as the next one.
  void (*convert_keys)(const PageLayout& layout, const std::byte* page, float* keys);
  // A page's first `count` values as float32 [P][stride], scales applied; the other rows become 0.
  void (*convert_values)(const PageLayout& layout, const std::byte* page, int count, float* values, size_t stride);
  // Both of a coded page, which takes less time than one after the other. Null for all others.
  void (*convert_page)(const PageLayout& layout, const std::byte* page, float* keys, float* values, size_t stride);
  // Of coded pages, by rows; null where the target has none.
  CodedScoreFn score_coded[kMaxCodedRows + 1];
  CodedAccumulateFn accumulate_coded[kMaxCodedRows + 1];
};

// On the target in use, each from a file of its own.
#define PITH_KV_FORMAT(id, ...) SourceKernels KernelsOf##id();
#include "kernels/kv_formats.inc"
#undef PITH_KV_FORMAT
SourceKernels KernelsOfF32();
SourceKernels KernelsOfCoded();

struct PageKernels {
  const char* target_name;
  int block_rows;  // the most rows R of a block, at most kMaxBlockRows

  SourceKernels sources[kNumSources];
  const SourceKernels& of(Source source) const { return sources[static_cast<int>(source)]; }
  void ConvertKeys(const PageLayout& layout, const std::byte* page, float* keys) const {
    of(SourceOf(layout.format.key)).convert_keys(layout, page, keys);
  }
  void ConvertValues(const PageLayout& layout, const std::byte* page, int count, float* values, size_t stride) const {
    of(SourceOf(layout.format.value)).convert_values(layout, page, count, values, stride);
  }

  void ConvertPage(const PageLayout& layout, const std::byte* page, int count, float* keys, float* values,
                   size_t stride) const {
    if (layout.format.coded()) return of(Source::kCoded).convert_page(layout, page, keys, values, stride);
    ConvertKeys(layout, page, keys);
    ConvertValues(layout, page, count, values, stride);
  }

  void (*softmax)(const SoftmaxArgs& args);

  void (*observe)(const ObserveArgs& args);

  // Soft-cap, ALiBi and mask of one row of one page's scores, in place; hidden ones become -inf.
  void (*adjust)(float* scores, const RowRule& rule, const StepPage& page, float soft_cap, bool alibi);

  // Softmax of scores[count] in place. sink: one more logit (log2 units) or -inf.
  void (*softmax_row)(float* scores, int64_t count, float sink);

  // values[i] *= factor for i < count.
  void (*scale)(float* values, size_t count, float factor);

  // Least and greatest of positions[0 .. count-1]; count >= 1.
  void (*position_range)(const int32_t* positions, int count, int32_t* least, int32_t* greatest);
};

// The table of the target in use.
const PageKernels& GetPageKernels();

}  // namespace pith::kernels

#endif  // PITH_KERNELS_PAGE_KERNELS_H_
