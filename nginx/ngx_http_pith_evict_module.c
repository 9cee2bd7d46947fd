// NGINX's caches with pith's evictors: directives, shared memory, and what workers do. See docs/nginx.md.
//
// NGINX evicts in its cache manager process, through a pointer that belongs to each cache's path. It is set to
// pith_manage (pith_manager.c) when a configuration has been read; a reload reads another one.
#include "pith_module.h"

#include <math.h>

#define PITH_SIDE_NAME "pith_evict"
#define PITH_SIDE_BYTES (16 * 1024 * 1024)
#define PITH_DEADLINE_US 500

// At the start of the shared memory: which cache has which part.
typedef struct {
  ngx_uint_t num_areas;
  struct {
    u_char zone[64];
    pith_side_t *side;
  } areas[PITH_MOST_CACHES];
} pith_areas_t;

static ngx_int_t pith_init_side(ngx_shm_zone_t *zone, void *old) {
  pith_main_conf_t *conf = zone->data;
  ngx_slab_pool_t *pool = (ngx_slab_pool_t *) zone->shm.addr;
  size_t bytes = zone->shm.size / 8 * 7 / ngx_max(1, conf->num_caches);
  pith_areas_t *areas = pool->data;
  ngx_uint_t i, k;
  void *memory;
  (void) old;
  if (areas == NULL) {
    areas = ngx_slab_calloc(pool, sizeof(pith_areas_t));
    if (areas == NULL) return NGX_ERROR;
    pool->data = areas;
  }
  for (i = 0; i < conf->num_caches; i++) {
    pith_cache_t *c = conf->caches[i];
    for (k = 0; k < areas->num_areas; k++) {
      if (ngx_strcmp(areas->areas[k].zone, c->zone.data) == 0) c->side = areas->areas[k].side;
    }
    if (c->side != NULL) continue;
    memory = areas->num_areas < PITH_MOST_CACHES ? ngx_slab_calloc(pool, bytes) : NULL;
    c->side = memory != NULL ? pith_side_create(memory, bytes) : NULL;
    if (c->side == NULL) {
      ngx_log_error(NGX_LOG_EMERG, zone->shm.log, 0,
                    "pith_evict_zone \"%V\" is too small for the cache \"%V\": give it another name and more memory",
                    &zone->shm.name, &c->zone);
      return NGX_ERROR;
    }
    ngx_memcpy(areas->areas[areas->num_areas].zone, c->zone.data, c->zone.len + 1);
    areas->areas[areas->num_areas++].side = c->side;
  }
  return NGX_OK;
}

static ngx_int_t pith_log_handler(ngx_http_request_t *r) {
  pith_main_conf_t *conf = ngx_http_get_module_main_conf(r, ngx_http_pith_evict_module);
  const ngx_http_upstream_state_t *state;
  const ngx_time_t *now = ngx_timeofday();
  pith_event_t event;
  ngx_uint_t i;
  if (r->cache == NULL || r->upstream == NULL || r->upstream->cache_status == 0) return NGX_OK;
  for (i = 0; i < conf->num_caches; i++) {
    if (conf->caches[i]->cache == r->cache->file_cache) break;
  }
  if (i == conf->num_caches || conf->caches[i]->side == NULL) return NGX_OK;
  ngx_memzero(&event, sizeof(event));
  ngx_memcpy(event.key, r->cache->key, PITH_KEY_BYTES);
  event.time = (double) now->sec + (double) now->msec * 1e-3;
  event.status = (uint32_t) r->upstream->cache_status;
  event.bytes = r->connection->sent > 0 ? (uint64_t) r->connection->sent : 0;
  event.ttl = r->cache->valid_sec > 0 ? (float) (r->cache->valid_sec - now->sec) : INFINITY;
  event.rtt = NAN;
  if (event.status != NGX_HTTP_CACHE_HIT && r->upstream_states != NULL && r->upstream_states->nelts > 0) {
    state = (const ngx_http_upstream_state_t *) r->upstream_states->elts + (r->upstream_states->nelts - 1);
    if (state->response_time != (ngx_msec_t) -1) event.rtt = (float) state->response_time * 1000;
  }
  pith_side_write(conf->caches[i]->side, &event);
  return NGX_OK;
}

// The cache of a keys zone, and the path whose manager is to be replaced.
static ngx_path_t *pith_find_path(ngx_conf_t *cf, const ngx_str_t *zone) {
  ngx_path_t **paths = cf->cycle->paths.elts;
  ngx_http_file_cache_t *cache;
  ngx_uint_t i;
  for (i = 0; i < cf->cycle->paths.nelts; i++) {
    if (paths[i]->manager == NULL || paths[i]->data == NULL) continue;
    cache = paths[i]->data;
    if (cache->path != paths[i] || cache->shm_zone == NULL) continue;
    if (cache->shm_zone->shm.name.len == zone->len &&
        ngx_strncmp(cache->shm_zone->shm.name.data, zone->data, zone->len) == 0) {
      return paths[i];
    }
  }
  return NULL;
}

static ngx_int_t pith_check_policy(ngx_conf_t *cf, const pith_cache_t *c) {
  char error[256] = "";
  pith_evictor *evictor = pith_evictor_open((const char *) c->policy.data, 1 << 20, 16, error, sizeof(error));
  if (evictor == NULL) {
    ngx_conf_log_error(NGX_LOG_EMERG, cf, 0, "pith_evict zone=%V: %s", &c->zone, error);
    return NGX_ERROR;
  }
  pith_evictor_close(evictor);
  return NGX_OK;
}

static ngx_int_t pith_postconfiguration(ngx_conf_t *cf) {
  pith_main_conf_t *conf = ngx_http_conf_get_module_main_conf(cf, ngx_http_pith_evict_module);
  ngx_http_core_main_conf_t *core = ngx_http_conf_get_module_main_conf(cf, ngx_http_core_module);
  ngx_http_handler_pt *handler;
  ngx_shm_zone_t *side;
  ngx_uint_t i;
  if (conf->num_caches == 0) return NGX_OK;
  for (i = 0; i < conf->num_caches; i++) {
    pith_cache_t *c = conf->caches[i];
    ngx_path_t *path = pith_find_path(cf, &c->zone);
    if (path == NULL) {
      ngx_conf_log_error(NGX_LOG_EMERG, cf, 0, "pith_evict: there is no cache with keys_zone=%V", &c->zone);
      return NGX_ERROR;
    }
    if (pith_check_policy(cf, c) != NGX_OK) return NGX_ERROR;
    c->cache = path->data;
    c->stock = path->manager;
    path->manager = pith_manage;
  }
  side = ngx_shared_memory_add(cf, &conf->side_name, conf->side_bytes, &ngx_http_pith_evict_module);
  if (side == NULL) return NGX_ERROR;
  side->init = pith_init_side;
  side->data = conf;
  handler = ngx_array_push(&core->phases[NGX_HTTP_LOG_PHASE].handlers);
  if (handler == NULL) return NGX_ERROR;
  *handler = pith_log_handler;
  return NGX_OK;
}

static void *pith_create_main_conf(ngx_conf_t *cf) {
  pith_main_conf_t *conf = ngx_pcalloc(cf->pool, sizeof(pith_main_conf_t));
  if (conf == NULL) return NULL;
  ngx_str_set(&conf->side_name, PITH_SIDE_NAME);
  conf->side_bytes = PITH_SIDE_BYTES;
  return conf;
}

// Value of "name=value"; 0: the word is another one.
static int pith_word(const ngx_str_t *word, const char *name, ngx_str_t *value) {
  size_t length = ngx_strlen(name);
  if (word->len <= length || ngx_strncmp(word->data, name, length) != 0) return 0;
  value->data = word->data + length;
  value->len = word->len - length;
  return 1;
}

static char *pith_refuse(ngx_conf_t *cf, const ngx_str_t *word) {
  ngx_conf_log_error(NGX_LOG_EMERG, cf, 0, "invalid parameter \"%V\"", word);
  return NGX_CONF_ERROR;
}

// pith_evict_zone name=NAME:SIZE
static char *pith_set_zone(ngx_conf_t *cf, ngx_command_t *command, void *of) {
  pith_main_conf_t *conf = of;
  ngx_str_t *words = cf->args->elts, value;
  u_char *colon;
  ssize_t bytes;
  (void) command;
  if (!pith_word(&words[1], "name=", &value)) return pith_refuse(cf, &words[1]);
  colon = ngx_strlchr(value.data, value.data + value.len, ':');
  if (colon == NULL || colon == value.data) return pith_refuse(cf, &words[1]);
  conf->side_name.data = value.data;
  conf->side_name.len = (size_t) (colon - value.data);
  value.len -= conf->side_name.len + 1;
  value.data = colon + 1;
  bytes = ngx_parse_size(&value);
  if (bytes < 1024 * 1024) {
    ngx_conf_log_error(NGX_LOG_EMERG, cf, 0, "\"%V\": pith_evict_zone needs at least 1m", &words[1]);
    return NGX_CONF_ERROR;
  }
  conf->side_bytes = (size_t) bytes;
  return NGX_CONF_OK;
}

// Words that belong to the evictor.
typedef struct {
  ngx_str_t k, model, sidecar;
} pith_words_t;

// The evictor's text: POLICY[:PARAMETERS], and what other words say.
static ngx_int_t pith_compose(ngx_conf_t *cf, pith_cache_t *c, pith_words_t *words) {
  size_t bytes;
  u_char *end, joint = ':';
  if (words->model.len > 0 && ngx_conf_full_name(cf->cycle, &words->model, 1) != NGX_OK) return NGX_ERROR;
  if (words->sidecar.len > 0 && ngx_conf_full_name(cf->cycle, &words->sidecar, 1) != NGX_OK) return NGX_ERROR;
  bytes = c->policy.len + words->k.len + words->model.len + words->sidecar.len + NGX_INT_T_LEN +
          sizeof(":k=,model=,sidecar=,deadline=");
  end = ngx_pnalloc(cf->pool, bytes + 1);
  if (end == NULL) return NGX_ERROR;
  if (ngx_strlchr(c->policy.data, c->policy.data + c->policy.len, ':') != NULL) joint = ',';
  c->policy.data = ngx_cpymem(end, c->policy.data, c->policy.len) - c->policy.len;
  end += c->policy.len;
  if (words->k.len > 0) {
    end = ngx_sprintf(end, "%ck=%V", joint, &words->k);
    joint = ',';
  }
  if (words->model.len > 0) {
    end = ngx_sprintf(end, "%cmodel=%V", joint, &words->model);
    joint = ',';
  }
  if (words->sidecar.len > 0) {
    end = ngx_sprintf(end, "%csidecar=%V,deadline=%ui", joint, &words->sidecar, c->deadline_us);
    c->sidecar = 1;
  }
  *end = '\0';
  c->policy.len = (size_t) (end - c->policy.data);
  return NGX_OK;
}

static ngx_int_t pith_read_word(pith_cache_t *c, const ngx_str_t *word, pith_words_t *words) {
  ngx_str_t value;
  ngx_int_t number;
  if (pith_word(word, "zone=", &c->zone)) return c->zone.len < 64 ? NGX_OK : NGX_ERROR;
  if (pith_word(word, "policy=", &c->policy) || pith_word(word, "model=", &words->model)) return NGX_OK;
  if (pith_word(word, "sidecar=", &words->sidecar)) return NGX_OK;
  if (pith_word(word, "k=", &words->k)) {
    number = ngx_atoi(words->k.data, words->k.len);
    return number >= 2 && number <= 32 ? NGX_OK : NGX_ERROR;
  }
  if (pith_word(word, "deadline=", &value)) {
    number = ngx_atoi(value.data, value.len);
    c->deadline_us = (ngx_uint_t) number;
    return number >= 1 && number <= 1000000 ? NGX_OK : NGX_ERROR;
  }
  if (!pith_word(word, "shadow=", &value)) return NGX_ERROR;
  c->shadow = value.len == 2 && ngx_strncmp(value.data, "on", 2) == 0;
  return c->shadow || (value.len == 3 && ngx_strncmp(value.data, "off", 3) == 0) ? NGX_OK : NGX_ERROR;
}

// pith_evict zone=ZONE policy=POLICY [model=FILE] [k=N] [sidecar=SOCKET] [deadline=US] [shadow=on|off]
static char *pith_set_evict(ngx_conf_t *cf, ngx_command_t *command, void *of) {
  pith_main_conf_t *conf = of;
  ngx_str_t *words = cf->args->elts;
  pith_words_t of_evictor;
  pith_cache_t *c;
  ngx_uint_t i;
  (void) command;
  if (conf->num_caches == PITH_MOST_CACHES) return "is given too often";
  c = ngx_pcalloc(cf->pool, sizeof(pith_cache_t));
  if (c == NULL) return NGX_CONF_ERROR;
  c->deadline_us = PITH_DEADLINE_US;
  ngx_memzero(&of_evictor, sizeof(of_evictor));
  for (i = 1; i < cf->args->nelts; i++) {
    if (pith_read_word(c, &words[i], &of_evictor) != NGX_OK) return pith_refuse(cf, &words[i]);
  }
  if (c->zone.len == 0 || c->policy.len == 0) return "needs zone= and policy=";
  for (i = 0; i < conf->num_caches; i++) {
    if (ngx_strcmp(conf->caches[i]->zone.data, c->zone.data) == 0) return "names a zone that has one already";
  }
  if (pith_compose(cf, c, &of_evictor) != NGX_OK) return NGX_CONF_ERROR;
  conf->caches[conf->num_caches++] = c;
  return NGX_CONF_OK;
}

static char *pith_set_metrics(ngx_conf_t *cf, ngx_command_t *command, void *conf) {
  ngx_http_core_loc_conf_t *core = ngx_http_conf_get_module_loc_conf(cf, ngx_http_core_module);
  (void) command;
  (void) conf;
  core->handler = pith_metrics_handler;
  return NGX_CONF_OK;
}

static ngx_command_t pith_commands[] = {
    {ngx_string("pith_evict_zone"), NGX_HTTP_MAIN_CONF | NGX_CONF_TAKE1, pith_set_zone, NGX_HTTP_MAIN_CONF_OFFSET, 0,
     NULL},
    {ngx_string("pith_evict"), NGX_HTTP_MAIN_CONF | NGX_CONF_2MORE, pith_set_evict, NGX_HTTP_MAIN_CONF_OFFSET, 0, NULL},
    {ngx_string("pith_evict_metrics"), NGX_HTTP_LOC_CONF | NGX_CONF_NOARGS, pith_set_metrics, NGX_HTTP_LOC_CONF_OFFSET,
     0, NULL},
    ngx_null_command};

static ngx_http_module_t pith_context = {
    NULL, pith_postconfiguration, pith_create_main_conf, NULL, NULL, NULL, NULL, NULL};

ngx_module_t ngx_http_pith_evict_module = {NGX_MODULE_V1,
                                           &pith_context,
                                           pith_commands,
                                           NGX_HTTP_MODULE,
                                           NULL,
                                           NULL,
                                           NULL,
                                           NULL,
                                           NULL,
                                           NULL,
                                           NULL,
                                           NGX_MODULE_V1_PADDING};
