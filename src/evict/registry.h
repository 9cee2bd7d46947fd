// Evictors by name.
#ifndef PITH_EVICT_REGISTRY_H_
#define PITH_EVICT_REGISTRY_H_

#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "evict/evictor.h"
#include "pith/types.h"

namespace pith::evict {

// Numbers and words behind an evictor's name ("mark0:flip=0.1,seed=2"). Each is read once; what nobody reads is a
// mistake of the user's.
class Params {
 public:
  // kInvalidArgument: not "name=value,...".
  static Result<Params> Parse(std::string_view text);

  // `value` where it is not given. kInvalidArgument: no number between low and high.
  Result<double> Number(const std::string& name, double value, double low, double high);
  // `value` where it is not given. kInvalidArgument: none of `choices`.
  Result<std::string> Word(const std::string& name, std::string value, std::span<const std::string_view> choices);
  Result<std::string> Text(const std::string& name, std::string value);
  // kInvalidArgument: something was given that was never asked for.
  Status CheckAllRead(std::string_view policy) const;

 private:
  struct Value {
    std::string text;
    bool read = false;
  };
  std::map<std::string, Value> values_;
};

struct Setup {
  uint64_t capacity = 0;  // bytes, or blocks
  size_t num_objects = 0;
  // For evictors that know the future (Belady, perfect bits), and whether sizes differ. Outlives the evictor. Null:
  // requests come as they come.
  const Trace* trace = nullptr;
};

struct PolicyInfo {
  std::string_view name;
  std::string_view source;   // paper or code
  std::string_view summary;  // with its parameters
};

std::span<const PolicyInfo> ListPolicies();

// kUnsupported: there is no trace, which `policy` must see before the first request.
Status CheckHasTrace(std::string_view policy, const Setup& setup);

// text: a name, with parameters behind a colon. kInvalidArgument: no such evictor or parameter; kUnsupported: it can't
// do with this trace (ARC knows blocks of one size only).
Result<std::unique_ptr<Evictor>> MakeEvictor(std::string_view text, const Setup& setup);

}  // namespace pith::evict

#endif  // PITH_EVICT_REGISTRY_H_
