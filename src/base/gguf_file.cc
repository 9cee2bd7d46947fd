#include "base/gguf_file.h"

#include <fmt/format.h>

#include <cstring>

#include "base/text.h"

namespace pith {
namespace {

enum ValueType : uint32_t {
  kU8,
  kI8,
  kU16,
  kI16,
  kU32,
  kI32,
  kF32,
  kBool,
  kString,
  kArray,
  kU64,
  kI64,
  kF64,
};
// ggml_type
constexpr uint32_t kTensorF32 = 0;
constexpr uint32_t kTensorI32 = 26;
constexpr uint32_t kTensorI64 = 27;

constexpr uint32_t kMagic = 0x46554747;
constexpr uint64_t kMostDimensions = 4;
constexpr size_t kAlignment = 32;

size_t Aligned(size_t at, size_t alignment) { return (at + alignment - 1) / alignment * alignment; }

template <typename T>
void Append(std::string& to, T value) {
  to.append(reinterpret_cast<const char*>(&value), sizeof(value));
}

void AppendText(std::string& to, std::string_view text) {
  Append(to, static_cast<uint64_t>(text.size()));
  to += text;
}

// Reads forward; after the first byte that is not there, everything reads as zero and ok() is false.
class Cursor {
 public:
  explicit Cursor(std::span<const uint8_t> bytes) : bytes_(bytes) {}

  template <typename T>
  T Get() {
    T value{};
    if (!Has(sizeof(T))) return value;
    std::memcpy(&value, bytes_.data() + at_, sizeof(T));
    at_ += sizeof(T);
    return value;
  }

  std::string Text() {
    const auto length = Get<uint64_t>();
    if (!Has(length)) return {};
    std::string text(reinterpret_cast<const char*>(bytes_.data() + at_), length);
    at_ += length;
    return text;
  }

  bool ok() const { return ok_; }
  size_t at() const { return at_; }

 private:
  bool Has(uint64_t count) {
    ok_ = ok_ && count <= bytes_.size() - at_;
    return ok_;
  }

  std::span<const uint8_t> bytes_;
  size_t at_ = 0;
  bool ok_ = true;
};

double ReadNumber(Cursor& in, uint32_t type) {
  switch (type) {
    case kU8:
      return in.Get<uint8_t>();
    case kI8:
      return in.Get<int8_t>();
    case kU16:
      return in.Get<uint16_t>();
    case kI16:
      return in.Get<int16_t>();
    case kU32:
      return in.Get<uint32_t>();
    case kI32:
      return in.Get<int32_t>();
    case kF32:
      return static_cast<double>(in.Get<float>());
    case kBool:
      return in.Get<uint8_t>();
    case kU64:
      return static_cast<double>(in.Get<uint64_t>());
    case kI64:
      return static_cast<double>(in.Get<int64_t>());
    default:
      return in.Get<double>();
  }
}

bool IsNumber(uint32_t type) { return type <= kF64 && type != kString && type != kArray; }

Result<GgufFile::Value> ReadValue(Cursor& in, const std::string& key) {
  const auto type = in.Get<uint32_t>();
  if (type == kString) return GgufFile::Value(in.Text());
  if (IsNumber(type)) return GgufFile::Value(ReadNumber(in, type));
  if (type != kArray) return Corrupt(fmt::format("metadata '{}' has the unknown type {}", key, type));
  const auto element = in.Get<uint32_t>();
  const auto count = in.Get<uint64_t>();
  if (element != kString && !IsNumber(element)) {
    return Corrupt(fmt::format("metadata '{}' is a list of the unknown type {}", key, element));
  }
  std::vector<std::string> texts;
  for (uint64_t i = 0; i < count && in.ok(); ++i) {
    texts.push_back(element == kString ? in.Text() : fmt::format("{}", ReadNumber(in, element)));
  }
  return GgufFile::Value(std::move(texts));
}

template <typename T, typename Out>
void CopyNumbers(const uint8_t* from, size_t count, std::vector<Out>& to) {
  to.resize(count);
  for (size_t i = 0; i < count; ++i) {
    T value;
    std::memcpy(&value, from + i * sizeof(T), sizeof(T));
    to[i] = static_cast<Out>(value);
  }
}

struct Where {
  std::string name;
  uint32_t type = 0;
  uint64_t offset = 0;
  size_t count = 1;
};

}  // namespace

Result<GgufFile> GgufFile::Load(const std::string& path) {
  PITH_ASSIGN_OR_RETURN(const std::string text, ReadFile(path));
  Result<GgufFile> file = Parse({reinterpret_cast<const uint8_t*>(text.data()), text.size()});
  if (!file) return Corrupt(fmt::format("{}: {}", path, file.error().message));
  file->path_ = path;
  return file;
}

Result<GgufFile> GgufFile::Parse(std::span<const uint8_t> bytes) {
  Cursor in(bytes);
  if (in.Get<uint32_t>() != kMagic) return Corrupt("not a GGUF file");
  const auto version = in.Get<uint32_t>();
  if (version < 2 || version > 3) return Corrupt(fmt::format("GGUF version {} is not known", version));
  const auto num_tensors = in.Get<uint64_t>();
  const auto num_values = in.Get<uint64_t>();
  GgufFile file;
  for (uint64_t i = 0; i < num_values && in.ok(); ++i) {
    const std::string key = in.Text();
    PITH_ASSIGN_OR_RETURN(file.metadata_[key], ReadValue(in, key));
  }
  std::vector<Where> places;
  for (uint64_t i = 0; i < num_tensors && in.ok(); ++i) {
    Where place;
    place.name = in.Text();
    if (file.tensors_.contains(place.name)) return Corrupt(fmt::format("'{}' stands in it twice", place.name));
    GgufTensor& tensor = file.tensors_[place.name];
    const auto dimensions = in.Get<uint32_t>();
    if (dimensions > kMostDimensions) return Corrupt(fmt::format("'{}' has too many dimensions", place.name));
    for (uint32_t d = 0; d < dimensions; ++d) {
      const auto length = in.Get<uint64_t>();
      if (length > bytes.size() || place.count * length > bytes.size()) {
        return Corrupt(fmt::format("'{}' is larger than the file", place.name));
      }
      place.count *= length;
      tensor.shape.insert(tensor.shape.begin(), length);
    }
    place.type = in.Get<uint32_t>();
    place.offset = in.Get<uint64_t>();
    places.push_back(std::move(place));
  }
  if (!in.ok()) return Corrupt("the file ends within its header");
  const auto alignment =
      static_cast<size_t>(file.Number("general.alignment").value_or(static_cast<double>(kAlignment)));
  if (alignment == 0 || alignment > 4096) return Corrupt("the alignment makes no sense");
  const size_t start = Aligned(in.at(), alignment);
  for (const Where& place : places) {
    const size_t width = place.type == kTensorI64 ? 8 : 4;
    if (place.type != kTensorF32 && place.type != kTensorI32 && place.type != kTensorI64) {
      return Corrupt(fmt::format("'{}' has the type {}, which is not read here", place.name, place.type));
    }
    if (start > bytes.size() || place.offset > bytes.size() - start ||
        place.count * width > bytes.size() - start - place.offset) {
      return Corrupt(fmt::format("'{}' lies beyond the end of the file", place.name));
    }
    const uint8_t* from = bytes.data() + start + place.offset;
    GgufTensor& tensor = file.tensors_[place.name];
    if (place.type == kTensorF32) CopyNumbers<float>(from, place.count, tensor.f32);
    if (place.type == kTensorI32) CopyNumbers<int32_t>(from, place.count, tensor.i64);
    if (place.type == kTensorI64) CopyNumbers<int64_t>(from, place.count, tensor.i64);
  }
  return file;
}

const GgufTensor* GgufFile::Find(const std::string& name) const {
  const auto found = tensors_.find(name);
  return found == tensors_.end() ? nullptr : &found->second;
}

std::optional<double> GgufFile::Number(const std::string& key) const {
  const auto found = metadata_.find(key);
  if (found == metadata_.end() || !std::holds_alternative<double>(found->second)) return std::nullopt;
  return std::get<double>(found->second);
}

void GgufWriter::Add(std::string_view key, uint32_t value) {
  AppendText(metadata_, key);
  Append(metadata_, uint32_t{kU32});
  Append(metadata_, value);
  ++num_values_;
}

void GgufWriter::Add(std::string_view key, std::string_view value) {
  AppendText(metadata_, key);
  Append(metadata_, uint32_t{kString});
  AppendText(metadata_, value);
  ++num_values_;
}

void GgufWriter::Add(std::string_view name, std::vector<size_t> shape, std::span<const float> numbers) {
  tensors_.push_back({std::string(name), std::move(shape), {numbers.begin(), numbers.end()}});
}

std::string GgufWriter::Bytes() const {
  std::string bytes;
  Append(bytes, kMagic);
  Append(bytes, uint32_t{3});
  Append(bytes, static_cast<uint64_t>(tensors_.size()));
  Append(bytes, num_values_);
  bytes += metadata_;
  uint64_t offset = 0;
  for (const Entry& tensor : tensors_) {
    AppendText(bytes, tensor.name);
    Append(bytes, static_cast<uint32_t>(tensor.shape.size()));
    for (size_t d = tensor.shape.size(); d-- > 0;) Append(bytes, static_cast<uint64_t>(tensor.shape[d]));
    Append(bytes, kTensorF32);
    Append(bytes, offset);
    offset = Aligned(offset + tensor.numbers.size() * sizeof(float), kAlignment);
  }
  for (const Entry& tensor : tensors_) {
    bytes.resize(Aligned(bytes.size(), kAlignment));
    bytes.append(reinterpret_cast<const char*>(tensor.numbers.data()), tensor.numbers.size() * sizeof(float));
  }
  return bytes;
}

}  // namespace pith
