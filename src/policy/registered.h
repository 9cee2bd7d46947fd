// Scorers that programs have registered (RegisterScorer in registry.h), behind the tables of registry.cc.
#ifndef PITH_POLICY_REGISTERED_H_
#define PITH_POLICY_REGISTERED_H_

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "policy/registry.h"

namespace pith {

struct RegisteredScorer {
  std::vector<std::string> texts;  // which the entry's views look at
  StageEntry entry;
  std::function<std::unique_ptr<Scorer>(const Params&)> make;
};

// So far, in order. They never go, nor move.
std::vector<const RegisteredScorer*> RegisteredScorers();

}  // namespace pith

#endif  // PITH_POLICY_REGISTERED_H_
