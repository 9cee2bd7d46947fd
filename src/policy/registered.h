// Stages that programs have registered (RegisterScorer and its like in registry.h), behind the tables of registry.cc.
#ifndef PITH_POLICY_REGISTERED_H_
#define PITH_POLICY_REGISTERED_H_

#include <memory>
#include <string>
#include <variant>
#include <vector>

#include "policy/registry.h"

namespace pith {

struct RegisteredStage {
  std::vector<std::string> texts;  // which the entry's views look at
  StageEntry entry;
  std::variant<MakeStage<Scorer>, MakeStage<Aggregator>, MakeStage<Modifier>, MakeStage<Allocator>> make;
};

// So far, in order. They never go, nor move.
std::vector<const RegisteredStage*> RegisteredStages();

// Null: none of that kind has that name.
template <typename T>
std::unique_ptr<T> MakeRegistered(std::string_view name, const Params& params) {
  for (const RegisteredStage* stage : RegisteredStages()) {
    if (const auto* make = std::get_if<MakeStage<T>>(&stage->make); make != nullptr && stage->entry.name == name) {
      return (*make)(params);
    }
  }
  return nullptr;
}

}  // namespace pith

#endif  // PITH_POLICY_REGISTERED_H_
