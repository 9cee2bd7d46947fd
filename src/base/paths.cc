#include "base/paths.h"

#include <pwd.h>
#include <sys/types.h>
#include <unistd.h>

#include <cstdlib>
#include <vector>

namespace pith {
namespace {

// Below the cache folder; scripts/fetch_model.sh writes this name.
constexpr const char* kDefaultModel = "models/SmolLM2-135M-Instruct.Q4_1.gguf";

std::string FromEnvironment(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? std::string() : std::string(value);
}

// Of the password database where the environment has none. Never a folder that others can write, who could then choose
// the model: without any home a path that does not exist.
std::string HomeDir() {
  if (std::string home = FromEnvironment("HOME"); !home.empty()) return home;
  std::vector<char> buffer(16384);
  passwd entry{};
  passwd* found = nullptr;
  if (::getpwuid_r(::getuid(), &entry, buffer.data(), buffer.size(), &found) == 0 && found != nullptr &&
      found->pw_dir != nullptr && found->pw_dir[0] == '/') {
    return found->pw_dir;
  }
  return "/nonexistent";
}

}  // namespace

std::string CacheDir() {
  if (std::string dir = FromEnvironment("PITH_CACHE_DIR"); !dir.empty()) return dir;
  if (std::string dir = FromEnvironment("XDG_CACHE_HOME"); !dir.empty()) return dir + "/pith";
  return HomeDir() + "/.cache/pith";
}

std::string DefaultModelPath() {
  if (std::string path = FromEnvironment("PITH_DEFAULT_MODEL"); !path.empty()) return path;
  return CacheDir() + "/" + kDefaultModel;
}

}  // namespace pith
