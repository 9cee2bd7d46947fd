// The cache manager process: what NGINX's own manager does for a cache, with an evictor that chooses.
//
// Workers write each request into the ring (pith_side.h). The evictor is told of them in their order, and says which
// objects must go for those that came; it holds what the cache holds, but for the moment in which events wait. What it
// cannot be asked about (a keys zone that fills up, a disk that does) goes by age, as does all while it is absent.
#include "pith_module.h"

#include <math.h>

#define PITH_BATCH 16          // events in one hold of the mutex
#define PITH_WALK 64           // nodes in one hold of the mutex
#define PITH_BUSY_MS 10        // until events are looked for again, where there were some
#define PITH_IDLE_MS 20        // where there were none
#define PITH_STOCK_MS 1000     // NGINX's own manager may come back after 10 s
#define PITH_OVER_MS 1000      // for so long a cache may be too large before something is done about it
#define PITH_ERROR_MS 10000    // until another evictor is tried
#define PITH_BREAKER_MS 1000
#define PITH_BREAKER_OF 100    // of so many decisions ...
#define PITH_BREAKER_LATE 5    // ... so many came late: the least recently used ones go for a while
#define PITH_MOST_REPLAYED 32  // hits of an object that a new evictor is told of

static int pith_is_unlimited(const pith_cache_t *c) {
  return c->cache->max_size >= (off_t) (NGX_MAX_OFF_T_VALUE / c->cache->bsize);
}

// Objects that the keys zone may hold: below it workers never evict by themselves.
static ngx_uint_t pith_most_nodes(const pith_cache_t *c) {
  ngx_uint_t most = pith_zone_capacity(c->cache) / 10 * 9;
  return ngx_min(most, c->cache->sh->watermark);
}

// As the evictor counts: bytes on the disk, or objects where there is no limit of bytes.
static uint64_t pith_size(const pith_cache_t *c, off_t blocks) {
  return pith_is_unlimited(c) ? 1 : (uint64_t) blocks * c->cache->bsize;
}

static int pith_is_full(const pith_cache_t *c) {
  return c->files >= c->cache->manager_files ||
         ngx_current_msec - c->pass_began >= c->cache->manager_threshold || ngx_quit || ngx_terminate;
}

static ngx_int_t pith_delete(pith_cache_t *c, const u_char *key) {
  pith_counters_t *counters = &c->side->counters;
  off_t blocks;
  uint64_t began = pith_now_ns();
  ngx_int_t rc = pith_zone_delete(c->cache, key, &blocks);
  if (rc == NGX_OK) {
    pith_histogram_add(&counters->removed, pith_now_ns() - began);
    c->files++;
    counters->victims++;
    counters->victim_bytes += (uint64_t) blocks * c->cache->bsize;
  } else if (rc == NGX_BUSY) {
    counters->busy++;
  }
  return rc;
}

// 0: there is nothing to delete.
static int pith_delete_oldest(pith_cache_t *c, ngx_uint_t cause) {
  u_char key[PITH_KEY_BYTES];
  if (pith_zone_oldest(c->cache, 0, key) != NGX_OK) return 0;
  if (c->shadow) {
    c->side->counters.shadow_evictions++;
    if (c->evictor != NULL && !pith_evictor_holds(c->evictor, key)) c->side->counters.shadow_agreed++;
  } else {
    c->side->counters.fallbacks[cause]++;
    if (c->evictor != NULL) pith_evictor_erase(c->evictor, key);
  }
  return pith_delete(c, key) == NGX_OK;
}

static void pith_pause(pith_cache_t *c, ngx_msec_t ms, ngx_uint_t cause) {
  pith_evictor_close(c->evictor);
  c->evictor = NULL;
  c->num_busy = 0;
  c->recent = c->late = 0;
  c->paused_since = ngx_current_msec;
  c->paused_for = ms;
  c->side->counters.fallbacks[cause]++;
}

// A victim that is in use waits.
static void pith_wait_for(pith_cache_t *c, const u_char *key) {
  if (c->num_busy == PITH_MOST_BUSY) return;  // pith_repair finds it
  ngx_memcpy(c->busy[c->num_busy++], key, PITH_KEY_BYTES);
}

static void pith_retry(pith_cache_t *c) {
  ngx_uint_t i, left = 0;
  for (i = 0; i < c->num_busy; i++) {
    if (pith_evictor_holds(c->evictor, c->busy[i])) continue;
    if (pith_delete(c, c->busy[i]) == NGX_BUSY) ngx_memmove(c->busy[left++], c->busy[i], PITH_KEY_BYTES);
  }
  c->num_busy = left;
}

// What the evictor's sidecar has done since the last time.
static void pith_count_sidecar(pith_cache_t *c) {
  pith_counters_t *counters = &c->side->counters;
  pith_evict_sidecar now;
  pith_evictor_sidecar(c->evictor, &now);
  counters->sidecar_answers += now.answered - c->told.answered;
  counters->fallbacks[PITH_SIDECAR_LATE] += now.late - c->told.late;
  counters->fallbacks[PITH_SIDECAR_WRONG] += now.wrong - c->told.wrong;
  counters->fallbacks[PITH_SIDECAR_ABSENT] += now.absent - c->told.absent;
  counters->fallbacks[PITH_SIDECAR_RESTS] += now.rested - c->told.rested;
  c->told = now;
}

// A late answer is used all the same: it is there. Where several are late, none is waited for in a while. An evictor
// that asks another process sees to both by itself, and stays.
static void pith_judge(pith_cache_t *c, uint64_t ns) {
  pith_histogram_add(&c->side->counters.decide, ns);
  c->side->counters.decisions++;
  if (c->sidecar) return;
  if (ns > (uint64_t) c->deadline_us * 1000) {
    c->side->counters.fallbacks[PITH_TIMEOUT]++;
    c->late++;
  }
  if (c->late >= PITH_BREAKER_LATE) {
    pith_pause(c, PITH_BREAKER_MS, PITH_BREAKER);
  } else if (++c->recent == PITH_BREAKER_OF) {
    c->recent = c->late = 0;
  }
}

// Tells the evictor, and deletes what it does not keep. judge: as a decision whose time counts.
static void pith_ask(pith_cache_t *c, const pith_evict_request *request, int judge) {
  u_char victim[PITH_KEY_BYTES];
  ngx_uint_t victims = 0;
  uint64_t began = pith_now_ns(), ns;
  int hit = pith_evictor_ask(c->evictor, request);
  ns = pith_now_ns() - began;
  while (pith_evictor_victim(c->evictor, victim)) {
    victims++;
    if (!c->shadow && pith_delete(c, victim) == NGX_BUSY) pith_wait_for(c, victim);
  }
  c->side->counters.model_bytes = pith_evictor_bytes(c->evictor);
  if (c->sidecar) pith_count_sidecar(c);
  if (!judge) return;
  if (c->shadow && hit) c->side->counters.shadow_hits++;
  if (victims > 0) pith_judge(c, ns);
}

// What a new evictor should know of a node: when it came, how often it was asked for, and when last.
static void pith_recall(pith_cache_t *c, const pith_node_t *node) {
  const pith_record_t *record = pith_side_record(c->side, node->key, 0);
  pith_evict_request request;
  ngx_uint_t hits = node->uses > 0 ? node->uses - 1 : 0;
  double last = (double) (node->expire - c->cache->inactive);
  ngx_memcpy(request.key, node->key, PITH_KEY_BYTES);
  request.size = pith_size(c, node->blocks);
  request.time = last;
  request.ttl = INFINITY;
  request.rtt = NAN;
  request.fetched = 1;
  if (record != NULL) {
    last = record->last;
    hits = record->hits;
    request.time = record->created;
    request.rtt = record->rtt;
    if (record->valid_until > 0) request.ttl = (float) ngx_max(0, record->valid_until - record->created);
  }
  pith_ask(c, &request, 0);
  request.fetched = 0;
  request.time = last;
  for (hits = ngx_min(hits, PITH_MOST_REPLAYED); hits > 0; hits--) {
    if (!pith_evictor_holds(c->evictor, node->key)) break;
    pith_ask(c, &request, 0);
  }
}

typedef struct {
  pith_node_t node;
  double last;
} pith_found_t;

static int pith_older(const void *a, const void *b) {
  double x = ((const pith_found_t *) a)->last, y = ((const pith_found_t *) b)->last;
  return x < y ? -1 : x > y;
}

// Nodes with files that the evictor does not hold, in the order in which they were last asked for.
static ngx_int_t pith_take_over(pith_cache_t *c) {
  pith_node_t nodes[PITH_WALK];
  pith_found_t *found;
  const pith_record_t *record;
  u_char after[PITH_KEY_BYTES];
  ngx_uint_t i, n, count = 0, most = c->cache->sh->count + PITH_WALK;
  found = ngx_alloc(most * sizeof(pith_found_t), ngx_cycle->log);
  if (found == NULL) return NGX_ERROR;
  n = pith_zone_walk(c->cache, NULL, nodes, PITH_WALK);
  while (n > 0) {
    for (i = 0; i < n && count < most; i++) {
      if (nodes[i].blocks == 0 || pith_evictor_holds(c->evictor, nodes[i].key)) continue;
      record = pith_side_record(c->side, nodes[i].key, 0);
      found[count].node = nodes[i];
      found[count++].last = record != NULL ? record->last : (double) (nodes[i].expire - c->cache->inactive);
    }
    ngx_memcpy(after, nodes[n - 1].key, PITH_KEY_BYTES);
    n = pith_zone_walk(c->cache, after, nodes, PITH_WALK);
  }
  ngx_qsort(found, count, sizeof(pith_found_t), pith_older);
  for (i = 0; i < count && !ngx_quit && !ngx_terminate; i++) pith_recall(c, &found[i].node);
  ngx_free(found);
  return NGX_OK;
}

static ngx_int_t pith_start(pith_cache_t *c) {
  ngx_uint_t objects = 2 * pith_zone_capacity(c->cache);
  uint64_t capacity = pith_is_unlimited(c) ? pith_most_nodes(c) : (uint64_t) c->cache->max_size * c->cache->bsize;
  char error[256] = "";
  c->evictor = pith_evictor_open((const char *) c->policy.data, capacity, (uint32_t) ngx_min(objects, UINT32_MAX / 2),
                                 error, sizeof(error));
  if (c->evictor == NULL) {
    ngx_log_error(NGX_LOG_ERR, ngx_cycle->log, 0, "pith_evict: zone \"%V\": %s", &c->zone, error);
    return NGX_ERROR;
  }
  ngx_memzero(&c->told, sizeof(c->told));
  return c->shadow ? NGX_OK : pith_take_over(c);
}

static int pith_was_hit(uint32_t status) {
  return status == NGX_HTTP_CACHE_HIT || status == NGX_HTTP_CACHE_STALE || status == NGX_HTTP_CACHE_UPDATING ||
         status == NGX_HTTP_CACHE_REVALIDATED;
}

static pith_record_t *pith_remember(pith_cache_t *c, const pith_event_t *event, int hit) {
  pith_counters_t *counters = &c->side->counters;
  pith_record_t *record = pith_side_record(c->side, event->key, 1);
  counters->requests++;
  counters->bytes += event->bytes;
  if (hit) {
    counters->hits++;
    counters->hit_bytes += event->bytes;
    record->hits++;
  }
  if (!hit || record->created == 0) {
    record->created = event->time;
    record->hits = 0;
    record->rtt = event->rtt;
    record->valid_until = isfinite(event->ttl) ? event->time + (double) event->ttl : 0;
  }
  record->last = event->time;
  return record;
}

// Up to PITH_BATCH events. 0: there was none.
static ngx_uint_t pith_serve(pith_cache_t *c) {
  pith_event_t events[PITH_BATCH];
  off_t blocks[PITH_BATCH];
  pith_evict_request request;
  const pith_record_t *record;
  ngx_uint_t i, count = 0;
  int hit;
  while (count < PITH_BATCH && pith_side_read(c->side, &events[count], &c->stuck_since)) count++;
  if (count == 0) return 0;
  pith_histogram_add(&c->side->counters.locked, pith_zone_sizes(c->cache, events, count, blocks));
  for (i = 0; i < count; i++) {
    hit = pith_was_hit(events[i].status);
    c->time = ngx_max(c->time, events[i].time);
    record = pith_remember(c, &events[i], hit);
    if (c->evictor == NULL) continue;
    if (blocks[i] < 0) {
      if (!c->shadow) pith_evictor_erase(c->evictor, events[i].key);
      continue;
    }
    ngx_memcpy(request.key, events[i].key, PITH_KEY_BYTES);
    request.size = pith_size(c, blocks[i]);
    request.time = c->time;
    request.ttl = record->valid_until > 0 ? (float) ngx_max(0, record->valid_until - c->time) : INFINITY;
    request.rtt = record->rtt;
    // In a shadow an object may be there that was fetched for the cache.
    request.fetched = c->shadow ? events[i].status == NGX_HTTP_CACHE_EXPIRED : !hit;
    pith_ask(c, &request, 1);
  }
  return count;
}

// What nobody has asked for in a long time goes.
static void pith_expire(pith_cache_t *c) {
  u_char key[PITH_KEY_BYTES];
  off_t blocks;
  while (!pith_is_full(c) && pith_zone_oldest(c->cache, ngx_time(), key) == NGX_OK) {
    if (c->evictor != NULL && !c->shadow) pith_evictor_erase(c->evictor, key);
    if (pith_zone_delete(c->cache, key, &blocks) != NGX_OK) break;
    c->side->counters.expired++;
    c->files++;
  }
}

// A cache that stays too large holds what the evictor does not know: files of the loader, events that were lost.
static void pith_repair(pith_cache_t *c) {
  ngx_http_file_cache_t *cache = c->cache;
  if (cache->sh->size <= cache->max_size) {
    c->over_since = 0;
    c->repairs = 0;
    return;
  }
  if (c->over_since == 0) c->over_since = ngx_current_msec;
  if (ngx_current_msec - c->over_since < PITH_OVER_MS) return;
  c->over_since = ngx_current_msec;
  if (c->repairs++ == 0) {
    c->side->counters.fallbacks[PITH_DRIFT]++;
    (void) pith_take_over(c);
    return;
  }
  while (cache->sh->size > cache->max_size && !pith_is_full(c) && pith_delete_oldest(c, PITH_DRIFT)) {
  }
}

// Limits of which no evictor knows.
static void pith_keep_limits(pith_cache_t *c) {
  ngx_http_file_cache_t *cache = c->cache;
  while (cache->sh->count >= pith_most_nodes(c) && !pith_is_full(c) && pith_delete_oldest(c, PITH_KEYS)) {
  }
  while (cache->min_free > 0 && ngx_fs_available(cache->path->name.data) < cache->min_free && !pith_is_full(c) &&
         pith_delete_oldest(c, PITH_SPACE)) {
  }
}

// NGINX's own manager, of which the evictor is told nothing.
static ngx_msec_t pith_stock(pith_cache_t *c) {
  ngx_msec_t next = c->stock(c->cache);
  return ngx_min(next, PITH_STOCK_MS);
}

static ngx_msec_t pith_pass(pith_cache_t *c) {
  ngx_http_file_cache_t *cache = c->cache;
  uint64_t first = c->side->tail;
  if (c->evictor == NULL && pith_start(c) != NGX_OK) {
    pith_pause(c, PITH_ERROR_MS, PITH_ERROR);
    return pith_stock(c);
  }
  while (!pith_is_full(c) && pith_serve(c) > 0) ngx_time_update();
  if (c->evictor == NULL) return PITH_IDLE_MS;  // the breaker
  pith_retry(c);
  pith_expire(c);
  if (c->shadow) {
    while (cache->sh->size > cache->max_size && !pith_is_full(c) && pith_delete_oldest(c, PITH_DRIFT)) {
    }
  } else {
    pith_repair(c);
  }
  pith_keep_limits(c);
  if (pith_is_full(c)) return cache->manager_sleep;
  return c->side->tail != first ? PITH_BUSY_MS : PITH_IDLE_MS;
}

static pith_cache_t *pith_cache_of(void *data) {
  pith_main_conf_t *conf = ngx_http_cycle_get_module_main_conf(ngx_cycle, ngx_http_pith_evict_module);
  ngx_uint_t i;
  for (i = 0; i < conf->num_caches; i++) {
    if (conf->caches[i]->cache == data) return conf->caches[i];
  }
  return NULL;
}

// NGINX's loader is at it; one that was killed leaves its number there.
static int pith_is_loading(const ngx_http_file_cache_t *cache) {
  ngx_atomic_uint_t loader = cache->sh->loading;
  return loader != 0 && (kill((ngx_pid_t) loader, 0) == 0 || ngx_errno != NGX_ESRCH);
}

ngx_msec_t pith_manage(void *data) {
  pith_cache_t *c = pith_cache_of(data);
  if (c == NULL) return PITH_STOCK_MS;
  ngx_time_update();
  c->files = 0;
  c->pass_began = ngx_current_msec;
  if (!pith_side_own(c->side)) {
    // After a reload the last manager is still there for a moment.
    pith_evictor_close(c->evictor);
    c->evictor = NULL;
    return 100;
  }
  if (pith_is_loading(c->cache)) {
    if (!c->was_loading) c->side->counters.fallbacks[PITH_LOADER]++;
    c->was_loading = 1;
    return pith_stock(c);
  }
  if (c->was_loading) {
    // The evictor begins anew with what is there now.
    c->was_loading = 0;
    pith_evictor_close(c->evictor);
    c->evictor = NULL;
  }
  if (c->paused_for != 0) {
    if (ngx_current_msec - c->paused_since < c->paused_for) {
      while (!pith_is_full(c) && pith_serve(c) > 0) ngx_time_update();
      return ngx_min(pith_stock(c), PITH_IDLE_MS);
    }
    c->paused_for = 0;
  }
  return pith_pass(c);
}
