// Tokens by which a model is told to write what stands between two texts.
#ifndef PITH_HOST_FIM_TOKENS_H_
#define PITH_HOST_FIM_TOKENS_H_

#include <cstdint>

namespace pith {

class HostModel;

// -1: the vocabulary has none.
struct FimTokens {
  int32_t prefix = -1, suffix = -1, middle = -1;
  int32_t repository = -1, separator = -1;  // in front of a repository's name, and of each file's

  bool complete() const { return prefix >= 0 && suffix >= 0 && middle >= 0; }
};

// As the file names them, or as libllama knows them by their texts.
FimTokens FimTokensOf(const HostModel& model);

}  // namespace pith

#endif  // PITH_HOST_FIM_TOKENS_H_
