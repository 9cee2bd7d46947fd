// Maps for act=less without training (policy/act/less.h), in closed form but for a factorisation. Not in the paper,
// whose maps are trained by gradient descent: a baseline that anybody can compute in seconds on his own model and text.
//
// What attention pays to entries that a policy would drop, P [queries, entries], is factored into R nonnegative parts,
// P = a b' (multiplicative updates, Lee and Seung 2001). Hidden units are random features of logits: gelu(scale q.k_j -
// t) of keys drawn from the text, where the threshold t is a multiple of a direction whose product with every query is
// nearly 1, since the maps have no biases. W2 follows by ridge regression, of a Z (Z: what exp(q.k) sums up to) for
// queries and of b for keys. At last each head's state is scaled by what leaves the smallest error of its outputs on
// queries that nothing was fitted to, 0 where it only harms.
#ifndef PITH_POLICY_LEARN_LESS_FIT_H_
#define PITH_POLICY_LEARN_LESS_FIT_H_

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "pith/types.h"
#include "policy/act/less.h"

namespace pith {

struct LessFitOptions {
  int rank = 8;       // R
  int hidden = 64;    // m
  double keep = 0.2;  // share of the entries that the policy would keep
  int rounds = 40;    // of the factorisation
  double ridge = 1e-3;
  uint64_t seed = 42;
};

// What one kv head saw of a text. G query heads, T queries that come after all n entries.
struct LessSample {
  int group = 1;
  int dim = 0, value_dim = 0;
  size_t num_queries = 0, num_entries = 0;
  std::span<const float> queries;  // [G, T, D], after RoPE
  std::span<const float> keys;     // [n, D], after RoPE
  std::span<const float> values;   // [n, Dv]
  float scale = 1, soft_cap = 0;   // of attention
};

// Maps of one kv head and of its query heads, as in LessLayer with num_kv_heads = 1.
struct LessFit {
  LessLayer maps;
  // Mean squared distance of outputs from those of all entries, over queries that were not fitted to: of the kept
  // entries alone, and with the state.
  double error_without = 0, error_with = 0;
};

// kInvalidArgument: fewer than 64 entries or 16 queries, or sizes that act=less does not know.
Result<LessFit> FitLess(const LessSample& sample, const LessFitOptions& options);

// Adds a head to a layer whose heads come in order.
void AppendHead(const LessLayer& head, LessLayer& layer);

}  // namespace pith

#endif  // PITH_POLICY_LEARN_LESS_FIT_H_
