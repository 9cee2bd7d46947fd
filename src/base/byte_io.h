// Numbers and arrays to and from files of our own, little-endian as the machines that pith runs on.
#ifndef PITH_BASE_BYTE_IO_H_
#define PITH_BASE_BYTE_IO_H_

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string_view>
#include <type_traits>
#include <vector>

namespace pith {

// FNV-1a, 64 bits: tells damage and other inputs apart, not malice.
class Hash64 {
 public:
  void Add(std::span<const std::byte> bytes) {
    for (const std::byte b : bytes) value_ = (value_ ^ static_cast<uint64_t>(b)) * 0x100000001b3;
  }
  void Add(std::string_view text) { Add(std::as_bytes(std::span(text.data(), text.size()))); }
  uint64_t value() const { return value_; }

 private:
  uint64_t value_ = 0xcbf29ce484222325;
};

class ByteWriter {
 public:
  virtual ~ByteWriter() = default;
  // After a failure nothing more is written; the owner of the file asks once, at the end.
  virtual void Write(std::span<const std::byte> bytes) = 0;

  template <typename T>
  requires std::is_arithmetic_v<T>
  void Number(T value) { Write(std::as_bytes(std::span(&value, 1))); }
  template <typename T, size_t N>
  void Array(std::span<T, N> values) {
    Write(std::as_bytes(values));
  }
};

class ByteReader {
 public:
  virtual ~ByteReader() = default;
  virtual uint64_t left() const = 0;
  // Fills `to`, or returns false and leaves it undefined.
  [[nodiscard]] virtual bool Read(std::span<std::byte> to) = 0;

  template <typename T>
  requires std::is_arithmetic_v<T>
  [[nodiscard]] bool Number(T& value) { return Read(std::as_writable_bytes(std::span(&value, 1))); }
  template <typename T, size_t N>
  [[nodiscard]] bool Array(std::span<T, N> values) {
    return Read(std::as_writable_bytes(values));
  }
  // Makes room in `to` for `count` elements only if so many are there.
  template <typename Container>
  [[nodiscard]] bool Fill(uint64_t count, Container& to) {
    if (count > left() / sizeof(*to.data())) return false;
    to.resize(static_cast<size_t>(count));
    return Array(std::span(to.data(), to.size()));
  }
};

class MemoryWriter final : public ByteWriter {
 public:
  void Write(std::span<const std::byte> bytes) override { bytes_.insert(bytes_.end(), bytes.begin(), bytes.end()); }
  std::vector<std::byte>& bytes() { return bytes_; }

 private:
  std::vector<std::byte> bytes_;
};

class MemoryReader final : public ByteReader {
 public:
  explicit MemoryReader(std::span<const std::byte> bytes) : bytes_(bytes) {}
  uint64_t left() const override { return bytes_.size(); }
  bool Read(std::span<std::byte> to) override {
    if (to.size() > bytes_.size()) return false;
    if (!to.empty()) std::memcpy(to.data(), bytes_.data(), to.size());
    bytes_ = bytes_.subspan(to.size());
    return true;
  }
  std::span<const std::byte> rest() const { return bytes_; }
  void Skip(size_t count) { bytes_ = bytes_.subspan(count); }

 private:
  std::span<const std::byte> bytes_;
};

}  // namespace pith

#endif  // PITH_BASE_BYTE_IO_H_
