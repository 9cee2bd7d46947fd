// A small reader of GGUF containers for tests: metadata and F32, I32 and I64 tensors. Policies lie
// below the host, so their tests cannot use ggml's reader. Reads the whole file; every length in it
// is checked before use.
#ifndef PITH_TESTS_SUPPORT_GGUF_READER_H_
#define PITH_TESTS_SUPPORT_GGUF_READER_H_

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <variant>
#include <vector>

#include "pith/types.h"

namespace pith::testing {

struct GgufTensor {
  std::vector<size_t> shape;  // as NumPy prints it: slowest dimension first
  std::vector<float> f32;     // one of these holds the numbers
  std::vector<int64_t> i64;   // I32 and I64

  size_t size() const { return f32.empty() ? i64.size() : f32.size(); }
};

class GgufFile {
 public:
  // Numbers of any width as double, text, or a list of texts.
  using Value = std::variant<double, std::string, std::vector<std::string>>;

  // kIo: cannot be read. kCorrupt: is not what it says.
  static Result<GgufFile> Load(const std::string& path);
  static Result<GgufFile> Parse(std::span<const uint8_t> bytes);

  const std::string& path() const { return path_; }
  bool has(const std::string& name) const { return tensors_.count(name) != 0; }
  // The tensor or key must exist (a test's own mistake otherwise: aborts with the name).
  const GgufTensor& tensor(const std::string& name) const;
  double number(const std::string& key) const;
  double number(const std::string& key, double otherwise) const;
  int param(const std::string& name) const { return static_cast<int>(number("pith.param." + name)); }
  std::vector<std::string> texts(const std::string& key) const;
  const std::map<std::string, GgufTensor>& tensors() const { return tensors_; }
  const std::map<std::string, Value>& metadata() const { return metadata_; }

 private:
  std::string path_;
  std::map<std::string, Value> metadata_;
  std::map<std::string, GgufTensor> tensors_;
};

}  // namespace pith::testing

#endif  // PITH_TESTS_SUPPORT_GGUF_READER_H_
