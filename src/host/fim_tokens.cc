#include "host/fim_tokens.h"

#include "host/model.h"
#include "llama.h"

namespace pith {

FimTokens FimTokensOf(const HostModel& model) {
  const llama_vocab* vocab = llama_model_get_vocab(model.handle());
  return {.prefix = llama_vocab_fim_pre(vocab),
          .suffix = llama_vocab_fim_suf(vocab),
          .middle = llama_vocab_fim_mid(vocab),
          .repository = llama_vocab_fim_rep(vocab),
          .separator = llama_vocab_fim_sep(vocab)};
}

}  // namespace pith
