// One sequence in a file: all that it needs to go on as if it had never stopped.
//
//   "PITHKV\r\n"   8 bytes
//   u32 version    10
//   u32 stamp of the pages' layout (PageLayoutStamp)
//   u64 bytes of the body, u64 CRC-32C of the body
//   body, all numbers little-endian, texts and arrays with a u64 length before them:
//     u64 fingerprint of the model's contents, text description, text recipe
//     i32 tokens given, i64 entries seen, u64 pinned ranges, each i32 from, i32 to
//     array of i32 tokens and text: the caller's own note
//     array of f32 logits of the last token (may be empty)
//     u32 window, array of f16 queries of the last window positions
//     array of f32: moments of all queries; not there where the recipe reads none
//     array of i32: where the turn and what can be gone back to begin, whether full pages are converted, [from, to) of
//     turns that are over; array of i32 tokens read: both only where a recipe compresses as it goes
//     array of f64 merge thresholds of the global layers (D2O), NaN before the first eviction
//     array of bytes: recurrent state
//     u64 fingerprint of the maps of its states (act=less), 0: it has none
//     u32 format of the sequence, u32 formats of its full and of its lowered pages, ~0: none; f64 share of the channels
//     of keys that the latter lack, i32 newest entries that keep all
//     u8 whether entries are coded; if so their form (CodedForm::Save())
//     cache (src/cache/cache_file.cc)
//
// Coded entries come back as near as their form says, and in the format that their pages had.
//
// A file is read twice: once for its sum, once for its content. Nothing in it is believed before it has been compared
// with the model, the cache and the bytes that are left.
#ifndef PITH_ENGINE_SESSION_FILE_H_
#define PITH_ENGINE_SESSION_FILE_H_

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/byte_io.h"
#include "cache/coded_entries.h"
#include "cache/kv_cache.h"
#include "engine/engine.h"
#include "engine/sequence.h"
#include "host/context.h"
#include "pith/types.h"

namespace pith {

// What a saved sequence must agree with.
struct SessionOwner {
  uint64_t fingerprint = 0;  // HostModel::fingerprint(); 0 is refused
  std::string description;
  std::string recipe;
  int num_ctx = 0;
  int num_vocab = 0;
  int64_t num_global_heads = 0;  // KV heads of all global layers
  PageFormat format = {};        // that the sequence was made for; compressions may have converted pages to another
};

// What is saved beside the sequence, and how.
struct SessionParts {
  std::span<const std::byte> recurrent;
  std::span<const float> logits;  // may be empty
  const SessionNote& note;
  std::optional<CodedForm> coded = {};  // none: entries as they lie
};

// kIo: the file cannot be written; an older one of that name stays.
Status SaveSession(const std::string& path, const SessionOwner& owner, const Sequence& sequence, const KvCache& cache,
                   const SessionParts& parts);

// Into `sequence`, which has an empty cache, a slot and a query ring of its own. After an error it is to be freed.
// kNotFound (no such file, or an empty one), kIo, kCorrupt (NaN and infinities, too), kUnsupported (another version or
// layout), kInvalidArgument (of another model, recipe, format or context), kOutOfBudget.
Status RestoreSession(const std::string& path, const SessionOwner& owner, KvCache& cache, HostContext& context,
                      Sequence& sequence, SessionNote& note);

// The parts of a file, for the two functions above and for tests. Neither needs a model.
inline constexpr size_t kSessionHeaderBytes = 32;

// Differs where a page's parts lie elsewhere: of all formats, from PageLayout::Make().
uint32_t PageLayoutStamp();

// Of the body, or of its next part after one with the sum `before`.
uint64_t SessionSum(std::span<const std::byte> bytes, uint64_t before = 0);
void WriteSessionHeader(ByteWriter& writer, uint64_t body_bytes, uint64_t body_sum);
// Header and body, which is read for its sum. kCorrupt, kUnsupported (another version or layout), kIo.
Status CheckSession(ByteReader& reader);

void WriteSessionBody(ByteWriter& writer, const SessionOwner& owner, const Sequence& sequence, const KvCache& cache,
                      const SessionParts& parts);
// The recurrent state is returned, not restored. Takes no more memory than the body has bytes, and pages of the cache.
Status ReadSessionBody(ByteReader& reader, const SessionOwner& owner, KvCache& cache, Sequence& sequence,
                       std::vector<std::byte>& recurrent, SessionNote& note);

}  // namespace pith

#endif  // PITH_ENGINE_SESSION_FILE_H_
