// GGUF containers of tests (base/gguf_file.h), in which whatever a test names must be there.
#ifndef PITH_TESTS_SUPPORT_GGUF_READER_H_
#define PITH_TESTS_SUPPORT_GGUF_READER_H_

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/gguf_file.h"

namespace pith::testing {

using pith::GgufTensor;

class GgufFile : public pith::GgufFile {
 public:
  static Result<GgufFile> Load(const std::string& path);
  static Result<GgufFile> Parse(std::span<const uint8_t> bytes);

  bool has(const std::string& name) const { return Find(name) != nullptr; }
  // The tensor or key must exist (a test's own mistake otherwise: aborts with the name).
  const GgufTensor& tensor(const std::string& name) const;
  double number(const std::string& key) const;
  int param(const std::string& name) const { return static_cast<int>(number("pith.param." + name)); }
  std::vector<std::string> texts(const std::string& key) const;

 private:
  explicit GgufFile(pith::GgufFile file) : pith::GgufFile(std::move(file)) {}
};

}  // namespace pith::testing

#endif  // PITH_TESTS_SUPPORT_GGUF_READER_H_
