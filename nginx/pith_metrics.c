#include "pith_module.h"

#include <stdarg.h>

#define PITH_TEXT_BYTES 12288  // of one cache

typedef struct {
  u_char *at, *end;
} pith_text_t;

static void pith_say(pith_text_t *text, const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  text->at = ngx_vslprintf(text->at, text->end, format, arguments);
  va_end(arguments);
}

static void pith_say_histogram(pith_text_t *text, const ngx_str_t *zone, const char *name,
                               const pith_histogram_t *histogram) {
  uint64_t sum = 0;
  ngx_uint_t i;
  for (i = 0; i < PITH_BOUNDS; i++) {
    sum += histogram->buckets[i];
    pith_say(text, "pith_evict_%s_seconds_bucket{zone=\"%V\",le=\"%.6f\"} %uL\n", name, zone,
             (double) pith_bounds_ns[i] * 1e-9, sum);
  }
  pith_say(text, "pith_evict_%s_seconds_bucket{zone=\"%V\",le=\"+Inf\"} %uL\n", name, zone, histogram->count);
  pith_say(text, "pith_evict_%s_seconds_sum{zone=\"%V\"} %.9f\n", name, zone, (double) histogram->sum_ns * 1e-9);
  pith_say(text, "pith_evict_%s_seconds_count{zone=\"%V\"} %uL\n", name, zone, histogram->count);
}

static void pith_say_cache(pith_text_t *text, const pith_cache_t *c) {
  const pith_counters_t *n = &c->side->counters;
  const struct {
    const char *name;
    uint64_t value;
  } rows[] = {
      {"requests_total", n->requests},   {"hits_total", n->hits},
      {"bytes_total", n->bytes},         {"hit_bytes_total", n->hit_bytes},
      {"decisions_total", n->decisions}, {"victims_total", n->victims},
      {"victim_bytes_total", n->victim_bytes}, {"busy_total", n->busy},
      {"expired_total", n->expired},     {"lost_requests_total", n->lost},
      {"shadow_hits_total", n->shadow_hits}, {"shadow_evictions_total", n->shadow_evictions},
      {"shadow_agreed_total", n->shadow_agreed}, {"sidecar_answers_total", n->sidecar_answers},
      {"evictor_bytes", n->model_bytes},
  };
  ngx_http_file_cache_t *cache = c->cache;
  off_t size;
  ngx_uint_t i, nodes;
  for (i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
    pith_say(text, "pith_evict_%s{zone=\"%V\"} %uL\n", rows[i].name, &c->zone, rows[i].value);
  }
  for (i = 0; i < PITH_CAUSES; i++) {
    pith_say(text, "pith_evict_fallbacks_total{zone=\"%V\",cause=\"%s\"} %uL\n", &c->zone, pith_causes[i],
             n->fallbacks[i]);
  }
  pith_say_histogram(text, &c->zone, "decision", &n->decide);
  pith_say_histogram(text, &c->zone, "lock", &n->locked);
  pith_say_histogram(text, &c->zone, "removal", &n->removed);
  ngx_shmtx_lock(&cache->shpool->mutex);
  size = cache->sh->size;
  nodes = cache->sh->count;
  ngx_shmtx_unlock(&cache->shpool->mutex);
  pith_say(text, "pith_evict_cache_bytes{zone=\"%V\"} %O\n", &c->zone, size * (off_t) cache->bsize);
  pith_say(text, "pith_evict_cache_nodes{zone=\"%V\"} %ui\n", &c->zone, nodes);
  pith_say(text, "pith_evict_cache_capacity_nodes{zone=\"%V\"} %ui\n", &c->zone, pith_zone_capacity(cache));
  pith_say(text, "pith_evict_policy_info{zone=\"%V\",shadow=\"%s\"} 1\n", &c->zone, c->shadow ? "on" : "off");
}

ngx_int_t pith_metrics_handler(ngx_http_request_t *r) {
  pith_main_conf_t *conf = ngx_http_get_module_main_conf(r, ngx_http_pith_evict_module);
  pith_text_t text;
  ngx_buf_t *buffer;
  ngx_chain_t out;
  ngx_uint_t i;
  ngx_int_t rc;
  if (!(r->method & (NGX_HTTP_GET | NGX_HTTP_HEAD))) return NGX_HTTP_NOT_ALLOWED;
  rc = ngx_http_discard_request_body(r);
  if (rc != NGX_OK) return rc;
  buffer = ngx_create_temp_buf(r->pool, ngx_max(1, conf->num_caches) * PITH_TEXT_BYTES);
  if (buffer == NULL) return NGX_HTTP_INTERNAL_SERVER_ERROR;
  text.at = buffer->last;
  text.end = buffer->end;
  for (i = 0; i < conf->num_caches; i++) pith_say_cache(&text, conf->caches[i]);
  buffer->last = text.at;
  buffer->last_buf = (r == r->main) ? 1 : 0;
  buffer->last_in_chain = 1;
  ngx_str_set(&r->headers_out.content_type, "text/plain; version=0.0.4");
  r->headers_out.content_type_len = r->headers_out.content_type.len;
  r->headers_out.status = NGX_HTTP_OK;
  r->headers_out.content_length_n = buffer->last - buffer->pos;
  rc = ngx_http_send_header(r);
  if (rc == NGX_ERROR || rc > NGX_OK || r->header_only) return rc;
  out.buf = buffer;
  out.next = NULL;
  return ngx_http_output_filter(r, &out);
}
