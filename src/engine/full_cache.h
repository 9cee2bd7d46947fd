// Sizes of a model's cache that drops nothing.
#ifndef PITH_ENGINE_FULL_CACHE_H_
#define PITH_ENGINE_FULL_CACHE_H_

#include <cstddef>

#include "host/model.h"
#include "kernels/page_layout.h"

namespace pith {

bool HoldsCache(const LayerShape& layer);
// Keys and values of one token in all layers with a cache; of coded ones what is usual.
size_t BytesPerToken(const ModelInfo& info, PageFormat format);
// The f16 cache of num_tokens tokens, as percentages of --kv-budget mean it.
size_t FullCacheBytes(const ModelInfo& info, int num_tokens);
// keys and values alone, relative to f16 (1 for f16).
double FormatShare(const ModelInfo& info, PageFormat format);
// Tokens of a context: as requested, else (0) as many as the model was trained for, at most those it has positions for.
int ContextOf(const ModelInfo& info, int requested);

}  // namespace pith

#endif  // PITH_ENGINE_FULL_CACHE_H_
