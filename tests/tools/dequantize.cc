// dequantize IN.gguf OUT.gguf: the same model with F32 weights, by libllama's own quantiser.
#include <cstdio>

#include "llama.h"

int main(int argc, char** argv) {
  if (argc != 3) {
    std::fprintf(stderr, "usage: dequantize IN.gguf OUT.gguf\n");
    return 2;
  }
  llama_log_set([](ggml_log_level, const char*, void*) {}, nullptr);
  llama_backend_init();
  llama_model_quantize_params params = llama_model_quantize_default_params();
  params.ftype = LLAMA_FTYPE_ALL_F32;
  params.allow_requantize = true;
  if (llama_model_quantize(argv[1], argv[2], &params) == 0) return 0;
  std::fprintf(stderr, "dequantize: cannot convert %s\n", argv[1]);
  return 1;
}
