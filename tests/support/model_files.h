// Files around a model: its parts, and LoRA adapters for it.
#ifndef PITH_TESTS_SUPPORT_MODEL_FILES_H_
#define PITH_TESTS_SUPPORT_MODEL_FILES_H_

#include <cstdint>
#include <string>
#include <vector>

#include "pith/types.h"

namespace pith::testing {

// Writes the model as PREFIX-00001-of-0000N.gguf and so on, as llama.cpp's gguf-split does: metadata in the first part,
// tensors dealt to all in order. Returns the paths.
Result<std::vector<std::string>> SplitModel(const std::string& model_path, const std::string& prefix, int num_parts);

// Writes what the model's file says of itself, its vocabulary too, without its tensors.
Status WriteVocabulary(const std::string& model_path, const std::string& path);

// Writes a LoRA adapter of random numbers for every query and output projection of an F32 model.
Status MakeRandomLora(const std::string& model_path, const std::string& path, int rank, uint32_t seed);

}  // namespace pith::testing

#endif  // PITH_TESTS_SUPPORT_MODEL_FILES_H_
