// Recipes from those who may not name files of this machine: clients of a server.
#ifndef PITH_POLICY_UNTRUSTED_H_
#define PITH_POLICY_UNTRUSTED_H_

#include <string_view>

#include "pith/types.h"
#include "policy/policy.h"

namespace pith {

// As ParseRecipe(); kInvalidArgument, and no file was looked at, where a stage takes a text (alloc=file:path=...,
// turns=epicache:embedder=...), which names one.
Result<Recipe> ParseUntrustedRecipe(std::string_view text);

// True on a thread within ParseUntrustedRecipe().
bool RefusesFiles();

}  // namespace pith

#endif  // PITH_POLICY_UNTRUSTED_H_
