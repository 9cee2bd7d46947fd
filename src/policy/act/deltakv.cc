#include "policy/act/deltakv.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace pith {
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

double Dot(std::span<const float> a, std::span<const float> b) {
  double dot = 0;
  for (size_t i = 0; i < a.size(); ++i) dot += static_cast<double>(a[i]) * static_cast<double>(b[i]);
  return dot;
}

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

double DeltaCodec::Similarity(int token, int reference) const {
  constexpr double kLeastNorm = 1e-6;
  const std::span<const float> x = VectorOf(token), c = VectorOf(reference);
  const double dot = Dot(x, c);
  if (options_.metric == DeltaMetric::kDot) return dot;
  if (options_.metric == DeltaMetric::kL2) return 2 * dot - Dot(c, c);
  return dot / ((std::sqrt(Dot(x, x)) + kLeastNorm) * (std::sqrt(Dot(c, c)) + kLeastNorm));
}

void DeltaCodec::Code(int token) {
  std::vector<std::pair<double, int32_t>> seen;  // the nearest first, of equal ones the earlier
  for (const int32_t reference : references_) {
    if (reference <= token) seen.emplace_back(-Similarity(token, reference), reference);
  }
  std::ranges::sort(seen);
  seen.resize(std::min(seen.size(), static_cast<size_t>(options_.neighbours)));
  DeltaEntry entry;
  entry.base.assign(dim_, 0);
  for (const auto& [distance, reference] : seen) {
    entry.references.push_back(reference);
    for (size_t i = 0; i < dim_; ++i) {
      entry.base[i] += static_cast<double>(VectorOf(reference)[i]) / static_cast<double>(seen.size());
    }
  }
  entry.latent = down_.Apply(ToDoubles(VectorOf(token)));
  const std::vector<double> of_base = down_.Apply(entry.base);
  for (size_t i = 0; i < of_base.size(); ++i) entry.latent[i] -= of_base[i];
  entries_.push_back(std::move(entry));
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
  for (int token = first; token < first + count; ++token) Code(token);
  blocks_.emplace_back(first, first + count);
}

bool DeltaCodec::IsReference(int token) const {
  return token >= options_.sink && std::ranges::binary_search(references_, token);
}

std::vector<double> DeltaCodec::Reconstruct(const DeltaEntry& entry) const {
  std::vector<double> vector = up_.Apply(entry.latent);
  for (size_t i = 0; i < vector.size(); ++i) vector[i] += entry.base[i];
  return vector;
}

}  // namespace pith
