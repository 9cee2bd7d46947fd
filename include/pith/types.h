// Vocabulary of the public API: results, errors, byte counts, identifiers.
#ifndef PITH_TYPES_H_
#define PITH_TYPES_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>

#include <tl/expected.hpp>

namespace pith {

enum class ErrorCode {
  kInvalidArgument,  // the caller asked for something that makes no sense
  kNotFound,         // a file, model or recipe that does not exist
  kCorrupt,          // bytes read from outside that break their format
  kUnsupported,      // well-formed, but pith cannot do it
  kOutOfBudget,      // the KV budget holds no more
  kIo,               // the system refused a read, a write or memory
  kCancelled,        // the caller asked to stop
  kBusy,             // later perhaps: a queue is full
  kOutOfContext,     // more tokens than a sequence may reach
};

// A code for programs and one sentence for people.
struct Error {
  ErrorCode code = ErrorCode::kInvalidArgument;
  std::string message;
};

template <typename T>
class [[nodiscard]] Result : public tl::expected<T, Error> {
 public:
  using tl::expected<T, Error>::expected;
};

using Status = Result<void>;

inline tl::unexpected<Error> MakeError(ErrorCode code, std::string message) {
  return tl::unexpected<Error>(Error{code, std::move(message)});
}
inline tl::unexpected<Error> InvalidArgument(std::string message) {
  return MakeError(ErrorCode::kInvalidArgument, std::move(message));
}
inline tl::unexpected<Error> NotFound(std::string message) {
  return MakeError(ErrorCode::kNotFound, std::move(message));
}
inline tl::unexpected<Error> Corrupt(std::string message) {
  return MakeError(ErrorCode::kCorrupt, std::move(message));
}
inline tl::unexpected<Error> Unsupported(std::string message) {
  return MakeError(ErrorCode::kUnsupported, std::move(message));
}
inline tl::unexpected<Error> OutOfBudget(std::string message) {
  return MakeError(ErrorCode::kOutOfBudget, std::move(message));
}
inline tl::unexpected<Error> IoError(std::string message) {
  return MakeError(ErrorCode::kIo, std::move(message));
}
inline tl::unexpected<Error> Cancelled(std::string message) {
  return MakeError(ErrorCode::kCancelled, std::move(message));
}
inline tl::unexpected<Error> Busy(std::string message) { return MakeError(ErrorCode::kBusy, std::move(message)); }
inline tl::unexpected<Error> OutOfContext(std::string message) {
  return MakeError(ErrorCode::kOutOfContext, std::move(message));
}

// Leaves the enclosing function with the error of `expr`, a Result or Status.
#define PITH_RETURN_IF_ERROR(expr)                                         \
  do {                                                                     \
    if (auto pith_status_ = (expr); !pith_status_)                         \
      return tl::unexpected<::pith::Error>(std::move(pith_status_).error()); \
  } while (false)

#define PITH_CONCAT_INNER_(a, b) a##b
#define PITH_CONCAT_(a, b) PITH_CONCAT_INNER_(a, b)

// PITH_ASSIGN_OR_RETURN(auto x, F()): x gets F's value, or the error leaves.
#define PITH_ASSIGN_OR_RETURN(lhs, expr)                                   \
  auto PITH_CONCAT_(pith_result_, __LINE__) = (expr);                      \
  if (!PITH_CONCAT_(pith_result_, __LINE__))                               \
    return tl::unexpected<::pith::Error>(                                  \
        std::move(PITH_CONCAT_(pith_result_, __LINE__)).error());          \
  lhs = std::move(*PITH_CONCAT_(pith_result_, __LINE__))

}  // namespace pith

#endif  // PITH_TYPES_H_
