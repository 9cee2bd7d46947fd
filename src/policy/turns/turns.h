// What a recipe does between the turns of a conversation (turns=flowkv, turns=epicache). The rest of the recipe is the
// host, which judges entries; the engine says when, and of which entries (engine/turn_keeper.h).
#ifndef PITH_POLICY_TURNS_TURNS_H_
#define PITH_POLICY_TURNS_TURNS_H_

#include <cstdint>
#include <string>
#include <vector>

#include "pith/types.h"

namespace pith {

enum class TurnMethod : uint8_t { kNone, kFlowKv, kEpiCache };

struct TurnOptions {
  TurnMethod method = TurnMethod::kNone;

  // flowkv
  double drop = 0.5;  // rho, of each turn
  double cap = 0.5;   // share of the sequence's bytes that frozen turns may take
  int min_keep = 4;   // a turn with fewer entries per head keeps all

  // epicache
  int episodes = 4;            // caches of one conversation
  int block = 512;             // tokens between evictions
  int utterances = 4;          // of a segment
  int representatives = 8;     // segments that stand for an episode
  bool cosine = false;         // questions go to the centroid by cosine, else by dot product
  std::string embedder;        // a GGUF file; empty: the model's own input embeddings
};

// FlowKV (arXiv:2505.15347): what a turn of m entries per head keeps, `window` of which the host keeps in any case.
// Rounded down as kvpress does.
int TurnKeep(const TurnOptions& options, int m, int window);

// `flowkv+cap`, ours: frozen turns, oldest first, may hold `cap` entries per head in all. A turn that does not fit gets
// cap / (turns + 1) at most, and the oldest go until it fits.
struct CapPlan {
  double keep = 0;      // entries per head of the new turn
  int num_dropped = 0;  // oldest turns
};
CapPlan PlanCap(const TurnOptions& options, const std::vector<double>& frozen, double keep, double cap);

}  // namespace pith

#endif  // PITH_POLICY_TURNS_TURNS_H_
