#include "cache/latents.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <utility>

#include "base/check.h"
#include "cache/page_entries.h"
#include "kernels/attention.h"
#include "kernels/group_codec.h"
#include "kernels/row_table.h"
#include "kernels/triangles.h"

namespace pith {
namespace {

// Rows whose products with all references are in memory at once.
constexpr int kAtOnce = 32;
// Differences that FitLatentMaps() looks at.
constexpr int kMostFitted = 1024;
constexpr int kFitSteps = 12;
// Of the weight of keys: as far as 16 bits say it well.
constexpr float kMostWeight = 1024;

size_t DimOf(const PageLayout& layout) { return static_cast<size_t>(layout.key_dim + layout.value_dim); }

// Rows of halves as the values of a page.
PageLayout RowsOf(size_t value_offset, int dim) {
  PageLayout rows;
  rows.value_offset = value_offset;
  rows.value_dim = dim;
  return rows;
}

void ReadRow(const PageLayout& layout, std::span<const uint16_t> maps, int row, float* to) {
  const size_t dim = DimOf(layout);
  kernels::ReadValues(RowsOf(0, static_cast<int>(dim)),
                      reinterpret_cast<const std::byte*>(maps.data() + static_cast<size_t>(row) * dim), 1, to);
}

float Dot(const float* a, const float* b, size_t count) {
  double dot = 0;
  for (size_t i = 0; i < count; ++i) dot += static_cast<double>(a[i]) * static_cast<double>(b[i]);
  return static_cast<float>(dot);
}

// Gram and Schmidt, twice; what depends on rows before it becomes a unit vector that does not.
void MakeOrthonormal(float* rows, size_t count, size_t dim) {
  for (size_t i = 0; i < count; ++i) {
    float* const row = rows + i * dim;
    const float before = Dot(row, row, dim);
    for (int pass = 0; pass < 2; ++pass) {
      for (size_t j = 0; j < i; ++j) {
        const float dot = Dot(row, rows + j * dim, dim);
        for (size_t c = 0; c < dim; ++c) row[c] -= dot * rows[j * dim + c];
      }
    }
    float length = Dot(row, row, dim);
    for (size_t next = 0; next < dim && !(length > 1e-10F * before && length > 0); ++next) {
      std::fill_n(row, dim, 0.0F);
      row[(i + next) % dim] = 1;
      for (size_t j = 0; j < i; ++j) {
        const float dot = rows[j * dim + (i + next) % dim];
        for (size_t c = 0; c < dim; ++c) row[c] -= dot * rows[j * dim + c];
      }
      length = Dot(row, row, dim);
      if (length < 1e-3F) length = 0;
    }
    const float scale = 1 / std::sqrt(length);
    for (size_t c = 0; c < dim; ++c) row[c] *= scale;
  }
}

}  // namespace

RowTable::RowTable(const float* rows, int count, int dim)
    : count_(count), dim_(dim), table_(AllocateAligned<float>(kernels::TableFloats(count, dim))) {
  for (int i = 0; i < count; ++i) {
    kernels::StoreRow(rows + static_cast<size_t>(i) * static_cast<size_t>(dim), dim, i, table_.get());
  }
}

void RowTable::Multiply(const float* rows, int n, float* products) const {
  kernels::ScoreTable(rows, n, dim_, table_.get(), count_, products, static_cast<size_t>(count_));
}

References::References(const float* rows, int count, int dim) : rows_(rows), table_(rows, count, dim) {
  const auto width = static_cast<size_t>(dim);
  for (size_t i = 0; i < static_cast<size_t>(count); ++i)
    squares_.push_back(Dot(rows + i * width, rows + i * width, width));
}

void References::Nearest(DeltaMetric metric, const float* rows, std::span<const int32_t> visible, int wanted,
                         uint16_t* nearest) const {
  constexpr float kLeastNorm = 1e-6F;
  const auto dim = static_cast<size_t>(table_.dim()), count = static_cast<size_t>(table_.count());
  const auto k = static_cast<size_t>(wanted);
  std::vector<float> products(count * kAtOnce), best(k);
  for (size_t first = 0; first < visible.size(); first += kAtOnce) {
    const size_t some = std::min<size_t>(kAtOnce, visible.size() - first);
    table_.Multiply(rows + first * dim, static_cast<int>(some), products.data());
    for (size_t r = 0; r < some; ++r) {
      uint16_t* const ids = nearest + (first + r) * k;
      std::fill(best.begin(), best.end(), -std::numeric_limits<float>::infinity());
      std::fill_n(ids, k, kNoReference);
      for (size_t j = 0; j < static_cast<size_t>(visible[first + r]); ++j) {
        float alike = products[r * count + j];
        // A row's own length ranks nothing.
        if (metric == DeltaMetric::kL2) alike = 2 * alike - squares_[j];
        if (metric == DeltaMetric::kCosine) alike /= std::sqrt(squares_[j]) + kLeastNorm;
        if (!(alike > best[k - 1])) continue;
        size_t at = k - 1;
        for (; at > 0 && best[at - 1] < alike; --at) {
          best[at] = best[at - 1];
          ids[at] = ids[at - 1];
        }
        best[at] = alike;
        ids[at] = static_cast<uint16_t>(j);
      }
    }
  }
}

namespace {

// rows: [any, dim]; adds the mean of some to a row.
void AddMean(std::span<const uint16_t> references, const float* rows, size_t dim, float* to) {
  size_t count = 0;
  while (count < references.size() && references[count] != kNoReference) ++count;
  const float share = count > 0 ? 1 / static_cast<float>(count) : 0;
  for (size_t i = 0; i < count; ++i) {
    const float* const row = rows + references[i] * dim;
    for (size_t c = 0; c < dim; ++c) to[c] += share * row[c];
  }
}

}  // namespace

void References::Mean(std::span<const uint16_t> references, float* base) const {
  const auto dim = static_cast<size_t>(table_.dim());
  std::fill_n(base, dim, 0.0F);
  AddMean(references, rows_, dim, base);
}

LatentDifferences FindDifferences(const PageLayout& layout, std::vector<float> rows, std::span<const float> references,
                                  std::span<const int32_t> visible) {
  const size_t dim = DimOf(layout), k = layout.format.references;
  const References near(references.data(), static_cast<int>(references.size() / dim), static_cast<int>(dim));
  LatentDifferences found{.nearest = std::vector<uint16_t>(visible.size() * k), .rows = {}};
  near.Nearest(DeltaMetric::kL2, rows.data(), visible, static_cast<int>(k), found.nearest.data());
  std::vector<float> base(dim);
  for (size_t i = 0; i < visible.size(); ++i) {
    near.Mean({found.nearest.data() + i * k, k}, base.data());
    for (size_t c = 0; c < dim; ++c) rows[i * dim + c] -= base[c];
  }
  found.rows = std::move(rows);
  return found;
}

size_t NumMapNumbers(const PageLayout& layout) { return static_cast<size_t>(layout.rank()) * DimOf(layout) + 1; }

bool AreMapsFor(const PageLayout& layout, size_t num_numbers) {
  const size_t columns = static_cast<size_t>(layout.rank()) * DimOf(layout);
  return num_numbers == columns + 1 || num_numbers == 2 * columns;
}

std::vector<uint16_t> FitLatentMaps(const PageLayout& layout, const float* differences, int n) {
  const size_t dim = DimOf(layout), rank = static_cast<size_t>(layout.rank());
  const auto key_dim = static_cast<size_t>(layout.key_dim);
  const int fitted = std::min(n, kMostFitted);
  std::vector<float> rows;
  double keys = 0, values = 0;
  for (int i = 0; i < fitted; ++i) {
    const float* const row = differences + static_cast<size_t>(int64_t{i} * n / fitted) * dim;
    rows.insert(rows.end(), row, row + dim);
    keys += Dot(row, row, key_dim);
    values += Dot(row + key_dim, row + key_dim, dim - key_dim);
  }
  const bool both = keys > 0 && values > 0;
  const float weight = both ? std::clamp(static_cast<float>(values / keys), 1 / kMostWeight, kMostWeight) : 1.0F;
  const float scale = std::sqrt(weight);
  for (size_t i = 0; i < static_cast<size_t>(fitted); ++i) {
    for (size_t c = 0; c < key_dim; ++c) rows[i * dim + c] *= scale;
  }
  std::vector<float> triangle(kernels::TriangleSize(static_cast<int>(dim))), square(dim * dim);
  kernels::AddOuterProducts(rows.data(), fitted, static_cast<int>(dim), triangle.data());
  const float* from = triangle.data();
  for (size_t i = 0; i < dim; ++i) {
    for (size_t j = 0; j <= i; ++j) square[i * dim + j] = square[j * dim + i] = *from++;
  }
  // The space of the largest eigenvalues, by iteration. It begins with differences as they are, which span it well.
  std::vector<float> basis(rank * dim), next(rank * dim);
  for (size_t r = 0; r < rank; ++r) {
    std::copy_n(rows.data() + (r * static_cast<size_t>(fitted) / rank) * dim, dim, basis.data() + r * dim);
  }
  MakeOrthonormal(basis.data(), rank, dim);
  const RowTable table(square.data(), static_cast<int>(dim), static_cast<int>(dim));
  for (int step = 0; step < kFitSteps; ++step) {
    table.Multiply(basis.data(), static_cast<int>(rank), next.data());
    basis.swap(next);
    MakeOrthonormal(basis.data(), rank, dim);
  }
  for (size_t r = 0; r < rank; ++r) {
    for (size_t c = 0; c < key_dim; ++c) basis[r * dim + c] /= scale;
  }
  basis.push_back(weight);
  return ToMapNumbers(basis);
}

std::vector<uint16_t> ToMapNumbers(std::span<const float> numbers) {
  std::vector<uint16_t> maps(numbers.size());
  kernels::WriteValueRow(RowsOf(0, static_cast<int>(numbers.size())), reinterpret_cast<std::byte*>(maps.data()), 0,
                         numbers.data());
  return maps;
}

std::vector<float> FromMapNumbers(std::span<const uint16_t> maps) {
  std::vector<float> numbers(maps.size());
  kernels::ReadValues(RowsOf(0, static_cast<int>(maps.size())), reinterpret_cast<const std::byte*>(maps.data()), 1,
                      numbers.data());
  return numbers;
}

void EncodeDifferences(const PageLayout& layout, std::span<const uint16_t> maps, const float* differences, int n,
                       float* latents) {
  PITH_CHECK(AreMapsFor(layout, maps.size()));
  const size_t dim = DimOf(layout);
  const int rank = layout.rank();
  const bool pair = maps.size() != NumMapNumbers(layout);
  std::vector<float> rows(static_cast<size_t>(rank) * dim);
  float weight = 1;
  if (!pair) kernels::ReadValues(RowsOf(0, 1), reinterpret_cast<const std::byte*>(&maps.back()), 1, &weight);
  for (int r = 0; r < rank; ++r) {
    float* const row = rows.data() + static_cast<size_t>(r) * dim;
    ReadRow(layout, maps, pair ? rank + r : r, row);
    for (int c = 0; c < layout.key_dim; ++c) row[c] *= weight;
  }
  RowTable(rows.data(), rank, static_cast<int>(dim)).Multiply(differences, n, latents);
}

size_t ReadingTableFloats(const PageLayout& layout) {
  return kernels::TableFloats(layout.key_dim + layout.value_dim, layout.rank());
}

void MakeReadingTable(const PageLayout& layout, std::span<const uint16_t> maps, float* scratch, float* table) {
  const size_t dim = DimOf(layout);
  const auto rank = static_cast<size_t>(layout.rank());
  for (size_t r = 0; r < rank; ++r) {
    ReadRow(layout, maps, static_cast<int>(r), scratch);
    for (size_t c = 0; c < dim; c += kP) {
      std::memcpy(table + (c * rank + r * kP), scratch + c, sizeof(float) * std::min<size_t>(kP, dim - c));
    }
  }
}

void ReadLatents(const PageLayout& layout, const std::byte* page, const float* references, const float* table,
                 float* scratch, float* rows) {
  const auto dim = DimOf(layout);
  kernels::ReadValues(RowsOf(layout.value_offset, layout.rank()), page, kP, scratch);
  kernels::ScoreTable(scratch, kP, layout.rank(), table, static_cast<int>(dim), rows, dim);
  for (int slot = 0; slot < kP; ++slot) {
    AddMean({layout.references(page, slot), layout.format.references}, references, dim,
            rows + static_cast<size_t>(slot) * dim);
  }
}

void WriteLatent(const PageLayout& layout, std::byte* page, int slot, std::span<const uint16_t> references,
                 const float* latent) {
  PITH_DCHECK(references.size() == layout.format.references);
  std::memcpy(layout.references(page, slot), references.data(), references.size_bytes());
  kernels::WriteValueRow(RowsOf(layout.value_offset, layout.rank()), page, slot, latent);
}

}  // namespace pith
