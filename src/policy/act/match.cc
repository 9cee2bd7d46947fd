#include "policy/act/match.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <utility>

#include "kernels/triangles.h"
#include "policy/act/masses.h"
#include "policy/act/references.h"
#include "policy/stage.h"

namespace pith {
namespace {

// Rounds of coordinate descent at most, and the change of a weight, relative to it, below which they end.
constexpr int kMostRounds = 500;
constexpr double kSettled = 1e-7;
// Of the direction that queries have in common, times the mean diagonal of their second moments.
constexpr double kCommonRidge = 1e-3;
// Keys are changed where that leaves less than this of the squares that are missing.
constexpr double kNearer = 0.95;
// Where the authors' system has no solution.
constexpr double kFallbackRidge = 1e-6;
constexpr int kPowerRounds = 1000;

double SquaresOf(const std::vector<double>& numbers) {
  double sum = 0;
  for (const double x : numbers) sum += x * x;
  return sum;
}

// Of weights [count] for the columns, what is missing. [rows]
std::vector<double> Missing(const Masses& masses, std::span<const double> weights) {
  std::vector<double> missing = masses.wanted();
  for (size_t j = 0; j < masses.count(); ++j) masses.Subtract(j, weights[j], missing);
  return missing;
}

// argmin |M w - Z|^2 + ridge D |w - 1|^2 in the bounds, D the mean diagonal of M'M: coordinate by coordinate.
std::vector<double> AnchoredWeights(const MatchOptions& options, const Masses& masses) {
  const double least = std::exp(options.least), most = std::exp(options.most);
  std::vector<double> weights(masses.count(), 1), squares(masses.count());
  double trace = 0;
  for (size_t j = 0; j < masses.count(); ++j) {
    trace += squares[j] = Dot(masses.column(j), masses.column(j));
  }
  const double anchor = options.ridge * trace / static_cast<double>(masses.count());
  std::vector<double> missing = Missing(masses, weights);
  for (int round = 0; round < kMostRounds; ++round) {
    double largest = 0;
    for (size_t j = 0; j < masses.count(); ++j) {
      const double curvature = squares[j] + anchor;
      if (!(curvature > 0)) continue;
      const double slope = Dot(masses.column(j), std::span<const double>(missing)) - anchor * (weights[j] - 1);
      const double moved = std::clamp(weights[j] + slope / curvature, least, most), change = moved - weights[j];
      if (change == 0) continue;
      masses.Subtract(j, change, missing);
      largest = std::max(largest, std::abs(change) / weights[j]);
      weights[j] = moved;
    }
    if (largest < kSettled) break;
  }
  return weights;
}

// [count, count] M'M and [count] M'Z
void NormalEquations(const Masses& masses, std::vector<double>& gram, std::vector<double>& right) {
  const size_t n = masses.count();
  gram.resize(n * n);
  right.resize(n);
  for (size_t i = 0; i < n; ++i) {
    right[i] = Dot(masses.column(i), std::span<const double>(masses.wanted()));
    for (size_t j = 0; j <= i; ++j) gram[i * n + j] = gram[j * n + i] = Dot(masses.column(j), masses.column(i));
  }
}

// matrix [n, n] times x
std::vector<double> Times(const std::vector<double>& matrix, const std::vector<double>& x) {
  std::vector<double> out(x.size(), 0);
  for (size_t i = 0; i < x.size(); ++i) {
    for (size_t j = 0; j < x.size(); ++j) out[i] += matrix[i * x.size() + j] * x[j];
  }
  return out;
}

double LargestEigenvalue(const std::vector<double>& matrix, size_t n) {
  std::vector<double> x(n, 1);
  double value = 0;
  for (int round = 0; round < kPowerRounds; ++round) {
    std::vector<double> y = Times(matrix, x);
    const double length = std::sqrt(SquaresOf(y) / SquaresOf(x));
    if (!(length > 0)) return 0;
    for (double& v : y) v /= length;
    x = std::move(y);
    if (std::abs(length - value) <= 1e-12 * length) break;
    value = length;
  }
  return value;
}

// As in the authors' code: |M w - Z|^2 without bounds, clamped, and steps of projected gradient. O(N kept^2 + kept^3).
std::vector<double> SteppedWeights(const MatchOptions& options, const Masses& masses) {
  const double least = std::exp(options.least), most = std::exp(options.most);
  const size_t n = masses.count();
  std::vector<double> gram, right;
  NormalEquations(masses, gram, right);
  const double largest = LargestEigenvalue(gram, n);
  std::vector<double> factor = gram;
  if (!FactorSmall(factor, n)) {
    factor = gram;
    for (size_t i = 0; i < n; ++i) factor[i * n + i] += kFallbackRidge * largest;
    if (!FactorSmall(factor, n)) return std::vector<double>(n, 1);
  }
  std::vector<double> weights = right;
  SolveSmall(factor, n, weights);
  for (double& weight : weights) weight = std::clamp(weight, least, most);
  for (int step = 0; step < options.steps && largest > 0; ++step) {
    const std::vector<double> have = Times(gram, weights);
    for (size_t j = 0; j < n; ++j) {
      weights[j] = std::clamp(weights[j] - (have[j] - right[j]) / largest, least, most);
    }
  }
  return weights;
}

// u with q.u = 1 for all queries, nearly, in units of scaled queries. Empty: there is none.
std::vector<double> CommonDirection(const References& references, size_t dim) {
  const MatrixView queries = references.scaled(0, references.size());
  std::vector<float> triangle(kernels::TriangleSize(static_cast<int>(dim)), 0.0F);
  kernels::AddOuterProducts(queries.at, static_cast<int>(queries.rows), static_cast<int>(dim), triangle.data());
  std::vector<double> direction(dim, 0);
  for (size_t q = 0; q < queries.rows; ++q) {
    for (size_t d = 0; d < dim; ++d) direction[d] += static_cast<double>(queries.row(q)[d]);
  }
  if (!SolveTriangle(triangle, dim, kCommonRidge, direction)) return {};
  return direction;
}

// How far those keys are from the masses that are wanted, over all queries.
double MassError(const References& references, const Masses& masses, const MatrixView& keys) {
  double sum = 0;
  std::vector<float> logits;
  for (size_t from = 0; from < masses.rows(); from += kReferenceTile) {
    const size_t count = std::min(kReferenceTile, masses.rows() - from);
    references.Logits(from, count, keys, logits);
    for (size_t q = 0; q < count; ++q) {
      double missing = masses.wanted()[from + q];
      for (size_t j = 0; j < keys.rows; ++j) {
        missing -= std::exp2(static_cast<double>(logits[q * keys.rows + j]) - masses.shift(from + q));
      }
      sum += missing * missing;
    }
  }
  return sum;
}

class Match final : public Action {
 public:
  explicit Match(const ResidueOptions& options) : options_(options) {}
  const ResidueOptions* residue() const override { return &options_; }

 private:
  ResidueOptions options_;
};

}  // namespace

Matched MatchKeys(const MatchOptions& options, const ResidueInputs& inputs) {
  const References references(inputs.queries, inputs.scale, inputs.soft_cap);
  const auto dim = static_cast<size_t>(inputs.key_dim);
  Masses masses(references, inputs);
  Matched made;
  made.outputs = masses.TakeOutputs();
  made.keys = RowsOf(inputs.keys, inputs.key_dim, inputs.kept);
  if (inputs.kept.empty() || references.size() == 0) return made;
  made.biases = options.steps >= 0 ? SteppedWeights(options, masses) : AnchoredWeights(options, masses);
  for (double& bias : made.biases) bias = std::log(bias);
  const std::vector<double> direction = CommonDirection(references, dim);
  if (direction.empty()) return made;
  std::vector<float> keys = made.keys;
  for (size_t j = 0; j < made.biases.size(); ++j) {
    for (size_t d = 0; d < dim; ++d) {
      keys[j * dim + d] += static_cast<float>(made.biases[j] * std::numbers::log2e * direction[d]);
    }
  }
  const double without = SquaresOf(Missing(masses, std::vector<double>(masses.count(), 1)));
  made.in_keys = MassError(references, masses, ViewOf(keys.data(), masses.count(), dim)) < kNearer * without;
  if (made.in_keys) made.keys = std::move(keys);
  return made;
}

StageInfo<Action> MatchStage() {
  return {
      "entries that stay speak for those that do not: a bias for each, which its key carries, and new values, by "
      "least squares over the queries of a second reading; nothing where attention falls with distance (ALiBi)",
      {RealParam("bias", 0.1, 0, 100, "ridge of biases, towards none"),
       RealParam("value", 0.001, 0, 100, "ridge of values, towards those that entries have"),
       IntParam("steps", -1, -1, 100,
                "-1: the best biases within 3 of none; else as the authors' code: no ridge, cut off, so many steps"),
       ChoiceParam("keys", "scored|omp|fast",
                   "which stay: those that score best, or those that a matching pursuit finds, one or four at a time"),
       IntParam("rows", 2000, 64, 65536, "queries of the second reading, of each kv head, that is fitted to"),
       IntParam("refit", 1, 0, 1, "1: values are fitted so that outputs stay as they were")},
      [](const Params& p) -> std::unique_ptr<Action> {
        constexpr int kPursuits[] = {0, 1, 4};
        ResidueOptions options{.entries = 0, .rows = p.Int("rows"), .refits = p.Int("refit") == 1};
        options.value_ridge = p.Real("value");
        options.match = MatchOptions{
            .ridge = p.Real("bias"), .steps = p.Int("steps"), .pursuit = kPursuits[p.Choice("keys")]};
        return std::make_unique<Match>(options);
      }};
}

}  // namespace pith
