// A GGUF file: magic, version, counts; key-value pairs; tensor infos; padding;
// tensor data. All numbers are little-endian. One Checker walks one file from
// front to back through a buffer of kBufferBytes, and no length is believed
// before it has been compared with what is left of the file.
#include "host/gguf_check.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <limits>
#include <unordered_set>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include "base/escaped.h"
#include "ggml.h"

namespace pith {
namespace {

constexpr size_t kBufferBytes = 64 * 1024;
constexpr uint64_t kMaxKeyBytes = 65535;                  // GGUF specification
constexpr uint64_t kMaxValueLength = uint64_t{1} << 30;  // libllama's limit on strings and arrays
constexpr uint64_t kMaxTensorDims = GGML_MAX_DIMS;
constexpr uint64_t kDefaultAlignment = 32;
constexpr uint64_t kMaxAlignment = uint64_t{1} << 20;
// The least that a key-value pair (length, one byte, type, one byte) and a
// tensor info (length, one byte, dimensions, type, offset) can take.
constexpr uint64_t kMinPairBytes = 8 + 1 + 4 + 1;
constexpr uint64_t kMinTensorBytes = 8 + 1 + 4 + 4 + 8;

enum ValueType : uint32_t {
  kUint8, kInt8, kUint16, kInt16, kUint32, kInt32, kFloat32, kBool, kString, kArray, kUint64, kInt64, kFloat64,
  kNumValueTypes,
};
constexpr std::array<uint8_t, kNumValueTypes> kValueBytes = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};

// Bytes of a file or of memory, by offset.
class Source {
 public:
  virtual ~Source() = default;
  virtual uint64_t size() const = 0;
  // Reads exactly `to.size()` bytes. False: the system refused.
  virtual bool Read(uint64_t offset, std::span<std::byte> to) = 0;
};

class MemorySource final : public Source {
 public:
  explicit MemorySource(std::span<const std::byte> bytes) : bytes_(bytes) {}
  uint64_t size() const override { return bytes_.size(); }
  bool Read(uint64_t offset, std::span<std::byte> to) override {
    std::memcpy(to.data(), bytes_.data() + offset, to.size());
    return true;
  }

 private:
  std::span<const std::byte> bytes_;
};

class FileSource final : public Source {
 public:
  FileSource(int fd, uint64_t size) : fd_(fd), size_(size) {}
  FileSource(const FileSource&) = delete;
  FileSource& operator=(const FileSource&) = delete;
  ~FileSource() override { ::close(fd_); }
  uint64_t size() const override { return size_; }
  bool Read(uint64_t offset, std::span<std::byte> to) override {
    while (!to.empty()) {
      const ssize_t n = ::pread(fd_, to.data(), to.size(), static_cast<off_t>(offset));
      if (n < 0 && errno == EINTR) continue;
      if (n <= 0) return false;  // an error, or somebody shortens the file meanwhile
      to = to.subspan(static_cast<size_t>(n));
      offset += static_cast<uint64_t>(n);
    }
    return true;
  }

 private:
  int fd_;
  uint64_t size_;
};

class Checker {
 public:
  Checker(Source& source, std::string_view name) : source_(source), name_(name) {}

  Result<GgufFacts> Run() {
    PITH_RETURN_IF_ERROR(Header());
    for (uint64_t i = 0; i < num_pairs_; ++i) PITH_RETURN_IF_ERROR(Pair());
    if (!has_architecture_ && part_ == 0) {
      return Bad("is not a model: it lacks general.architecture");
    }
    if (part_ >= num_parts_) return Bad(fmt::format("is corrupt: it is part {} of {}", part_ + 1, num_parts_));
    for (uint64_t i = 0; i < num_tensors_; ++i) PITH_RETURN_IF_ERROR(Tensor());
    PITH_RETURN_IF_ERROR(Data());
    return GgufFacts{.file_bytes = source_.size(), .part = part_, .num_parts = num_parts_};
  }

 private:
  struct TensorInfo {
    std::string name;
    uint64_t offset = 0;
    uint64_t bytes = 0;
  };

  tl::unexpected<Error> Bad(std::string_view what) const { return Corrupt(fmt::format("{} {}", name_, what)); }
  tl::unexpected<Error> Truncated(std::string_view where) const {
    return Bad(fmt::format("is truncated: the file ends at byte {} within {}", source_.size(), where));
  }

  uint64_t left() const { return source_.size() - at_; }

  // Copies `to.size()` bytes, which the caller knows to be there.
  bool Take(std::span<std::byte> to) {
    while (!to.empty()) {
      if (at_ < buffer_start_ || at_ >= buffer_start_ + buffer_.size()) {
        buffer_.resize(static_cast<size_t>(std::min<uint64_t>(kBufferBytes, left())));
        buffer_start_ = at_;
        if (!source_.Read(at_, buffer_)) {
          buffer_.clear();
          return false;
        }
      }
      const auto from = static_cast<size_t>(at_ - buffer_start_);
      const size_t n = std::min(to.size(), buffer_.size() - from);
      std::memcpy(to.data(), buffer_.data() + from, n);
      to = to.subspan(n);
      at_ += n;
    }
    return true;
  }

  template <typename T>
  Status Number(T& value, std::string_view where) {
    if (left() < sizeof value) return Truncated(where);
    if (!Take(std::as_writable_bytes(std::span(&value, 1)))) return Unreadable();
    return {};
  }

  Status Text(std::string& text, uint64_t max_bytes, std::string_view where) {
    uint64_t length = 0;
    PITH_RETURN_IF_ERROR(Number(length, where));
    if (length > left()) {
      return Bad(fmt::format("is truncated or corrupt: {} has {} bytes, and {} are left of the file", where, length,
                             left()));
    }
    if (length > max_bytes) {
      return Bad(fmt::format("is corrupt: {} has {} bytes, more than the {} allowed", where, length, max_bytes));
    }
    text.resize(static_cast<size_t>(length));
    if (!Take(std::as_writable_bytes(std::span(text.data(), text.size())))) return Unreadable();
    return {};
  }

  Status Skip(uint64_t bytes, std::string_view where) {
    if (bytes > left()) return Truncated(where);
    at_ += bytes;
    return {};
  }

  tl::unexpected<Error> Unreadable() const {
    return IoError(fmt::format("{} could not be read at byte {}", name_, at_));
  }

  Status Header();
  Status Magic();
  Status Pair();
  Status Value(const std::string& key, uint32_t type);
  Status Array(const std::string& key);
  Status Strings(const std::string& key, uint64_t count);
  Status Tensor();
  Status Shape(const std::string& name, std::array<uint64_t, GGML_MAX_DIMS>& dims);
  Status TensorBytes(const std::string& name, const std::array<uint64_t, GGML_MAX_DIMS>& dims, uint64_t& bytes);
  Status Data() const;

  Source& source_;
  std::string name_;
  uint64_t at_ = 0;
  std::vector<std::byte> buffer_;
  uint64_t buffer_start_ = 0;

  uint64_t num_tensors_ = 0;
  uint64_t num_pairs_ = 0;
  uint64_t alignment_ = kDefaultAlignment;
  bool has_architecture_ = false;
  uint16_t part_ = 0;  // of a split model; only part 0 has the model's metadata
  uint16_t num_parts_ = 1;
  std::unordered_set<std::string> keys_;
  std::unordered_set<std::string> tensor_names_;
  std::vector<TensorInfo> tensors_;
};

Status Checker::Magic() {
  if (source_.size() == 0) return Bad("is empty (0 bytes), not a GGUF file");
  std::array<char, 64> head{};
  const auto length = static_cast<size_t>(std::min<uint64_t>(head.size(), source_.size()));
  const auto bytes = std::as_writable_bytes(std::span(head)).first(length);
  if (!Take(bytes)) return Unreadable();
  at_ = std::min<uint64_t>(4, length);
  const std::string_view text(head.data(), length);
  if (text.starts_with("GGUF")) return {};
  if (text.starts_with("version https://git-lfs")) {
    return Bad("is not a GGUF file but a Git LFS pointer to one (fetch it with \"git lfs pull\")");
  }
  return Bad(fmt::format("is not a GGUF file (it begins with \"{}\", not with \"GGUF\")",
                         Escaped(text.substr(0, 8))));
}

Status Checker::Header() {
  PITH_RETURN_IF_ERROR(Magic());
  uint32_t version = 0;
  PITH_RETURN_IF_ERROR(Number(version, "the header"));
  if (version != 0 && (version & 0xffff) == 0) {
    return Bad("is a big-endian GGUF file, and this machine is little-endian");
  }
  if (version != 2 && version != 3) {
    return Bad(fmt::format("has GGUF version {}, and only versions 2 and 3 can be read", version));
  }
  PITH_RETURN_IF_ERROR(Number(num_tensors_, "the header"));
  PITH_RETURN_IF_ERROR(Number(num_pairs_, "the header"));
  if (num_pairs_ > left() / kMinPairBytes) {
    return Bad(fmt::format("is truncated or corrupt: it announces {} key-value pairs in {} bytes", num_pairs_,
                           source_.size()));
  }
  if (num_tensors_ > (left() - num_pairs_ * kMinPairBytes) / kMinTensorBytes) {
    return Bad(fmt::format("is truncated or corrupt: it announces {} tensors in {} bytes", num_tensors_,
                           source_.size()));
  }
  return {};
}

Status Checker::Pair() {
  std::string key;
  PITH_RETURN_IF_ERROR(Text(key, kMaxKeyBytes, "a key"));
  if (key.empty()) return Bad("is corrupt: it has an empty key");
  if (!keys_.insert(key).second) {
    return Bad(fmt::format("is corrupt: the key {} appears twice", Escaped(key)));
  }
  uint32_t type = 0;
  PITH_RETURN_IF_ERROR(Number(type, Escaped(key)));
  if (type >= kNumValueTypes) {
    return Bad(fmt::format("is corrupt: the key {} has the unknown value type {}", Escaped(key), type));
  }
  return Value(key, type);
}

Status Checker::Value(const std::string& key, uint32_t type) {
  if (key == "general.architecture") {
    if (type != kString) return Bad("is corrupt: general.architecture is not a string");
    std::string architecture;
    PITH_RETURN_IF_ERROR(Text(architecture, 256, key));
    if (architecture.empty()) return Bad("is corrupt: general.architecture is empty");
    has_architecture_ = true;
    return {};
  }
  if (key == "general.alignment") {
    if (type != kUint32) return Bad("is corrupt: general.alignment is not a 32-bit number");
    uint32_t alignment = 0;
    PITH_RETURN_IF_ERROR(Number(alignment, key));
    if (alignment == 0 || (alignment & (alignment - 1)) != 0 || alignment > kMaxAlignment) {
      return Bad(fmt::format("is corrupt: its alignment of {} is not a power of two up to {}", alignment,
                             kMaxAlignment));
    }
    alignment_ = alignment;
    return {};
  }
  if (key == "split.no" && type == kUint16) return Number(part_, key);
  if (key == "split.count" && type == kUint16) {
    PITH_RETURN_IF_ERROR(Number(num_parts_, key));
    num_parts_ = std::max<uint16_t>(num_parts_, 1);  // 0 says that it is whole
    return {};
  }
  if (type == kArray) return Array(key);
  if (type == kString) return Strings(key, 1);
  return Skip(kValueBytes[type], Escaped(key));
}

Status Checker::Array(const std::string& key) {
  uint32_t type = 0;
  uint64_t count = 0;
  PITH_RETURN_IF_ERROR(Number(type, Escaped(key)));
  PITH_RETURN_IF_ERROR(Number(count, Escaped(key)));
  if (type == kArray) {
    return Bad(fmt::format("cannot be read: the key {} holds arrays of arrays, which libllama does not know",
                           Escaped(key)));
  }
  if (type >= kNumValueTypes) {
    return Bad(fmt::format("is corrupt: the array {} has the unknown element type {}", Escaped(key), type));
  }
  const uint64_t element_bytes = type == kString ? sizeof(uint64_t) : kValueBytes[type];
  if (count > left() / element_bytes) {
    return Bad(fmt::format("is truncated or corrupt: the array {} announces {} elements, and {} bytes are left of the "
                           "file",
                           Escaped(key), count, left()));
  }
  if (count > kMaxValueLength) {
    return Bad(fmt::format("is corrupt: the array {} has {} elements, more than the {} allowed", Escaped(key), count,
                           kMaxValueLength));
  }
  if (type == kString) return Strings(key, count);
  return Skip(count * element_bytes, Escaped(key));
}

// libllama aborts on a vocabulary that holds the same piece twice.
Status Checker::Strings(const std::string& key, uint64_t count) {
  const bool is_vocabulary = key == "tokenizer.ggml.tokens";
  std::unordered_set<std::string> pieces;
  std::string piece;
  for (uint64_t i = 0; i < count; ++i) {
    if (is_vocabulary) {
      PITH_RETURN_IF_ERROR(Text(piece, kMaxValueLength, key));
      if (!piece.empty() && !pieces.insert(piece).second) {
        return Bad(fmt::format("is corrupt: its vocabulary holds the piece \"{}\" twice", Escaped(piece)));
      }
      continue;
    }
    uint64_t length = 0;
    PITH_RETURN_IF_ERROR(Number(length, Escaped(key)));
    if (length > left() || length > kMaxValueLength) {
      return Bad(fmt::format("is truncated or corrupt: a string of {} has {} bytes, and {} are left of the file",
                             Escaped(key), length, left()));
    }
    PITH_RETURN_IF_ERROR(Skip(length, Escaped(key)));
  }
  return {};
}

Status Checker::Shape(const std::string& name, std::array<uint64_t, GGML_MAX_DIMS>& dims) {
  uint32_t num_dims = 0;
  PITH_RETURN_IF_ERROR(Number(num_dims, name));
  if (num_dims > kMaxTensorDims) {
    return Bad(fmt::format("is corrupt: tensor {} has {} dimensions, more than {}", name, num_dims, kMaxTensorDims));
  }
  constexpr auto kMaxElements = static_cast<uint64_t>(std::numeric_limits<int64_t>::max());
  uint64_t elements = 1;
  for (uint32_t i = 0; i < num_dims; ++i) {
    PITH_RETURN_IF_ERROR(Number(dims[i], name));
    if (dims[i] == 0 || dims[i] > kMaxElements) {
      return Bad(fmt::format("is corrupt: dimension {} of tensor {} is {}", i, name, static_cast<int64_t>(dims[i])));
    }
    if (dims[i] > kMaxElements / elements) {
      return Bad(fmt::format("is corrupt: the dimensions of tensor {} multiply to more than 2^63 elements", name));
    }
    elements *= dims[i];
  }
  return {};
}

Status Checker::TensorBytes(const std::string& name, const std::array<uint64_t, GGML_MAX_DIMS>& dims,
                            uint64_t& bytes) {
  uint32_t raw_type = 0;
  PITH_RETURN_IF_ERROR(Number(raw_type, name));
  const auto block = raw_type < GGML_TYPE_COUNT ? ggml_blck_size(static_cast<ggml_type>(raw_type)) : 0;
  const uint64_t block_bytes = block > 0 ? ggml_type_size(static_cast<ggml_type>(raw_type)) : 0;
  if (block <= 0 || block_bytes == 0) {
    return Bad(fmt::format("cannot be read: tensor {} has the type {}, which this version of libllama does not know",
                           name, raw_type));
  }
  const auto block_size = static_cast<uint64_t>(block);
  if (dims[0] % block_size != 0) {
    return Bad(
        fmt::format("is corrupt: rows of tensor {} have {} elements, which is no multiple of the {} of a {} block",
                    name, dims[0], block_size, ggml_type_name(static_cast<ggml_type>(raw_type))));
  }
  uint64_t blocks = dims[0] / block_size;
  for (size_t i = 1; i < dims.size(); ++i) blocks *= dims[i];  // at most 2^63: see Shape()
  // Room for the offset, the header and the padding in 63 bits.
  if (blocks > (uint64_t{1} << 62) / block_bytes) {
    return Bad(fmt::format("is corrupt: tensor {} would take more than 2^62 bytes", name));
  }
  bytes = blocks * block_bytes;
  return {};
}

Status Checker::Tensor() {
  TensorInfo info;
  PITH_RETURN_IF_ERROR(Text(info.name, GGML_MAX_NAME - 1, "the name of a tensor"));
  if (!tensor_names_.insert(info.name).second) {
    return Bad(fmt::format("is corrupt: the tensor {} appears twice", Escaped(info.name)));
  }
  info.name = Escaped(info.name);
  std::array<uint64_t, GGML_MAX_DIMS> dims;
  dims.fill(1);
  PITH_RETURN_IF_ERROR(Shape(info.name, dims));
  PITH_RETURN_IF_ERROR(TensorBytes(info.name, dims, info.bytes));
  PITH_RETURN_IF_ERROR(Number(info.offset, info.name));
  if (info.offset % alignment_ != 0) {
    return Bad(fmt::format("is corrupt: tensor {} begins at offset {}, which is not aligned to {} bytes", info.name,
                           info.offset, alignment_));
  }
  if (info.offset >= uint64_t{1} << 62) {
    return Bad(fmt::format("is corrupt: tensor {} begins at offset {}", info.name, info.offset));
  }
  tensors_.push_back(std::move(info));
  return {};
}

// Tensors lie in order and without gaps other than padding, as libllama demands.
Status Checker::Data() const {
  const uint64_t start = (at_ + alignment_ - 1) / alignment_ * alignment_;
  uint64_t expected = 0;
  for (const TensorInfo& tensor : tensors_) {
    if (tensor.offset != expected) {
      return Bad(fmt::format("is corrupt: tensor {} begins at offset {} of the data, where {} was expected",
                             tensor.name, tensor.offset, expected));
    }
    const uint64_t end = start + tensor.offset + tensor.bytes;  // below 2^63 + 2^62
    if (end > source_.size()) {
      return Bad(fmt::format("is truncated: tensor {} ends at byte {}, the file has {}", tensor.name, end,
                             source_.size()));
    }
    expected = (tensor.offset + tensor.bytes + alignment_ - 1) / alignment_ * alignment_;
  }
  return {};
}

}  // namespace

Result<GgufFacts> CheckGguf(const std::string& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) {
    const int error = errno;
    if (error == ENOENT || error == ENOTDIR) return NotFound(fmt::format("There is no file {}", path));
    return IoError(fmt::format("{} could not be opened: {}", path, std::strerror(error)));
  }
  struct stat info {};
  if (::fstat(fd, &info) != 0 || !S_ISREG(info.st_mode)) {
    ::close(fd);
    return InvalidArgument(fmt::format("{} is {}, not a GGUF file", path,
                                       S_ISDIR(info.st_mode) ? "a folder" : "no regular file"));
  }
  FileSource source(fd, static_cast<uint64_t>(info.st_size));
  return Checker(source, path).Run();
}

Result<GgufFacts> CheckGgufBytes(std::span<const std::byte> bytes, std::string_view name) {
  MemorySource source(bytes);
  return Checker(source, name).Run();
}

namespace {

// "model-00001-of-00003.gguf" -> "model"; empty: not the name of that part.
std::string SplitPrefix(const std::string& path, int part, int num_parts) {
  const std::string end = fmt::format("-{:05}-of-{:05}.gguf", part + 1, num_parts);
  return path.size() > end.size() && path.ends_with(end) ? path.substr(0, path.size() - end.size()) : std::string();
}

}  // namespace

Result<std::vector<std::string>> CheckModelFiles(const std::string& path, size_t* total_bytes) {
  PITH_ASSIGN_OR_RETURN(const GgufFacts first, CheckGguf(path));
  size_t bytes = first.file_bytes;
  std::vector<std::string> paths = {path};
  if (first.num_parts > 1) {
    const std::string prefix = SplitPrefix(path, first.part, first.num_parts);
    const auto path_of = [&](int part) {
      return fmt::format("{}-{:05}-of-{:05}.gguf", prefix, part + 1, first.num_parts);
    };
    if (first.part != 0) {
      return InvalidArgument(fmt::format("{} is part {} of {} of a split model: give the first part{}", path,
                                         first.part + 1, first.num_parts,
                                         prefix.empty() ? std::string() : ", " + path_of(0)));
    }
    if (prefix.empty()) {
      return InvalidArgument(
          fmt::format("{} is the first of {} parts of a split model, and its name must end in -00001-of-{:05}.gguf "
                      "so that the others can be found",
                      path, first.num_parts, first.num_parts));
    }
    for (int part = 1; part < first.num_parts; ++part) {
      const auto facts = CheckGguf(path_of(part));
      if (!facts && facts.error().code == ErrorCode::kNotFound) {
        return NotFound(fmt::format("part {} of {} of the model is missing: there is no file {}", part + 1,
                                    first.num_parts, path_of(part)));
      }
      if (!facts) return tl::unexpected<Error>(facts.error());
      if (facts->part != part || facts->num_parts != first.num_parts) {
        return Corrupt(fmt::format("{} says that it is part {} of {}, where part {} of {} was expected", path_of(part),
                                   facts->part + 1, facts->num_parts, part + 1, first.num_parts));
      }
      bytes += facts->file_bytes;
      paths.push_back(path_of(part));
    }
  }
  if (total_bytes != nullptr) *total_bytes = bytes;
  return paths;
}

}  // namespace pith
