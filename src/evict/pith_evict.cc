#include "evict/pith_evict.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <new>
#include <stdexcept>
#include <string_view>
#include <utility>

#include "evict/live_cache.h"
#include "evict/sidecar.h"

struct pith_evictor {
  std::unique_ptr<pith::evict::LiveCache> cache;
};

namespace {

using pith::evict::LiveCache;
using pith::evict::LiveKey;

LiveKey KeyOf(const unsigned char* bytes) {
  LiveKey key;
  static_assert(sizeof key == PITH_EVICT_KEY_BYTES);
  std::memcpy(key.data(), bytes, sizeof key);
  return key;
}

pith_evictor* Fail(std::string_view message, char* error, size_t error_bytes) {
  if (error_bytes == 0) return nullptr;
  const size_t count = std::min(message.size(), error_bytes - 1);
  std::memcpy(error, message.data(), count);
  error[count] = 0;
  return nullptr;
}

}  // namespace

pith_evictor* pith_evictor_open(const char* policy, uint64_t capacity, uint32_t most_objects, char* error,
                                size_t error_bytes) {
  // Memory of the whole evictor: the one place where a container may find none.
  try {
    LiveCache::Options options;
    options.policy = policy;
    options.capacity = capacity;
    options.most_objects = most_objects;
    auto cache = LiveCache::Create(options);
    if (!cache) return Fail(cache.error().message, error, error_bytes);
    auto evictor = std::make_unique<pith_evictor>();
    evictor->cache = std::move(*cache);
    return evictor.release();
  } catch (const std::bad_alloc&) {
    return Fail("there is no memory for so many objects", error, error_bytes);
  } catch (const std::length_error&) {
    return Fail("there is no memory for so many objects", error, error_bytes);
  }
}

void pith_evictor_close(pith_evictor* evictor) { const std::unique_ptr<pith_evictor> owned(evictor); }

int pith_evictor_ask(pith_evictor* evictor, const pith_evict_request* request) {
  return evictor->cache->Request({KeyOf(request->key), request->size, request->time, request->ttl, request->rtt,
                                  request->fetched != 0});
}

int pith_evictor_victim(pith_evictor* evictor, unsigned char* key) {
  const auto victim = evictor->cache->NextVictim();
  if (!victim) return 0;
  std::memcpy(key, victim->data(), sizeof *victim);
  return 1;
}

int pith_evictor_holds(const pith_evictor* evictor, const unsigned char* key) {
  return evictor->cache->Contains(KeyOf(key));
}

void pith_evictor_erase(pith_evictor* evictor, const unsigned char* key) { evictor->cache->Erase(KeyOf(key)); }

uint64_t pith_evictor_bytes(const pith_evictor* evictor) { return evictor->cache->used_bytes(); }

void pith_evictor_sidecar(const pith_evictor* evictor, pith_evict_sidecar* counters) {
  *counters = {};
  const pith::evict::SidecarCounters* const of = evictor->cache->sidecar();
  if (of != nullptr) *counters = {of->answered, of->late, of->wrong, of->absent, of->rested};
}
