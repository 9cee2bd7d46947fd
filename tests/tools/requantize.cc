// requantize IN.gguf OUT.gguf [F32|Q8_0|Q4_0|Q4_1|IQ4_NL|Q4_K_M|Q6_K]: the same model with weights of another type
// (default F32), by libllama's own quantiser.
#include <cstdio>
#include <string_view>

#include "llama.h"

namespace {

struct Type {
  std::string_view name;
  llama_ftype ftype;
};
constexpr Type kTypes[] = {{"F32", LLAMA_FTYPE_ALL_F32},          {"Q8_0", LLAMA_FTYPE_MOSTLY_Q8_0},
                           {"Q4_0", LLAMA_FTYPE_MOSTLY_Q4_0},     {"Q4_1", LLAMA_FTYPE_MOSTLY_Q4_1},
                           {"IQ4_NL", LLAMA_FTYPE_MOSTLY_IQ4_NL}, {"Q4_K_M", LLAMA_FTYPE_MOSTLY_Q4_K_M},
                           {"Q6_K", LLAMA_FTYPE_MOSTLY_Q6_K}};

const Type* FindType(std::string_view name) {
  for (const Type& type : kTypes) {
    if (type.name == name) return &type;
  }
  return nullptr;
}

}  // namespace

int main(int argc, char** argv) {
  const Type* type = argc == 4 ? FindType(argv[3]) : argc == 3 ? &kTypes[0] : nullptr;
  if (type == nullptr) {
    std::fprintf(stderr, "usage: requantize IN.gguf OUT.gguf [F32|Q8_0|Q4_0|Q4_1|IQ4_NL|Q4_K_M|Q6_K]\n");
    return 2;
  }
  llama_log_set([](ggml_log_level, const char*, void*) {}, nullptr);
  llama_backend_init();
  llama_model_quantize_params params = llama_model_quantize_default_params();
  params.ftype = type->ftype;
  params.allow_requantize = true;
  if (llama_model_quantize(argv[1], argv[2], &params) == 0) return 0;
  std::fprintf(stderr, "requantize: cannot convert %s\n", argv[1]);
  return 1;
}
