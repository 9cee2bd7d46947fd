// What the module's files know of each other.
#ifndef PITH_NGINX_MODULE_H_
#define PITH_NGINX_MODULE_H_

#include <ngx_config.h>
#include <ngx_core.h>
#include <ngx_http.h>

#include "evict/pith_evict.h"
#include "pith_side.h"

#define PITH_MOST_CACHES 16
#define PITH_MOST_BUSY 256

// One `pith_evict` directive and, in the cache manager, what follows from it.
typedef struct {
  ngx_str_t zone;     // of keys
  ngx_str_t policy;   // as the evictors take it, ends with a zero
  ngx_uint_t deadline_us;
  ngx_flag_t shadow;
  ngx_flag_t sidecar;  // another process decides; its time limit is the evictor's
  ngx_http_file_cache_t *cache;
  ngx_path_manager_pt stock;  // NGINX's own manager
  pith_side_t *side;

  // Of the cache manager.
  pith_evictor *evictor;  // null: none yet, or none now
  pith_evict_sidecar told;  // of its sidecar, as far as it is counted
  ngx_msec_t paused_since, paused_for;  // 0: not paused
  ngx_msec_t over_since;  // the cache has been too large since then; 0: it is not
  ngx_uint_t repairs;     // of that, so far
  ngx_msec_t stuck_since;
  ngx_uint_t recent, late;  // decisions, and those of them that came late
  ngx_uint_t was_loading;
  double time;            // of the last event
  u_char busy[PITH_MOST_BUSY][PITH_KEY_BYTES];  // victims that were in use
  ngx_uint_t num_busy;
  ngx_uint_t files;       // deleted in this pass
  ngx_msec_t pass_began;
} pith_cache_t;

typedef struct {
  pith_cache_t *caches[PITH_MOST_CACHES];
  ngx_uint_t num_caches;
  ngx_str_t side_name;
  size_t side_bytes;
} pith_main_conf_t;

extern ngx_module_t ngx_http_pith_evict_module;

// pith_manager.c: stands in the place of NGINX's manager.
ngx_msec_t pith_manage(void *data);

// pith_metrics.c
ngx_int_t pith_metrics_handler(ngx_http_request_t *r);

// pith_zone.c: the cache's keys zone. All but pith_zone_find take its mutex, for little.

typedef struct {
  u_char key[PITH_KEY_BYTES];
  off_t blocks;   // in the file system; 0: no file
  time_t expire;  // when it goes for not being asked for
  ngx_uint_t uses;
} pith_node_t;

// Nodes that it can hold.
ngx_uint_t pith_zone_capacity(const ngx_http_file_cache_t *cache);
// By its key, with the mutex held; null: none.
ngx_http_file_cache_node_t *pith_zone_find(ngx_http_file_cache_t *cache, const u_char *key);
// Of each key: its file's blocks, or -1 where there is none. Returns how long the mutex was held, ns.
uint64_t pith_zone_sizes(ngx_http_file_cache_t *cache, const pith_event_t *events, ngx_uint_t count, off_t *blocks);
// Up to `most` nodes behind the key `after` (null: the first), in the order of keys.
ngx_uint_t pith_zone_walk(ngx_http_file_cache_t *cache, const u_char *after, pith_node_t *nodes, ngx_uint_t most);
// Removes the object and its file as NGINX does. NGX_OK; NGX_DECLINED: it is not there; NGX_BUSY: it is in use.
// blocks: what that frees.
ngx_int_t pith_zone_delete(ngx_http_file_cache_t *cache, const u_char *key, off_t *blocks);
// The least recently used object that nobody uses. NGX_DECLINED: none. expire: 0, or the time until which it must have
// expired.
ngx_int_t pith_zone_oldest(ngx_http_file_cache_t *cache, time_t expire, u_char *key);

uint64_t pith_now_ns(void);

#endif  // PITH_NGINX_MODULE_H_
