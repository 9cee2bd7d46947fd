// Latents (act=delta): what a sequence must be for them, and how many entries stay beside them.
#ifndef PITH_ENGINE_LATENT_BUDGET_H_
#define PITH_ENGINE_LATENT_BUDGET_H_

#include "engine/engine_core.h"
#include "engine/sequence.h"
#include "engine/shrinker.h"
#include "pith/types.h"

namespace pith {

// kInvalidArgument: the recipe would drop what latents refer to, which stays, or has no room to read its own.
Status CheckLatents(const EngineCore& core, const Sequence& sequence, const ResolvedRecipe& recipe);
// What `bytes` of the f16 cache's, of `mean` entries per kv head, leave as they are beside latents of the others.
// kInvalidArgument: fewer than the recipe leaves whatever the bytes.
Result<Shrink> ShrinkToLatents(const EngineCore& core, const ResolvedRecipe& recipe, Sequence& target, double mean,
                               double bytes);

}  // namespace pith

#endif  // PITH_ENGINE_LATENT_BUDGET_H_
