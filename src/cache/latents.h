// Entries as small latents beside a few that stay whole (DeltaKV, arXiv:2602.08005; github.com/CURRENTF/Sparse-vLLM
// src/sparsevllm/engine/cache_manager/deltakv_base.py): the difference of an entry to the mean of the references
// nearest to it, in few numbers.
//
//   x = [key before RoPE; value]   a vector of D numbers
//   base = mean of the k nearest earlier references, z = f(x) - f(base), x^ = g(z) + base
//
// In pages f and g are linear, so that z = F (x - base), x^ = G z + base, and a vector is that of one kv head, where
// the authors take one of all heads of a layer: heads hold entries of their own here. Columns of G stand first among a
// head's maps, in f16: [r][D]. Behind them either a number w (rows of F are columns of G, of keys times w), or F,
// [r][D].
#ifndef PITH_CACHE_LATENTS_H_
#define PITH_CACHE_LATENTS_H_

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "base/aligned.h"
#include "kernels/page_layout.h"

namespace pith {

enum class DeltaMetric : uint8_t { kL2, kDot, kCosine };

// In place of a reference, where fewer can be seen than a latent may have.
inline constexpr uint16_t kNoReference = 0xffff;

// Rows abreast, for products with many others (kernels/row_table.h), in aligned memory of their own.
class RowTable {
 public:
  // rows: [count, dim]
  RowTable(const float* rows, int count, int dim);
  // Products with rows [n, dim]: [n, count].
  void Multiply(const float* rows, int n, float* products) const;
  int count() const { return count_; }
  int dim() const { return dim_; }

 private:
  int count_, dim_;
  AlignedArray<float> table_;
};

// Vectors that latents may refer to.
class References {
 public:
  // rows: [count, dim], which outlive this.
  References(const float* rows, int count, int dim);

  // Of each row [n, dim] the `wanted` nearest among its first visible[i] references, nearest first, of equal ones the
  // earlier: [n, wanted], kNoReference where there are none left.
  void Nearest(DeltaMetric metric, const float* rows, std::span<const int32_t> visible, int wanted,
               uint16_t* nearest) const;
  // The mean of some of them; zeros if there are none. base: [dim].
  void Mean(std::span<const uint16_t> references, float* base) const;

 private:
  const float* rows_;
  RowTable table_;
  std::vector<float> squares_;  // of lengths
};

// Entries by the side of their bases.
struct LatentDifferences {
  std::vector<uint16_t> nearest;  // [n, k]
  std::vector<float> rows;        // [n, D]
};
// Of rows [n, D] to references [any, D], of which each sees the first visible[i]; near as DeltaMetric::kL2 has it.
LatentDifferences FindDifferences(const PageLayout& layout, std::vector<float> rows, std::span<const float> references,
                                  std::span<const int32_t> visible);

// Numbers of a head's maps that FitLatentMaps() finds.
size_t NumMapNumbers(const PageLayout& layout);
// Either form of maps for pages of this layout.
bool AreMapsFor(const PageLayout& layout, size_t num_numbers);

// Maps for differences [n, D] of entries to their bases: the principal axes of these (not centred), of keys and values
// as if they varied alike. O(n D^2 + r D^2).
std::vector<uint16_t> FitLatentMaps(const PageLayout& layout, const float* differences, int n);

// Numbers of maps as f16 and back.
std::vector<uint16_t> ToMapNumbers(std::span<const float> numbers);
std::vector<float> FromMapNumbers(std::span<const uint16_t> maps);

// z of differences [n, D]: [n, r].
void EncodeDifferences(const PageLayout& layout, std::span<const uint16_t> maps, const float* differences, int n,
                       float* latents);

// G as the table that ReadLatents() takes, at a multiple of 64 bytes; scratch: [D].
size_t ReadingTableFloats(const PageLayout& layout);
void MakeReadingTable(const PageLayout& layout, std::span<const uint16_t> maps, float* scratch, float* table);

// What the entries of a page of latents are, keys before RoPE: [P, D]. references: [num_references, D]; scratch: [P, r]
// floats. Allocates nothing.
void ReadLatents(const PageLayout& layout, const std::byte* page, const float* references, const float* table,
                 float* scratch, float* rows);
// An entry's latent and references to a page; position and columns are left.
void WriteLatent(const PageLayout& layout, std::byte* page, int slot, std::span<const uint16_t> references,
                 const float* latent);

}  // namespace pith

#endif  // PITH_CACHE_LATENTS_H_
