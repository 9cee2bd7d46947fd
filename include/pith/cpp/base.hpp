// What the parts of <pith/pith.hpp> share.
#ifndef PITH_CPP_BASE_HPP_
#define PITH_CPP_BASE_HPP_

#include <pith/pith.h>
#include <pith/types.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace pith {
inline namespace api {

namespace internal {

inline Error LastError(pith_status status) { return {static_cast<ErrorCode>(status - 1), pith_last_error()}; }

inline Status ToStatus(pith_status status) {
  if (status == PITH_OK) return {};
  return tl::unexpected<Error>(LastError(status));
}

inline std::vector<const char*> Pointers(const std::vector<std::string>& texts) {
  std::vector<const char*> pointers;
  for (const std::string& text : texts) pointers.push_back(text.c_str());
  return pointers;
}

// Null for an empty text, which is a default.
inline const char* OrNull(const std::string& text) { return text.empty() ? nullptr : text.c_str(); }

template <auto kFree>
struct Deleter {
  template <typename T>
  void operator()(T* handle) const {
    kFree(handle);
  }
};

inline bool Append(void* user, const void* data, size_t size) noexcept {
  auto& bytes = *static_cast<std::vector<std::byte>*>(user);
  const auto* from = static_cast<const std::byte*>(data);
  try {
    bytes.insert(bytes.end(), from, from + size);
  } catch (...) {
    return false;
  }
  return true;
}

inline int64_t TakeFront(void* user, void* data, size_t size) noexcept {
  auto& rest = *static_cast<std::span<const std::byte>*>(user);
  const size_t count = size < rest.size() ? size : rest.size();
  if (count > 0) std::memcpy(data, rest.data(), count);
  rest = rest.subspan(count);
  return static_cast<int64_t>(count);
}

}  // namespace internal

using Tokens = std::vector<int32_t>;
// Gets each piece of text (whole UTF-8 characters) as it is made; false stops.
using TextCallback = std::function<bool(std::string_view)>;
// False stops.
using ProgressCallback = std::function<bool(uint64_t done, uint64_t total)>;

inline const char* Version() { return pith_version(); }

// libllama's lines, at 1 (debug) to 4 (error), from any thread. {}: silence.
inline void SetLog(std::function<void(int level, std::string_view text)> log) {
  static std::shared_ptr<std::function<void(int, std::string_view)>> held;
  if (!log) pith_set_log(nullptr, nullptr);
  auto next = std::make_shared<std::function<void(int, std::string_view)>>(std::move(log));
  if (*next) {
    pith_set_log(
        [](void* user, int32_t level, const char* text) noexcept {
          (*static_cast<std::function<void(int, std::string_view)>*>(user))(level, text);
        },
        next.get());
  }
  held = std::move(next);
}

}  // namespace api
}  // namespace pith

#endif  // PITH_CPP_BASE_HPP_
