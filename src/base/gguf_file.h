// Small GGUF containers: metadata and tensors of float32, int32 and int64, read whole or written whole. What is read is
// not trusted: every length in it is checked before use. (Models are libllama's to read; this lies below it.)
#ifndef PITH_BASE_GGUF_FILE_H_
#define PITH_BASE_GGUF_FILE_H_

#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "pith/types.h"

namespace pith {

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

  // kNotFound, kIo: cannot be read. kCorrupt: is not what it says. Each with one sentence that names the file.
  static Result<GgufFile> Load(const std::string& path);
  static Result<GgufFile> Parse(std::span<const uint8_t> bytes);

  const std::string& path() const { return path_; }
  // Null, or nothing: there is none of that name and kind.
  const GgufTensor* Find(const std::string& name) const;
  std::optional<double> Number(const std::string& key) const;
  const std::map<std::string, GgufTensor>& tensors() const { return tensors_; }
  const std::map<std::string, Value>& metadata() const { return metadata_; }

 private:
  std::string path_;
  std::map<std::string, Value> metadata_;
  std::map<std::string, GgufTensor> tensors_;
};

// What Load() reads, float32 alone.
class GgufWriter {
 public:
  void Add(std::string_view key, uint32_t value);
  void Add(std::string_view key, std::string_view value);
  // shape as in GgufTensor.
  void Add(std::string_view name, std::vector<size_t> shape, std::span<const float> numbers);
  std::string Bytes() const;

 private:
  struct Entry {
    std::string name;
    std::vector<size_t> shape;
    std::vector<float> numbers;
  };
  std::string metadata_;
  uint64_t num_values_ = 0;
  std::vector<Entry> tensors_;
};

}  // namespace pith

#endif  // PITH_BASE_GGUF_FILE_H_
