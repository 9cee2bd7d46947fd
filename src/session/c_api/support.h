// What every function of the C interface does: options of another size, errors of this thread, no exception.
#ifndef PITH_SESSION_C_API_SUPPORT_H_
#define PITH_SESSION_C_API_SUPPORT_H_

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <exception>
#include <new>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "pith/pith.h"
#include "pith/types.h"

namespace pith::c_api {

inline pith_status CodeOf(const Error& error) { return static_cast<pith_status>(error.code) + 1; }

// Becomes the thread's last error.
pith_status Fail(const Error& error) noexcept;

// body: () -> Status. Whatever it throws ends here, and is an error like any other.
template <typename Body>
pith_status Guarded(const Body& body) noexcept {
  try {
    const Status status = body();
    return status ? PITH_OK : Fail(status.error());
  } catch (const std::bad_alloc&) {
    return Fail({ErrorCode::kIo, "the system has no memory left"});
  } catch (const std::exception& error) {
    return Fail({ErrorCode::kUnsupported, error.what()});
  } catch (...) {
    return Fail({ErrorCode::kUnsupported, "something unknown went wrong"});
  }
}

inline std::string Text(const char* text) { return text == nullptr ? std::string() : std::string(text); }

// kInvalidArgument: `what` is null.
Status Require(const void* pointer, const char* what);

// Of a struct that begins with its size. kInvalidArgument: that is no size.
Result<size_t> SizeOf(const void* sized, const char* what);

// A caller's options as this library's struct: what an older caller's lacks is zero. kUnsupported: a newer caller's has
// something set that is not known here.
template <typename T>
Result<T> Read(const T* options, const char* what) {
  T own{};
  own.struct_size = sizeof(T);
  if (options == nullptr) return own;
  PITH_ASSIGN_OR_RETURN(const size_t size, SizeOf(options, what));
  const auto* bytes = reinterpret_cast<const unsigned char*>(options);
  for (size_t i = sizeof(T); i < size; ++i) {
    if (bytes[i] != 0) return Unsupported(std::string("this library is too old for the given ") + what);
  }
  std::memcpy(&own, bytes, std::min(size, sizeof(T)));
  own.struct_size = sizeof(T);
  return own;
}

// As much of a result as the caller's struct holds; what it holds beyond becomes zero.
template <typename T>
Status Fill(const T& full, T* out, const char* what) {
  PITH_RETURN_IF_ERROR(Require(out, what));
  PITH_ASSIGN_OR_RETURN(const size_t size, SizeOf(out, what));
  auto* bytes = reinterpret_cast<unsigned char*>(out);
  const size_t known = std::min(size, sizeof(T));
  std::memcpy(bytes, &full, known);
  std::memset(bytes + known, 0, size - known);
  std::memcpy(bytes, &size, sizeof size);
  return {};
}

// The elements of a caller's array, whose first one says how far they are apart.
template <typename T>
Result<std::vector<T>> ReadAll(const T* items, size_t count, const char* what) {
  std::vector<T> all;
  if (count == 0) return all;
  PITH_RETURN_IF_ERROR(Require(items, what));
  PITH_ASSIGN_OR_RETURN(const size_t stride, SizeOf(items, what));
  all.reserve(count);
  for (size_t i = 0; i < count; ++i) {
    const auto* item = reinterpret_cast<const T*>(reinterpret_cast<const unsigned char*>(items) + i * stride);
    PITH_ASSIGN_OR_RETURN(T own, Read(item, what));
    all.push_back(own);
  }
  return all;
}

// Texts of a caller's array. kInvalidArgument: one of them is null.
Result<std::vector<std::string>> ReadTexts(const char* const* texts, size_t count, const char* what);

// As snprintf: what fits with its zero. Returns text.size().
size_t CopyText(std::string_view text, char* buffer, size_t capacity);

// All that `read` gives.
Result<std::vector<std::byte>> ReadToEnd(pith_read_fn read, void* user);
Status WriteAll(pith_write_fn write, void* user, const std::vector<std::byte>& bytes);

}  // namespace pith::c_api

#endif  // PITH_SESSION_C_API_SUPPORT_H_
