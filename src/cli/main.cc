#include <cstdlib>
#include <filesystem>
#include <system_error>

#include <unistd.h>

#include "cli/app.h"

namespace {

// ggml's threads wait for each other at every node of a graph, in GCC's OpenMP runtime, which spins for milliseconds
// before it sleeps. Beside other busy processes that wait is for a thread that has lost its core, and spinning spends
// the time in which the core could do the work. So many turns are some tenths of a millisecond, longer than what an
// undisturbed thread waits.
constexpr const char* kSpins = "10000";

// The runtime reads its environment before main() begins, so that the program starts itself once more. Whoever sets one
// of these variables decides; where the program cannot be started again it goes on as it is.
void ShortenWaits(char** argv) {
  if (std::getenv("GOMP_SPINCOUNT") != nullptr || std::getenv("OMP_WAIT_POLICY") != nullptr) return;
  std::error_code error;
  const std::filesystem::path self = std::filesystem::read_symlink("/proc/self/exe", error);
  if (!error && setenv("GOMP_SPINCOUNT", kSpins, 0) == 0) execv(self.c_str(), argv);
}

}  // namespace

int main(int argc, char** argv) {
  ShortenWaits(argv);
  return pith::cli::Main(argc, argv);
}
