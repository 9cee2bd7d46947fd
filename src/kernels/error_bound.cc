#include "kernels/error_bound.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/half.h"

namespace pith::kernels {
namespace {

constexpr int32_t kLargestMinimum = std::numeric_limits<int16_t>::max();

// The nearest integer, ties to even, of less than 2^51: cheaper than nearbyint() where that is a call.
double Nearest(double value) {
  constexpr double kShift = 6755399441055744.0;  // 1.5 * 2^52
  return value + kShift - kShift;
}

// visit(the unit of channel 0, how many units further that of the next channel is, index of channel 0), row by row.
template <class Visit>
void ForEachRow(const ErrorBound& bound, size_t heads, size_t count, size_t dim, const Visit& visit) {
  const size_t next = bound.unit == ErrorUnit::kChannel ? 1 : 0;
  for (size_t h = 0; h < heads; ++h) {
    for (size_t t = 0; t < count; ++t) visit(UnitOf(bound, heads, dim, h, t, 0), next, h, t);
  }
}

// Steps and minima of units whose numbers lie in [least, greatest].
void SetSteps(const ErrorBound& bound, std::span<const double> least, std::span<const double> greatest,
              BoundedCodes& out) {
  out.steps.resize(least.size());
  out.minima.resize(least.size());
  for (size_t u = 0; u < least.size(); ++u) {
    const double range = greatest[u] - least[u], step = RoundToHalf(range * bound.share);
    // A step that float16 rounds to nothing, or by so much that codes leave the alphabet, is none.
    const double first = std::nearbyint(least[u] / step), last = std::nearbyint(greatest[u] / step);
    const bool fits =
        std::isfinite(range) && step > 0 && std::abs(first) <= kLargestMinimum && last - first < bound.alphabet();
    out.steps[u] = range == 0 ? 0 : fits ? static_cast<float>(step) : std::numeric_limits<float>::quiet_NaN();
    out.minima[u] = range != 0 && fits ? static_cast<int32_t>(first) : 0;
  }
}

constexpr double kHalfUnit = 1.0 / 2048;  // by which float16 rounds, at most

bool LieOnGrid(std::span<const float> numbers, double step) {
  return step > 0 && std::ranges::all_of(numbers, [step](float number) {
           const auto value = static_cast<double>(number);
           return std::abs(Nearest(value / step) * step - value) <= std::abs(value) * kHalfUnit;
         });
}

// The step of which all numbers are multiples, as near as float16 holds these, at most `most` steps from the least to
// the greatest; 0: none. allowed: no number moves by more.
double GridOf(std::span<const float> numbers, double least, double greatest, int most, double allowed) {
  const double largest = std::abs(least) > std::abs(greatest) ? least : greatest;
  if (!(std::abs(largest) * kHalfUnit < allowed / 2)) return 0;
  for (int count = most; count > 0; --count) {
    // Most counts end at one of the first numbers.
    const double per_range = count / (greatest - least);
    const double slack = 4 * kHalfUnit * (1 + std::abs(largest) * per_range);
    const auto may_be = [&](float number) {
      const double steps = static_cast<double>(number) * per_range;
      return std::abs(Nearest(steps) - steps) <= slack;
    };
    if (!std::ranges::all_of(numbers.first(std::min<size_t>(numbers.size(), 4)), may_be)) continue;
    // Both ends of the range were rounded, so the largest number says more. Its own rounding is a unit of the step's.
    const double multiple = Nearest(largest * per_range);
    if (multiple == 0) continue;
    const double step = RoundToHalf(largest / multiple);
    for (const double nearby :
         {step, RoundToHalf(step * (1 + 1.5 * kHalfUnit)), RoundToHalf(step * (1 - 1.5 * kHalfUnit))}) {
      if (LieOnGrid(numbers, nearby)) return nearby;
    }
  }
  return 0;
}

// Takes the steps of units that lie on a grid. visit_all(visit(unit, number)) for all numbers.
template <class VisitAll>
void KeepGrids(const ErrorBound& bound, std::span<const double> least, std::span<const double> greatest, size_t count,
               const VisitAll& visit_all, BoundedCodes& out) {
  const size_t unit_numbers = count / least.size();
  std::vector<float> numbers(count);
  std::vector<size_t> filled(least.size(), 0);
  visit_all([&](size_t unit, float number) { numbers[unit * unit_numbers + filled[unit]++] = number; });
  for (size_t u = 0; u < least.size(); ++u) {
    if (!(out.steps[u] > 0)) continue;
    const double step = GridOf(std::span(numbers).subspan(u * unit_numbers, unit_numbers), least[u], greatest[u],
                               bound.alphabet() - 1, static_cast<double>(out.steps[u]) / 2);
    const double minimum = Nearest(least[u] / step);
    const bool fits =
        step > 0 && std::abs(minimum) <= kLargestMinimum && Nearest(greatest[u] / step) - minimum < bound.alphabet();
    if (!fits) continue;
    out.steps[u] = static_cast<float>(step);
    out.minima[u] = static_cast<int32_t>(minimum);
  }
}

}  // namespace

int ErrorBound::alphabet() const { return static_cast<int>(std::ceil(1 / share)) + 2; }

int ErrorBound::CutOf(int waiting) const {
  const int blocks = (waiting + block - waiting % block - recent) / block;
  return std::max(0, blocks) * block;
}

size_t UnitOf(const ErrorBound& bound, size_t heads, size_t dim, size_t h, size_t t, size_t c) {
  const size_t block = t / static_cast<size_t>(bound.block);
  switch (bound.unit) {
    case ErrorUnit::kBlock:
      return block;
    case ErrorUnit::kToken:
      return t;
    case ErrorUnit::kChannel:
      return (block * heads + h) * dim + c;
    case ErrorUnit::kBlockPerHead:
      break;
  }
  return block * heads + h;
}

size_t NumUnits(const ErrorBound& bound, size_t heads, size_t count, size_t dim) {
  return count == 0 ? 0 : UnitOf(bound, heads, dim, heads - 1, count - 1, dim - 1) + 1;
}

BoundedCodes BoundErrors(const ErrorBound& bound, std::span<const float> rows, size_t heads, size_t tokens, size_t dim,
                         size_t first, size_t count) {
  BoundedCodes out;
  out.codes.resize(heads * count * dim);
  out.values.resize(out.codes.size());
  const auto row_of = [&](size_t h, size_t t) { return rows.data() + (h * tokens + first + t) * dim; };
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  std::vector<double> least(NumUnits(bound, heads, count, dim), kInfinity), greatest(least.size(), -kInfinity);
  ForEachRow(bound, heads, count, dim, [&](size_t unit, size_t next, size_t h, size_t t) {
    const float* row = row_of(h, t);
    for (size_t c = 0; c < dim; ++c, unit += next) {
      const auto value = static_cast<double>(row[c]);
      // What is no number makes the range none.
      least[unit] = value < least[unit] || std::isnan(value) ? value : least[unit];
      greatest[unit] = value > greatest[unit] || std::isnan(value) ? value : greatest[unit];
    }
  });
  SetSteps(bound, least, greatest, out);
  if (bound.keeps_grid && count > 0) {
    const auto visit_all = [&](const auto& visit) {
      ForEachRow(bound, heads, count, dim, [&](size_t unit, size_t next, size_t h, size_t t) {
        for (size_t c = 0; c < dim; ++c, unit += next) visit(unit, row_of(h, t)[c]);
      });
    };
    KeepGrids(bound, least, greatest, out.codes.size(), visit_all, out);
  }
  ForEachRow(bound, heads, count, dim, [&](size_t unit, size_t next, size_t h, size_t t) {
    const float* row = row_of(h, t);
    const size_t at = (h * count + t) * dim;
    for (size_t c = 0; c < dim; ++c, unit += next) {
      const auto step = static_cast<double>(out.steps[unit]);
      out.values[at + c] = row[c];
      if (step > 0) {
        out.codes[at + c] = static_cast<int32_t>(Nearest(static_cast<double>(row[c]) / step)) - out.minima[unit];
      }
    }
  });
  SetValues(bound, heads, count, dim, out);
  return out;
}

void SetValues(const ErrorBound& bound, size_t heads, size_t count, size_t dim, BoundedCodes& codes) {
  ForEachRow(bound, heads, count, dim, [&](size_t unit, size_t next, size_t h, size_t t) {
    const size_t at = (h * count + t) * dim;
    for (size_t c = 0; c < dim; ++c, unit += next) {
      const float step = codes.steps[unit];
      // The product is rounded once.
      if (step > 0) codes.values[at + c] = static_cast<float>(codes.codes[at + c] + codes.minima[unit]) * step;
    }
  });
}

}  // namespace pith::kernels
