// plain_rss MODEL BLOCK [THREADS]: what plain libllama needs at its peak (bytes) to load a model and
// read one block of BLOCK tokens in a context of that size: the base that a KV budget comes on top of.
#include <sys/resource.h>

#include <cstdio>
#include <cstdlib>
#include <vector>

#include "llama.h"

int main(int argc, char** argv) {
  if (argc != 3 && argc != 4) {
    std::fprintf(stderr, "usage: plain_rss MODEL BLOCK [THREADS]\n");
    return 2;
  }
  llama_log_set([](ggml_log_level, const char*, void*) {}, nullptr);
  llama_backend_init();
  llama_model* model = llama_model_load_from_file(argv[1], llama_model_default_params());
  if (model == nullptr) {
    std::fprintf(stderr, "plain_rss: cannot load %s\n", argv[1]);
    return 1;
  }
  llama_context_params params = llama_context_default_params();
  const auto block = static_cast<uint32_t>(std::strtoul(argv[2], nullptr, 10));
  params.n_ctx = params.n_batch = params.n_ubatch = block;
  params.n_threads = params.n_threads_batch = argc == 4 ? static_cast<int32_t>(std::strtol(argv[3], nullptr, 10)) : 2;
  params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_ENABLED;
  llama_context* context = llama_init_from_model(model, params);
  std::vector<llama_token> tokens(block, 1);
  if (context == nullptr ||
      llama_decode(context, llama_batch_get_one(tokens.data(), static_cast<int32_t>(block))) != 0) {
    std::fprintf(stderr, "plain_rss: cannot decode a block of %u tokens\n", block);
    return 1;
  }
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  std::printf("%ld\n", 1024 * usage.ru_maxrss);
  llama_free(context);
  llama_model_free(model);
  return 0;
}
