// Latents of a layer's heads (cache/latents.h) as pages that attention reads: all of them, once per step, in scratch
// that is charged to their sequence (SharePlan::scratch_bytes).
#ifndef PITH_ENGINE_LATENT_READER_H_
#define PITH_ENGINE_LATENT_READER_H_

#include <cstddef>
#include <span>
#include <vector>

#include "base/aligned.h"
#include "base/team.h"
#include "cache/kv_cache.h"
#include "host/model.h"
#include "kernels/attention.h"
#include "policy/act/demote.h"

namespace pith {

class LatentReader {
 public:
  // Thread 0: room for the latents of these heads, and their segments (kMaxSegments for each head) point there. The
  // heads stay as they are until they are read, by so many threads at most.
  void Prepare(std::span<const HeadCache> heads, int num_threads, std::span<kernels::Segment> segments);
  bool any() const { return num_pages_ > 0; }

  // All threads, one after the other, with a sync after each: what latents are read with, and their pages.
  void ReadReferences(const Team& team);
  void ReadPages(const Team& team);

 private:
  // A head's part of the scratch.
  struct Part {
    const HeadCache* head = nullptr;
    float* references = nullptr;
    float* table = nullptr;
    std::byte** pages = nullptr;
  };
  // References that one thread reads in one go.
  static constexpr int kReferencesAtOnce = 64;

  std::vector<Part> parts_;
  std::vector<std::byte*> page_table_;
  Scratch scratch_;
  float* thread_scratch_ = nullptr;
  size_t thread_floats_ = 0;  // of each thread
  size_t num_pages_ = 0;
};

// What a sequence takes beside its pages whose recipe makes latents: the maps of its heads, in bytes and in f16 entries
// of each head of the global layers; and what the latents of one layer are read into, for each entry of its heads.
struct LatentCosts {
  size_t map_bytes = 0;
  double map_entries = 0;
  size_t read_entry_bytes = 0;
};
LatentCosts CostsOfLatents(const ModelInfo& info, const DemoteOptions& demote);

// One sentence where the maps that a recipe names are not for this model's layers.
Status CheckLatentMaps(const ModelInfo& info, const DeltaMaps& maps);

}  // namespace pith

#endif  // PITH_ENGINE_LATENT_READER_H_
