// Texts as unit vectors, for what compares topics.
#ifndef PITH_HOST_EMBEDDER_H_
#define PITH_HOST_EMBEDDER_H_

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "host/model.h"
#include "pith/types.h"

namespace pith {

class TextEmbedder {
 public:
  virtual ~TextEmbedder() = default;
  // Of unit length; every text gives as many numbers. kInvalidArgument: the text holds no token.
  virtual Result<std::vector<float>> Embed(std::string_view text) = 0;
  // Main memory that it holds beside the mapped file.
  virtual size_t bytes() const = 0;
};

// The mean of the model's own input embeddings of the text's different tokens, in which frequent ones weigh less. Rows
// are read from the file one by one, nothing is held. The model must outlive it. kUnsupported: the file has no matrix
// of them, or in a form that cannot be read by rows.
Result<std::unique_ptr<TextEmbedder>> MakeInputEmbedder(const HostModel& model);

// An encoder from a GGUF file (embedding_context.h), of the beginning of a text that it cannot read whole. As
// HostModel::Load().
Result<std::unique_ptr<TextEmbedder>> LoadEmbedder(const std::string& path, int num_threads);

}  // namespace pith

#endif  // PITH_HOST_EMBEDDER_H_
