// Entries in fewer bytes than pages have, for what leaves memory: keys and values in error-bounded codes, these in
// Huffman codes (KVComp, arXiv:2509.00579; kernels/error_bound.h, kernels/huffman.h), positions as differences.
//
// A layer has one Huffman code for keys and one for values, made from all its blocks. A block, of kCodedBlock entries
// of one head:
//
//   u32 bytes that follow
//   positions   each as its difference from the one before, the first one from 0
//   columns     f32 [columns][entries]
//   keys        unit by unit: u16 step as float16 and its minimum in steps; step 0: f32, the number that all are;
//               step ~0: no codes, f32 each. Then a vector for each entry: D codes, from a byte's first bit on
//   values      the same
//
// Integers (positions, minima) are written zigzag, in as many bytes as they need, 7 bits in each.
#ifndef PITH_CACHE_CODED_ENTRIES_H_
#define PITH_CACHE_CODED_ENTRIES_H_

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/byte_io.h"
#include "kernels/error_bound.h"
#include "kernels/huffman.h"
#include "kernels/page_layout.h"
#include "pith/types.h"

namespace pith {

inline constexpr int kCodedBlock = 64;

// How entries are coded. No key moves by more than half of key.share of its unit's range, and a value likewise, beside
// what the format of its page rounds; of each part of a head the newest ones stay as they are.
struct CodedForm {
  kernels::ErrorBound key{.unit = kernels::ErrorUnit::kChannel,
                          .share = 0.06,
                          .block = kCodedBlock,
                          .recent = kCodedBlock,
                          .keeps_grid = true};
  kernels::ErrorBound value{.unit = kernels::ErrorUnit::kToken,
                            .share = 0.06,
                            .block = kCodedBlock,
                            .recent = kCodedBlock,
                            .keeps_grid = true};

  // Of num_entries in pages of this layout those that are coded, the oldest: whole blocks. Pages of 4 and 2 bits stay,
  // and so do coded ones.
  int CodedEntries(const PageLayout& layout, int num_entries) const;
  // "comp:ek=0.06,ev=0.06,unit=channel,recent=64", as ParseCodedForm() takes it.
  std::string Name() const;

  void Save(ByteWriter& writer) const;
  static Result<CodedForm> Read(ByteReader& reader);

  friend bool operator==(const CodedForm&, const CodedForm&) = default;
};

// "comp", "comp:ek=F,ev=F,unit=channel|head,recent=N", or "exact": none.
Result<std::optional<CodedForm>> ParseCodedForm(std::string_view text);

// The codes of a layer's keys, or of its values.
class RowCoder {
 public:
  explicit RowCoder(const kernels::ErrorBound& bound);

  // rows: [kCodedBlock, dim]. All blocks are counted first, and kept, a byte for each element; Settle() then makes the
  // code.
  void Count(std::span<const float> rows, size_t dim);
  void Settle() { code_.emplace(counts_); }
  void SaveCode(ByteWriter& writer) const;
  Status ReadCode(ByteReader& reader);

  // The next of the blocks, in the order in which they were counted.
  void Write(size_t dim, std::vector<uint8_t>& bytes);
  // False: the bytes are no block's.
  bool Read(MemoryReader& reader, size_t dim, std::span<float> rows) const;

 private:
  struct Block {
    std::vector<uint8_t> codes;  // [kCodedBlock, dim]
    std::vector<float> steps;
    std::vector<int32_t> minima;
    std::vector<float> rows;  // where a unit has no codes
  };

  const kernels::ErrorBound bound_;
  std::vector<Block> blocks_;
  size_t next_ = 0;              // of them, to be written
  std::vector<int64_t> counts_;  // of each code, and one more, so that every code can be written
  std::optional<kernels::HuffmanCode> code_;
};

// Those of a layer. Blocks come as the pages that hold them, kCodedBlock / kPageEntries of one layout; they are written
// in the order in which they were counted.
class LayerCoder {
 public:
  explicit LayerCoder(const CodedForm& form) : form_(form), keys_(form.key), values_(form.value) {}

  const CodedForm& form() const { return form_; }
  void Count(const PageLayout& layout, std::span<const std::byte* const> pages);
  void Settle() { keys_.Settle(), values_.Settle(); }
  void SaveCodes(ByteWriter& writer) const { keys_.SaveCode(writer), values_.SaveCode(writer); }
  Status ReadCodes(ByteReader& reader);

  void Write(const PageLayout& layout, std::span<const std::byte* const> pages, ByteWriter& writer);
  // Into pages of this layout. kCorrupt.
  Status Read(ByteReader& reader, const PageLayout& layout, std::span<std::byte* const> pages);
  // Of a block, at least.
  static size_t LeastBytes(const PageLayout& layout);

 private:
  const CodedForm form_;
  RowCoder keys_, values_;
  std::vector<float> key_rows_, value_rows_;  // scratch, of a block
  std::vector<uint8_t> bytes_;
};

}  // namespace pith

#endif  // PITH_CACHE_CODED_ENTRIES_H_
