// What stands between two texts: /infill of llama-server, and "suffix" of OpenAI's completions and Ollama's generate.
#ifndef PITH_SERVER_INFILL_H_
#define PITH_SERVER_INFILL_H_

#include <cstdint>
#include <string>
#include <vector>

#include "pith/types.h"
#include "server/json_reader.h"
#include "server/protocol.h"

namespace pith::server {

struct InfillFile {
  std::string name, text;
};

struct InfillParts {
  std::string prefix = {}, suffix = {};
  std::string begun = {};              // of what stands between them
  bool names_files = false;            // the prompt names repository and files, where the model has tokens for that
  std::vector<InfillFile> extra = {};  // other files, or parts of them; the last matter most
};

// kUnsupported, with what is missing, where the model has no tokens for it.
Status CheckInfill(const ServedModel& model);

// "suffix", which is the reader's error where the model has none of the tokens that one needs.
void ReadSuffix(JsonReader& reader, const ServedModel& model, std::string& suffix);

// llama-server's order:
//   BOS [repository]myproject\n [separator]NAME\nTEXT ... [separator]filename\n [prefix]... [suffix]... [middle]
// What the context does not hold beside an answer of max_tokens is left out: first files from the front, then, three
// tokens to one, the prefix's front and the suffix's end. Control tokens in the texts are text.
Result<std::vector<int32_t>> InfillPrompt(const ServedModel& model, const InfillParts& parts, int max_tokens);

}  // namespace pith::server

#endif  // PITH_SERVER_INFILL_H_
