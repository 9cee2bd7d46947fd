// How far apart two rows of logits are.
#ifndef PITH_TESTS_SUPPORT_KL_H_
#define PITH_TESTS_SUPPORT_KL_H_

#include <algorithm>
#include <cmath>
#include <span>

namespace pith::testing {

// KL(p || q) of the softmax of two rows of as many logits, in nats.
inline double Kl(std::span<const float> p, std::span<const float> q) {
  const double max_p = *std::max_element(p.begin(), p.end()), max_q = *std::max_element(q.begin(), q.end());
  double sum_p = 0, sum_q = 0, kl = 0;
  for (size_t i = 0; i < p.size(); ++i) sum_p += std::exp(p[i] - max_p), sum_q += std::exp(q[i] - max_q);
  for (size_t i = 0; i < p.size(); ++i) {
    const double lp = p[i] - max_p - std::log(sum_p), lq = q[i] - max_q - std::log(sum_q);
    kl += std::exp(lp) * (lp - lq);
  }
  return kl;
}

}  // namespace pith::testing

#endif  // PITH_TESTS_SUPPORT_KL_H_
