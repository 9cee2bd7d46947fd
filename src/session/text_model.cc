#include "session/text_model.h"

namespace pith {

Result<std::vector<int32_t>> HostText::Tokenize(std::string_view text, bool begins, bool parse_special) const {
  PITH_ASSIGN_OR_RETURN(std::vector<int32_t> tokens, model_->Tokenize(text, begins, parse_special));
  if (!begins) return tokens;
  const auto added = model_->Tokenize("", true, true);  // what the tokenizer adds by itself
  if (added && !added->empty() && tokens.size() >= 2 && tokens[0] == added->front() && tokens[1] == added->front()) {
    tokens.erase(tokens.begin());
  }
  return tokens;
}

}  // namespace pith
