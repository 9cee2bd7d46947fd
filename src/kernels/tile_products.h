// Products of matrices in a matrix unit (Intel AMX), for attention of many rows.
//
// The unit multiplies bf16 and adds in float32, at 16 times the rate of AVX-512. bf16 alone would be too coarse for
// keys and values in f16, so that every float32 x is taken as high + low, both bf16, which together have 16 significant
// bits (what f16 stores is exact), and
//
//   a * b = high(a) high(b) + high(a) low(b) + low(a) high(b)        (what is left out is below 2^-16 of it)
//
// at three times the unit's work: still a fifth of the time. Left factors are two planes of rows; right factors are
// packed as the unit reads them, 32 rows times 16 columns to a tile, two neighbouring rows in a word, the high tile
// before the low.
#ifndef PITH_KERNELS_TILE_PRODUCTS_H_
#define PITH_KERNELS_TILE_PRODUCTS_H_

#include <cstddef>
#include <cstdint>

namespace pith::kernels {

inline constexpr int kTileDepth = 32;         // what one step of the unit sums over
inline constexpr int kTileColumns = 16;       // of one tile
inline constexpr int kTileBlock = 32;         // rows, and columns, of one product
inline constexpr size_t kTileWords = 2 * 256;  // of a high and a low tile

// Words of the right factor [rows, columns]; columns a multiple of 16.
inline constexpr size_t PackedWords(size_t rows, size_t columns) {
  return (rows + kTileDepth - 1) / kTileDepth * (columns / kTileColumns) * kTileWords;
}

// high[i] + low[i] = scale * from[i] for i < count.
void SplitRow(const float* from, size_t count, float scale, uint16_t* high, uint16_t* low);

// Packs [rows][stride] into PackedWords(rows, columns) words, tiles of a group of 32 rows beside each other. Rows up to
// the next multiple of 32 become 0.
void PackRight(const float* from, size_t rows, size_t columns, size_t stride, uint32_t* to);

// sums [32][32] = (or += with `add`) left [32][32 * groups] times right [32 * groups][32].
struct TileProduct {
  const uint16_t* high;  // [32] rows, left_stride apart
  const uint16_t* low;
  size_t left_stride;
  const uint32_t* right;  // the first of two neighbouring pairs of tiles
  size_t group_stride;    // in words, from 32 rows of it to the next
  int groups;
  float* sums;
  size_t sum_stride;
  bool add;
};

struct TileUnit {
  const char* name;
  // Around the products of one thread.
  void (*begin)();
  void (*end)();
  void (*multiply)(const TileProduct& product);
};

// The unit in use; null where the processor has none, Linux doesn't grant it, or PITH_FORCE_TARGET is set.
const TileUnit* GetTileUnit();

// The same arithmetic in plain C++, for tests on any machine.
const TileUnit& PlainTileUnit();
// This machine's, or null.
const TileUnit* HardwareTileUnit();
// Not while attention runs.
void SetTileUnitForTest(const TileUnit* unit);

}  // namespace pith::kernels

#endif  // PITH_KERNELS_TILE_PRODUCTS_H_
