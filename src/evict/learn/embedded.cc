#include "evict/learn/embedded.h"

#include "base/embed.h"

// CMake says where they are, and that this depends on them. docs/simulation.md has the commands that wrote them.
PITH_EMBED(pith_model_coldrl, PITH_MODELS "coldrl.pithnet");
PITH_EMBED(pith_model_learned, PITH_MODELS "learned.pithnet");
PITH_EMBED(pith_model_discard, PITH_MODELS "discard.pithnet");
PITH_EMBED(pith_model_phase, PITH_MODELS "phase.pithnet");

namespace pith::evict {

std::string_view EmbeddedModel(ModelKind kind) {
  switch (kind) {
    case ModelKind::kColdRl:
      return {pith_model_coldrl_begin, pith_model_coldrl_end};
    case ModelKind::kSurvival:
      return {pith_model_learned_begin, pith_model_learned_end};
    case ModelKind::kDiscardBit:
      return {pith_model_discard_begin, pith_model_discard_end};
    case ModelKind::kPhaseBit:
      return {pith_model_phase_begin, pith_model_phase_end};
  }
  return {};
}

}  // namespace pith::evict
