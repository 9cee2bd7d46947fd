#include "tests/support/delta_codec.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace pith::testing {
namespace {

std::vector<double> Linear(std::span<const float> matrix, std::span<const float> bias, std::span<const double> x) {
  std::vector<double> y(matrix.size() / x.size(), 0);
  for (size_t i = 0; i < y.size(); ++i) {
    for (size_t j = 0; j < x.size(); ++j) y[i] += static_cast<double>(matrix[i * x.size() + j]) * x[j];
    if (!bias.empty()) y[i] += static_cast<double>(bias[i]);
  }
  return y;
}

double Gelu(double x) { return 0.5 * x * (1 + std::erf(x / std::numbers::sqrt2)); }
double Silu(double x) { return x / (1 + std::exp(-x)); }

std::vector<double> ToDoubles(std::span<const float> x) { return {x.begin(), x.end()}; }

}  // namespace

std::vector<double> DeltaMap::Apply(std::span<const double> x) const {
  std::vector<double> hidden = Linear(w1, b1, x);
  if (kind == Kind::kLinear) return hidden;
  if (kind == Kind::kGelu) {
    for (double& h : hidden) h = Gelu(h);
  } else {
    const size_t half = hidden.size() / 2;
    for (size_t i = 0; i < half; ++i) hidden[i] = Silu(hidden[i]) * hidden[half + i];
    hidden.resize(half);
  }
  return Linear(w2, b2, hidden);
}

void DeltaCodec::Code(int first, int count) {
  std::vector<float> rows;  // of references
  std::vector<int32_t> visible;
  for (const int32_t reference : references_) rows.insert(rows.end(), VectorOf(reference), VectorOf(reference) + dim_);
  for (int token = first; token < first + count; ++token) {
    visible.push_back(static_cast<int32_t>(std::ranges::upper_bound(references_, token) - references_.begin()));
  }
  const References references(rows.data(), static_cast<int>(references_.size()), static_cast<int>(dim_));
  const auto wanted = static_cast<size_t>(options_.neighbours);
  std::vector<uint16_t> nearest(static_cast<size_t>(count) * wanted);
  references.Nearest(options_.metric, VectorOf(first), visible, options_.neighbours, nearest.data());
  for (size_t i = 0; i < static_cast<size_t>(count); ++i) {
    const std::span<const uint16_t> own(nearest.data() + i * wanted, wanted);
    DeltaEntry entry;
    for (const uint16_t reference : own) {
      if (reference != kNoReference) entry.references.push_back(references_[reference]);
    }
    entry.base.resize(dim_);
    references.Mean(own, entry.base.data());
    entry.latent = down_.Apply(ToDoubles({VectorOf(first + static_cast<int>(i)), dim_}));
    const std::vector<double> of_base = down_.Apply(ToDoubles(entry.base));
    for (size_t r = 0; r < of_base.size(); ++r) entry.latent[r] -= of_base[r];
    entries_.push_back(std::move(entry));
  }
}

void DeltaCodec::Append(std::span<const float> vectors) {
  vectors_.insert(vectors_.end(), vectors.begin(), vectors.end());
  const int total = static_cast<int>(vectors_.size() / dim_), coded = static_cast<int>(entries_.size());
  const int waiting = total - coded;  // sinks, too
  const int count = (waiting - options_.recent) / options_.recent * options_.recent;
  if (waiting <= options_.recent || count <= 0) return;
  if (blocks_.empty()) {
    for (int32_t sink = 0; sink < options_.sink; ++sink) references_.push_back(sink);
  }
  const int first = options_.sink + coded;
  for (int token = first; token < first + count; token += options_.stride) references_.push_back(token);
  Code(first, count);
  blocks_.emplace_back(first, first + count);
}

bool DeltaCodec::IsReference(int token) const {
  return token >= options_.sink && std::ranges::binary_search(references_, token);
}

std::vector<double> DeltaCodec::Reconstruct(const DeltaEntry& entry) const {
  std::vector<double> vector = up_.Apply(entry.latent);
  for (size_t i = 0; i < vector.size(); ++i) vector[i] += static_cast<double>(entry.base[i]);
  return vector;
}

}  // namespace pith::testing
