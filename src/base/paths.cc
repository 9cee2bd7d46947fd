#include "base/paths.h"

#include <cstdlib>

namespace pith {
namespace {

// Below the cache folder; scripts/fetch_model.sh writes this name.
constexpr const char* kDefaultModel = "models/SmolLM2-135M-Instruct.Q4_1.gguf";

std::string FromEnvironment(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? std::string() : std::string(value);
}

}  // namespace

std::string CacheDir() {
  if (std::string dir = FromEnvironment("PITH_CACHE_DIR"); !dir.empty()) return dir;
  if (std::string dir = FromEnvironment("XDG_CACHE_HOME"); !dir.empty()) return dir + "/pith";
  const std::string home = FromEnvironment("HOME");
  return (home.empty() ? std::string("/tmp") : home) + "/.cache/pith";
}

std::string DefaultModelPath() {
  if (std::string path = FromEnvironment("PITH_DEFAULT_MODEL"); !path.empty()) return path;
  return CacheDir() + "/" + kDefaultModel;
}

}  // namespace pith
