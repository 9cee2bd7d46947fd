#include "engine/query_moments.h"

#include <algorithm>
#include <cmath>

#include "kernels/triangles.h"

namespace pith {
namespace {

constexpr int kWaiting = 4;

size_t HeadFloats(int dim) { return static_cast<size_t>(dim) * (1 + kWaiting) + kernels::TriangleSize(dim); }

}  // namespace

size_t QueryMoments::NumFloats(const Shape& shape) {
  return static_cast<size_t>(shape.num_layers) * static_cast<size_t>(shape.num_heads) * HeadFloats(shape.key_dim);
}

QueryMoments::QueryMoments(const Shape& shape) : shape_(shape), data_(NumFloats(shape)) {}

size_t QueryMoments::Offset(int layer, int head) const {
  const auto index = static_cast<size_t>(layer) * static_cast<size_t>(shape_.num_heads) + static_cast<size_t>(head);
  return index * HeadFloats(shape_.key_dim);
}

// Welford's recurrence: of n queries before it, x adds n / (n + 1) (x - mean)(x - mean)^T to the sums.
void QueryMoments::Add(int layer, int head, int64_t before, float* rows, int count, int dim) {
  float* mean = data_.data() + Offset(layer, head);
  const auto width = static_cast<size_t>(dim);
  for (int t = 0; t < count; ++t) {
    const double n = static_cast<double>(before) + t;
    const auto step = static_cast<float>(1 / (n + 1)), weight = static_cast<float>(std::sqrt(n / (n + 1)));
    float* row = rows + static_cast<size_t>(t) * width;
    for (size_t d = 0; d < width; ++d) {
      const float deviation = row[d] - mean[d];
      mean[d] += deviation * step;
      row[d] = deviation * weight;
    }
  }
  float *sums = mean + shape_.key_dim, *waiting = sums + kernels::TriangleSize(shape_.key_dim);
  for (int t = 0; t < count;) {
    const int slot = static_cast<int>((before + t) % kWaiting), whole = (count - t) / kWaiting * kWaiting;
    const float* from = rows + static_cast<size_t>(t) * width;
    if (slot == 0 && whole > 0) {
      kernels::AddOuterProducts(from, whole, dim, sums);
      t += whole;
      continue;
    }
    std::copy_n(from, width, waiting + static_cast<size_t>(slot) * width);
    if (slot == kWaiting - 1) kernels::AddOuterProducts(waiting, kWaiting, dim, sums);
    ++t;
  }
}

bool QueryMoments::ChangesSums(int64_t before, int count) {
  return (before + count) / kWaiting > before / kWaiting;
}

void QueryMoments::CopyHead(int layer, int head, bool sums, const float* from, float* to) const {
  const auto dim = static_cast<size_t>(shape_.key_dim), triangle = kernels::TriangleSize(shape_.key_dim);
  const size_t mean = Offset(layer, head), waiting = mean + dim + triangle;
  std::copy_n(from + mean, dim, to + mean);
  std::copy_n(from + waiting, dim * kWaiting, to + waiting);
  if (sums) std::copy_n(from + mean + dim, triangle, to + mean + dim);
}

void QueryMoments::Covariance(int layer, int head, int64_t seen, int dim, float* triangle) const {
  const float *sums = mean(layer, head) + shape_.key_dim, *waiting = sums + kernels::TriangleSize(shape_.key_dim);
  const size_t size = kernels::TriangleSize(dim);
  std::copy_n(sums, size, triangle);
  kernels::AddOuterProducts(waiting, static_cast<int>(seen % kWaiting), dim, triangle);
  const float scale = 1 / static_cast<float>(std::max<int64_t>(seen, 1));
  for (size_t i = 0; i < size; ++i) triangle[i] *= scale;
}

}  // namespace pith
