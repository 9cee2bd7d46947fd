// The latents of one head, read page by page, for whoever wants keys or values of some entries.
#ifndef PITH_CACHE_LATENT_PAGES_H_
#define PITH_CACHE_LATENT_PAGES_H_

#include <cstddef>
#include <vector>

#include "base/aligned.h"
#include "kernels/page_layout.h"

namespace pith {

class HeadCache;

class LatentPages {
 public:
  // Costs nothing before the first page is read.
  explicit LatentPages(const HeadCache& head) : head_(head) {}

  // Of the first `count` entries of a page: [count, D], [count, Dv].
  void ReadKeys(size_t page, int count, float* keys);
  void ReadValues(size_t page, int count, float* values);

 private:
  const std::byte* Read(size_t page);

  const HeadCache& head_;
  std::vector<float> references_;
  Scratch scratch_, page_;
  ptrdiff_t is_read_ = -1;
};

}  // namespace pith

#endif  // PITH_CACHE_LATENT_PAGES_H_
