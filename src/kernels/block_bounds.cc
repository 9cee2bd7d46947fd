#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/block_bounds.cc"
#include <hwy/foreach_target.h>  // IWYU pragma: keep
// Must come after foreach_target.h.
#include <hwy/highway.h>

#include <algorithm>

#include "base/check.h"
#include "kernels/block_bounds.h"
#include "kernels/page_kernels.h"
#include "kernels/row_table.h"
#include "kernels/target.h"

HWY_BEFORE_NAMESPACE();
namespace pith::kernels {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

HWY_ATTR void RowBoundsImpl(const float* rows, size_t stride, int count, int dim, float* greatest, float* least) {
  const hn::ScalableTag<float> d;
  const int lanes = static_cast<int>(hn::Lanes(d));
  int c = 0;
  for (; c + lanes <= dim; c += lanes) {
    auto high = hn::LoadU(d, rows + c);
    auto low = high;
    for (int t = 1; t < count; ++t) {
      const auto v = hn::LoadU(d, rows + static_cast<size_t>(t) * stride + c);
      high = hn::Max(high, v);
      low = hn::Min(low, v);
    }
    hn::StoreU(high, d, greatest + c);
    hn::StoreU(low, d, least + c);
  }
  for (; c < dim; ++c) {
    greatest[c] = least[c] = rows[c];
    for (int t = 1; t < count; ++t) {
      const float v = rows[static_cast<size_t>(t) * stride + static_cast<size_t>(c)];
      greatest[c] = HWY_MAX(greatest[c], v);
      least[c] = HWY_MIN(least[c], v);
    }
  }
}

// keys: [dim][P].
HWY_ATTR void ChannelBoundsImpl(const float* keys, int dim, float* greatest, float* least) {
  const hn::CappedTag<float, kPageEntries> d;
  const int lanes = static_cast<int>(hn::Lanes(d));
  for (int c = 0; c < dim; ++c) {
    const float* row = keys + c * kPageEntries;
    auto high = hn::Load(d, row);
    auto low = high;
    for (int j = lanes; j < kPageEntries; j += lanes) {
      const auto v = hn::Load(d, row + j);
      high = hn::Max(high, v);
      low = hn::Min(low, v);
    }
    greatest[c] = hn::GetLane(hn::MaxOfLanes(d, high));
    least[c] = hn::GetLane(hn::MinOfLanes(d, low));
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace pith::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace pith::kernels {

HWY_EXPORT(RowBoundsImpl);
HWY_EXPORT(ChannelBoundsImpl);

void RowBounds(const float* rows, size_t stride, int count, int dim, float* greatest, float* least) {
  ApplyForcedTarget();
  HWY_DYNAMIC_DISPATCH(RowBoundsImpl)(rows, stride, count, dim, greatest, least);
}

void PageBounds(const PageLayout& layout, const std::byte* const* pages, int num_pages, float* scratch, float* greatest,
                float* least) {
  const PageKernels& kernels = GetPageKernels();
  constexpr int kMaxDim = 1024;
  PITH_CHECK(layout.key_dim <= kMaxDim);
  float high[kMaxDim], low[kMaxDim];
  for (int p = 0; p < num_pages; ++p) {
    kernels.ConvertKeys(layout, pages[p], scratch);
    if (p == 0) {
      HWY_DYNAMIC_DISPATCH(ChannelBoundsImpl)(scratch, layout.key_dim, greatest, least);
      continue;
    }
    HWY_DYNAMIC_DISPATCH(ChannelBoundsImpl)(scratch, layout.key_dim, high, low);
    for (int c = 0; c < layout.key_dim; ++c) {
      greatest[c] = std::max(greatest[c], high[c]);
      least[c] = std::min(least[c], low[c]);
    }
  }
}

void ScoreBounds(const float* queries, int num_queries, int dim, const float* greatest, const float* least,
                 int num_blocks, float* scores, size_t stride) {
  constexpr int kAtOnce = 8 * kPageEntries;
  float low[kMaxBlockRows * kAtOnce];
  for (int begin = 0; begin < num_queries; begin += kMaxBlockRows) {
    const int rows = std::min(kMaxBlockRows, num_queries - begin);
    const float* from = queries + static_cast<size_t>(begin * dim);
    float* to = scores + static_cast<size_t>(begin) * stride;
    ScoreTable(from, rows, dim, greatest, num_blocks, to, stride);
    for (int first = 0; first < num_blocks; first += kAtOnce) {
      const int count = std::min(kAtOnce, num_blocks - first);
      ScoreTable(from, rows, dim, least + static_cast<size_t>(first) * static_cast<size_t>(dim), count, low, kAtOnce);
      for (int r = 0; r < rows; ++r) {
        float* row = to + static_cast<size_t>(r) * stride + first;
        for (int j = 0; j < count; ++j) row[j] = std::max(row[j], low[r * kAtOnce + j]);
      }
    }
  }
}

}  // namespace pith::kernels
#endif  // HWY_ONCE
