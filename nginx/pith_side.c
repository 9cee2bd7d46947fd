#include "pith_side.h"

#include <errno.h>
#include <signal.h>

#define PITH_STUCK_MS 1000
#define PITH_SILENT_S 10

const uint32_t pith_bounds_ns[PITH_BOUNDS] = {1000,   2000,   5000,   10000,  20000,  50000,
                                              100000, 200000, 500000, 1000000, 5000000};
const char *const pith_causes[PITH_CAUSES] = {
    "timeout", "error", "breaker", "drift", "keys", "space", "loader",
    "sidecar_late", "sidecar_wrong", "sidecar_absent", "sidecar_rests"};

pith_side_t *pith_side_create(void *memory, size_t bytes) {
  pith_side_t *side = memory;
  u_char *at = (u_char *) memory + ngx_align(sizeof(pith_side_t), 64);
  size_t events = 1;
  if (bytes < 64 * 1024) return NULL;
  bytes -= ngx_align(sizeof(pith_side_t), 64);
  while (2 * events * sizeof(pith_event_t) <= bytes / 3) events *= 2;
  side->ring_mask = events - 1;
  side->ring = (pith_event_t *) at;
  at += events * sizeof(pith_event_t);
  bytes -= events * sizeof(pith_event_t);
  side->records = (pith_record_t *) at;
  side->num_buckets = bytes / (PITH_BUCKET * sizeof(pith_record_t));
  return side;
}

void pith_side_write(pith_side_t *side, const pith_event_t *event) {
  uint64_t position = __atomic_fetch_add(&side->head, 1, __ATOMIC_RELAXED);
  pith_event_t *to = &side->ring[position & side->ring_mask];
  __atomic_store_n(&to->number, 0, __ATOMIC_RELAXED);
  __atomic_thread_fence(__ATOMIC_RELEASE);
  ngx_memcpy((u_char *) to + sizeof(to->number), (const u_char *) event + sizeof(to->number),
             sizeof(*to) - sizeof(to->number));
  __atomic_store_n(&to->number, position + 1, __ATOMIC_RELEASE);
}

int pith_side_read(pith_side_t *side, pith_event_t *event, ngx_msec_t *stuck_since) {
  for (;;) {
    uint64_t head = __atomic_load_n(&side->head, __ATOMIC_ACQUIRE);
    pith_event_t *from = &side->ring[side->tail & side->ring_mask];
    uint64_t number;
    if (side->tail == head) return 0;
    if (head - side->tail > side->ring_mask + 1) {
      side->counters.lost += head - side->ring_mask - 1 - side->tail;
      side->tail = head - side->ring_mask - 1;
      continue;
    }
    number = __atomic_load_n(&from->number, __ATOMIC_ACQUIRE);
    if (number == side->tail + 1) {
      ngx_memcpy(event, from, sizeof(*event));
      __atomic_thread_fence(__ATOMIC_ACQUIRE);
      if (__atomic_load_n(&from->number, __ATOMIC_RELAXED) == number) {
        ++side->tail;
        *stuck_since = 0;
        return 1;
      }
    } else if (number <= side->tail) {
      // A worker is at it, or was killed while it was.
      if (*stuck_since == 0) *stuck_since = ngx_current_msec;
      if (ngx_current_msec - *stuck_since < PITH_STUCK_MS) return 0;
    }
    *stuck_since = 0;
    ++side->counters.lost;
    ++side->tail;
  }
}

pith_record_t *pith_side_record(pith_side_t *side, const u_char *key, int add) {
  pith_record_t *bucket, *oldest;
  uint64_t hash;
  ngx_uint_t i;
  ngx_memcpy(&hash, key, sizeof(hash));
  bucket = side->records + hash % side->num_buckets * PITH_BUCKET;
  oldest = bucket;
  for (i = 0; i < PITH_BUCKET; i++) {
    if (bucket[i].created != 0 && ngx_memcmp(bucket[i].key, key, PITH_KEY_BYTES) == 0) return &bucket[i];
    if (bucket[i].last < oldest->last) oldest = &bucket[i];
  }
  if (!add) return NULL;
  ngx_memzero(oldest, sizeof(*oldest));
  ngx_memcpy(oldest->key, key, PITH_KEY_BYTES);
  return oldest;
}

int pith_side_own(pith_side_t *side) {
  uint64_t owner = __atomic_load_n(&side->owner, __ATOMIC_ACQUIRE);
  uint64_t now = (uint64_t) ngx_time();
  if (owner != (uint64_t) ngx_pid) {
    // Another process may have got the number of one that was killed: it does not say that it is there.
    int lives = owner != 0 && (kill((pid_t) owner, 0) == 0 || errno != ESRCH);
    if (lives && now < side->owner_time + PITH_SILENT_S) return 0;
    if (!__atomic_compare_exchange_n(&side->owner, &owner, (uint64_t) ngx_pid, 0, __ATOMIC_ACQ_REL,
                                     __ATOMIC_ACQUIRE)) {
      return 0;
    }
  }
  side->owner_time = now;
  return 1;
}

void pith_histogram_add(pith_histogram_t *histogram, uint64_t ns) {
  ngx_uint_t i = 0;
  while (i < PITH_BOUNDS && ns > pith_bounds_ns[i]) i++;
  ++histogram->buckets[i];
  ++histogram->count;
  histogram->sum_ns += ns;
}
