// Entries that do not stay are gone.
#include "policy/stage.h"

namespace pith {

StageInfo<Action> DropStage() {
  return {"entries that do not stay are gone", {}, [](const Params&) -> std::unique_ptr<Action> {
            return std::make_unique<Action>();
          }};
}

}  // namespace pith
