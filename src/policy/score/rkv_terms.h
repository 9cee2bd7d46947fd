// The two terms of R-KV's score (arXiv:2505.24133; github.com/Zefan-Cai/R-KV rkv/compression/r1_kv.py,
// rkv/utils.py).
#ifndef PITH_POLICY_SCORE_RKV_TERMS_H_
#define PITH_POLICY_SCORE_RKV_TERMS_H_

#include <cstddef>
#include <vector>

#include "policy/policy.h"
#include "policy/terms/key_columns.h"

namespace pith {

// Softmax over the first `columns` entries of the group's largest logit, mean over the last `rows`
// queries, then the maximum over `pool` neighbours. [columns]
// keys: all of the head's.
std::vector<float> RkvImportance(const LayerInputs& layer, const HeadInputs& head, const KeyColumns& keys, int rows,
                                 size_t columns, int pool);

// Softmax over all n entries of the mean cosine to the others; of each key's cosines above `threshold`
// the newest is spared, or entry 0 where there is none and zero_slot0. [n]
std::vector<float> RkvRedundancy(const KeyColumns& keys, size_t dim, float threshold, bool zero_slot0);

}  // namespace pith

#endif  // PITH_POLICY_SCORE_RKV_TERMS_H_
