// random_model ARCH OUT.gguf [SEED]: a small F32 model of that architecture with random weights.
#include "tests/support/random_model.h"

#include <cstdint>
#include <cstdio>
#include <cstdlib>

#include "llama.h"

int main(int argc, char** argv) {
  if (argc != 3 && argc != 4) {
    std::fprintf(stderr, "usage: random_model ARCH OUT.gguf [SEED]\n");
    return 2;
  }
  const auto seed = static_cast<uint32_t>(argc == 4 ? std::strtoul(argv[3], nullptr, 10) : 1);
  llama_backend_init();
  const auto made = pith::testing::MakeRandomModel(argv[1], pith::testing::NeedsExperts(argv[1]), argv[2], seed);
  if (made) return 0;
  std::fprintf(stderr, "random_model: %s: %s\n", argv[1], made.error().message.c_str());
  return 1;
}
