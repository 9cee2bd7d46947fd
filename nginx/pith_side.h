// What the processes of a server share about one cache, beside NGINX's own keys zone.
//
//   ring      requests, written by workers when they log them and read by the cache manager: no locks, and no worker
//             waits. What the manager is too late for, or what a killed worker left half written, is lost and counted.
//   records   what the keys zone does not know of an object, by its key, in buckets of eight; the one that was asked
//             for longest ago makes room. Written by the manager alone; they outlive it, and reloads.
//   counters  written by the manager alone.
#ifndef PITH_NGINX_SIDE_H_
#define PITH_NGINX_SIDE_H_

#include <ngx_config.h>
#include <ngx_core.h>

#define PITH_KEY_BYTES 16
#define PITH_BUCKET 8

typedef struct {
  uint64_t number;  // 0: it is being written; else 1 + its position
  u_char key[PITH_KEY_BYTES];
  double time;     // s
  float ttl;       // s; infinite: unknown
  float rtt;       // us; NaN: unknown
  uint64_t bytes;  // sent to the client
  uint32_t status;  // NGX_HTTP_CACHE_MISS, ...
} pith_event_t;

typedef struct {
  u_char key[PITH_KEY_BYTES];
  double created;      // s; 0: nothing is here
  double last;         // s
  double valid_until;  // s
  float rtt;           // us
  uint32_t hits;       // since it was created
} pith_record_t;

#define PITH_BOUNDS 11
extern const uint32_t pith_bounds_ns[PITH_BOUNDS];

typedef struct {
  uint64_t buckets[PITH_BOUNDS + 1];  // the last: above all bounds
  uint64_t count;
  uint64_t sum_ns;
} pith_histogram_t;

// Why something else than the evictor decided.
enum {
  PITH_TIMEOUT,
  PITH_ERROR,
  PITH_BREAKER,
  PITH_DRIFT,
  PITH_KEYS,
  PITH_SPACE,
  PITH_LOADER,
  PITH_SIDECAR_LATE,
  PITH_SIDECAR_WRONG,
  PITH_SIDECAR_ABSENT,
  PITH_SIDECAR_RESTS,
  PITH_CAUSES
};
extern const char *const pith_causes[PITH_CAUSES];

typedef struct {
  uint64_t requests, hits, bytes, hit_bytes;
  uint64_t decisions, victims, victim_bytes, busy, expired;
  uint64_t fallbacks[PITH_CAUSES];
  uint64_t lost;          // events
  uint64_t shadow_hits;   // as they would be
  uint64_t shadow_evictions, shadow_agreed;
  uint64_t sidecar_answers;
  uint64_t model_bytes;   // that the evictor stores, now
  pith_histogram_t decide, locked, removed;
} pith_counters_t;

typedef struct {
  uint64_t head;  // events that were begun
  uint64_t tail;  // events that were read
  uint64_t owner;  // process id of the manager; 0: none
  uint64_t owner_time;  // s; when it last said so
  pith_counters_t counters;
  uint64_t ring_mask;
  uint64_t num_buckets;
  pith_event_t *ring;
  pith_record_t *records;
} pith_side_t;

// In `bytes` of zeroed shared memory; null: that is too little.
pith_side_t *pith_side_create(void *memory, size_t bytes);

// By any worker.
void pith_side_write(pith_side_t *side, const pith_event_t *event);

// By its owner. 0: there is none, or one that is still being written; stuck_since is the caller's.
int pith_side_read(pith_side_t *side, pith_event_t *event, ngx_msec_t *stuck_since);

// The object's; or one for it, in which created is 0, if `add`, else null. By its owner.
pith_record_t *pith_side_record(pith_side_t *side, const u_char *key, int add);

// Whether this process is the one that reads, which it becomes where the last one has ended.
int pith_side_own(pith_side_t *side);

void pith_histogram_add(pith_histogram_t *histogram, uint64_t ns);

#endif  // PITH_NGINX_SIDE_H_
