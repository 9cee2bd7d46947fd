#include "policy/untrusted.h"

namespace pith {
namespace {

thread_local bool refuses_files = false;

class Refusal {
 public:
  Refusal() { refuses_files = true; }
  ~Refusal() { refuses_files = false; }
  Refusal(const Refusal&) = delete;
  Refusal& operator=(const Refusal&) = delete;
};

}  // namespace

bool RefusesFiles() { return refuses_files; }

Result<Recipe> ParseUntrustedRecipe(std::string_view text) {
  const Refusal refusal;
  return ParseRecipe(text);
}

}  // namespace pith
