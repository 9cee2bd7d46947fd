// libllama's tokenizer on any text.
//
// It splits a text by std::regex first, which recurses once or more for every character of a match: a run of some
// thousand equal letters, blanks, dashes or ideographs overflows the stack of the thread it runs on. No match goes on
// over a change between blanks and other characters twice (ReachOfMatch), so that the stack that a text may take is
// known beforehand: texts without long runs are tokenised where they are, others on a thread with a stack for them.
#ifndef PITH_HOST_TOKENIZER_H_
#define PITH_HOST_TOKENIZER_H_

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

#include "pith/types.h"

struct llama_vocab;

namespace pith {

// The tokens that libllama gives, but no EOS behind a text that goes on (is_whole: it ends here). `pre` is the file's
// tokenizer.ggml.pre. kInvalidArgument: not UTF-8, too long, or with a run that no stack of 2 GiB has room for.
// kUnsupported: no vocabulary.
Result<std::vector<int32_t>> TokenizeText(const llama_vocab* vocab, std::string_view pre, std::string_view text,
                                          bool add_special, bool parse_special, bool is_whole = false);

// Characters of valid UTF-8 that one match of a pre-tokenizer's expressions goes over at most: the longest run of
// blanks and the longest of others.
size_t ReachOfMatch(std::string_view text, std::string_view pre);

}  // namespace pith

#endif  // PITH_HOST_TOKENIZER_H_
