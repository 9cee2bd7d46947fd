// The inside of PlainContext, for its two source files only.
#ifndef PITH_HOST_PLAIN_CONTEXT_H_
#define PITH_HOST_PLAIN_CONTEXT_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "base/thread_governor.h"
#include "host/llama_util.h"
#include "host/model.h"

namespace pith {

struct PlainContext::Private {
  PlainOptions options;
  ggml_type type = GGML_TYPE_F16;
  LlamaContextPtr context;
  std::unique_ptr<Batch> batch;
  ModelInfo info;
  std::vector<int32_t> next_position;
  // Its threads wait for each other as pith's do, so it gets fewer of them by the same rule.
  std::optional<ThreadGovernor> token_governor, block_governor;

  // llama_decode() of the batch; its result.
  int Run(size_t rows);
};

}  // namespace pith

#endif  // PITH_HOST_PLAIN_CONTEXT_H_
