// How far apart two rows of logits are.
#ifndef PITH_TESTS_SUPPORT_KL_H_
#define PITH_TESTS_SUPPORT_KL_H_

#include <cmath>
#include <cstddef>
#include <span>

namespace pith::testing {

// log(sum(exp(row))). Vocabularies are long, so sanitizers leave both loops alone.
__attribute__((no_sanitize("address", "undefined"))) inline double LogSum(const float* row, size_t size) {
  float most = row[0];
  for (size_t i = 1; i < size; ++i) most = row[i] > most ? row[i] : most;
  double sum = 0;
  for (size_t i = 0; i < size; ++i) sum += std::exp(static_cast<double>(row[i] - most));
  return most + std::log(sum);
}

__attribute__((no_sanitize("address", "undefined"))) inline double KlOf(const float* p, const float* q, size_t size) {
  const double log_p = LogSum(p, size), log_q = LogSum(q, size);
  double kl = 0;
  for (size_t i = 0; i < size; ++i) {
    const double lp = p[i] - log_p, lq = q[i] - log_q;
    kl += std::exp(lp) * (lp - lq);
  }
  return kl;
}

// KL(p || q) of the softmax of two rows of as many logits, in nats.
inline double Kl(std::span<const float> p, std::span<const float> q) { return KlOf(p.data(), q.data(), p.size()); }

}  // namespace pith::testing

#endif  // PITH_TESTS_SUPPORT_KL_H_
