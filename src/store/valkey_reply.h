// What answers of Redis and Valkey mean to the store. Only where the build has libvalkey.
#ifndef PITH_STORE_VALKEY_REPLY_H_
#define PITH_STORE_VALKEY_REPLY_H_

#include <cstddef>
#include <memory>
#include <optional>
#include <span>

#include <valkey/valkey.h>

namespace pith::store {

struct FreeReply {
  void operator()(valkeyReply* reply) const { freeReplyObject(reply); }
};
using Reply = std::unique_ptr<valkeyReply, FreeReply>;

// Nothing that the store asks a server for is a list: one of millions of elements is not made room for.
inline void ExpectNoLists(valkeyReader& reader) { reader.maxelements = 16; }

// Answers GET: a value, or none. False: it is no such answer.
inline bool IsValue(const valkeyReply& reply, std::optional<std::span<const std::byte>>& value) {
  value.reset();
  if (reply.type == VALKEY_REPLY_NIL) return true;
  if (reply.type != VALKEY_REPLY_STRING) return false;
  value.emplace(reinterpret_cast<const std::byte*>(reply.str), reply.len);
  return true;
}

// Answers SET: it is stored, or, with NX, another one was.
inline bool IsStored(const valkeyReply& reply) {
  return reply.type == VALKEY_REPLY_STATUS || reply.type == VALKEY_REPLY_NIL;
}

}  // namespace pith::store

#endif  // PITH_STORE_VALKEY_REPLY_H_
