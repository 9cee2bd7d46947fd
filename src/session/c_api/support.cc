#include "session/c_api/support.h"

#include <fmt/format.h>

#include "host/log.h"
#include "pith/stop_reason.h"

namespace pith::c_api {
namespace {

constexpr size_t kLargestStruct = 4096;
constexpr size_t kPiece = size_t{1} << 20;  // bytes of a callback's call

// A buffer, so that no memory is needed to say that there is none.
thread_local char last_error[512] = "";

static_assert(PITH_ERROR_INVALID_ARGUMENT == static_cast<int>(ErrorCode::kInvalidArgument) + 1);
static_assert(PITH_ERROR_NOT_FOUND == static_cast<int>(ErrorCode::kNotFound) + 1);
static_assert(PITH_ERROR_CORRUPT == static_cast<int>(ErrorCode::kCorrupt) + 1);
static_assert(PITH_ERROR_UNSUPPORTED == static_cast<int>(ErrorCode::kUnsupported) + 1);
static_assert(PITH_ERROR_OUT_OF_BUDGET == static_cast<int>(ErrorCode::kOutOfBudget) + 1);
static_assert(PITH_ERROR_IO == static_cast<int>(ErrorCode::kIo) + 1);
static_assert(PITH_ERROR_CANCELLED == static_cast<int>(ErrorCode::kCancelled) + 1);
static_assert(PITH_ERROR_BUSY == static_cast<int>(ErrorCode::kBusy) + 1);
static_assert(PITH_ERROR_OUT_OF_CONTEXT == static_cast<int>(ErrorCode::kOutOfContext) + 1);

}  // namespace

pith_status Fail(const Error& error) noexcept {
  CopyText(error.message, last_error, sizeof last_error);
  return CodeOf(error);
}

Status Require(const void* pointer, const char* what) {
  return pointer != nullptr ? Status() : InvalidArgument(fmt::format("there is no {}", what));
}

Result<size_t> SizeOf(const void* sized, const char* what) {
  size_t size = 0;
  std::memcpy(&size, sized, sizeof size);
  if (size >= sizeof size && size <= kLargestStruct) return size;
  return InvalidArgument(fmt::format("the {} must begin with the size of its struct, not with {}", what, size));
}

Result<std::vector<std::string>> ReadTexts(const char* const* texts, size_t count, const char* what) {
  std::vector<std::string> all;
  for (size_t i = 0; i < count; ++i) {
    if (texts == nullptr || texts[i] == nullptr)
      return InvalidArgument(fmt::format("there are less than {} {}", count, what));
    all.emplace_back(texts[i]);
  }
  return all;
}

size_t CopyText(std::string_view text, char* buffer, size_t capacity) {
  if (capacity == 0 || buffer == nullptr) return text.size();
  const size_t copied = std::min(text.size(), capacity - 1);
  std::copy_n(text.data(), copied, buffer);
  buffer[copied] = '\0';
  return text.size();
}

Result<std::vector<std::byte>> ReadToEnd(pith_read_fn read, void* user) {
  if (read == nullptr) return InvalidArgument("there is no function that reads");
  std::vector<std::byte> bytes;
  for (size_t size = 0;; bytes.resize(size)) {
    bytes.resize(size + kPiece);
    const int64_t got = read(user, bytes.data() + size, kPiece);
    if (got < 0 || static_cast<uint64_t>(got) > kPiece) return IoError("the saved sequence could not be read");
    size += static_cast<size_t>(got);
    if (got > 0) continue;
    bytes.resize(size);
    return bytes;
  }
}

Status WriteAll(pith_write_fn write, void* user, const std::vector<std::byte>& bytes) {
  if (write == nullptr) return InvalidArgument("there is no function that writes");
  for (size_t at = 0; at < bytes.size(); at += kPiece) {
    if (!write(user, bytes.data() + at, std::min(kPiece, bytes.size() - at))) {
      return IoError("the sequence could not be written");
    }
  }
  return {};
}

}  // namespace pith::c_api

using pith::StopReason;

static_assert(PITH_STOP_END == static_cast<int>(StopReason::kEnd));
static_assert(PITH_STOP_LENGTH == static_cast<int>(StopReason::kLength));
static_assert(PITH_STOP_CONTEXT == static_cast<int>(StopReason::kContext));
static_assert(PITH_STOP_INTERRUPTED == static_cast<int>(StopReason::kInterrupted));
static_assert(PITH_STOP_STRING == static_cast<int>(StopReason::kStopString));
static_assert(PITH_STOP_CALLBACK == static_cast<int>(StopReason::kCallback));
static_assert(PITH_STOP_BUDGET == static_cast<int>(StopReason::kBudget));

extern "C" {

const char* pith_version(void) { return PITH_VERSION; }

int32_t pith_abi_version(void) { return PITH_ABI_VERSION; }

const char* pith_status_name(pith_status status) {
  constexpr const char* kNames[] = {"ok",          "invalid_argument", "not_found", "corrupt",
                                    "unsupported", "out_of_budget",    "io",        "cancelled",
                                    "busy",        "out_of_context"};
  return status >= 0 && status < static_cast<pith_status>(std::size(kNames)) ? kNames[status] : "unknown";
}

const char* pith_stop_name(pith_stop stop) {
  return stop >= PITH_STOP_END && stop <= PITH_STOP_BUDGET ? pith::StopReasonName(static_cast<StopReason>(stop))
                                                           : "unknown";
}

const char* pith_last_error(void) { return pith::c_api::last_error; }

void pith_set_log(pith_log_fn log, void* user) { pith::SetHostLog(log, user); }

}  // extern "C"
