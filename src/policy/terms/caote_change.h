// How much one attention output changes when one entry goes.
#ifndef PITH_POLICY_TERMS_CAOTE_CHANGE_H_
#define PITH_POLICY_TERMS_CAOTE_CHANGE_H_

#include <span>

namespace pith {

// c_j = a_j / (1 - a_j) * || o - v_j ||_2 with a = weights / their sum and o = sum a_i v_i: exactly
// the change of the output when entry j goes and the weights are renormalised (CAOTE,
// arXiv:2504.14051). fast: o is the mean of the values. +infinity where nothing would be left.
// values: [n, dim]; weights, change: [n].
void OutputChange(std::span<const float> weights, const float* values, int dim, bool fast, std::span<float> change);

}  // namespace pith

#endif  // PITH_POLICY_TERMS_CAOTE_CHANGE_H_
