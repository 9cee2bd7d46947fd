#include "pith_module.h"

#include <time.h>

#define PITH_NODE_BYTES 128  // the slab class of ngx_http_file_cache_node_t
#define PITH_MOST_TRIES 20

uint64_t pith_now_ns(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (uint64_t) now.tv_sec * 1000000000u + (uint64_t) now.tv_nsec;
}

ngx_uint_t pith_zone_capacity(const ngx_http_file_cache_t *cache) {
  return cache->shm_zone->shm.size / PITH_NODE_BYTES;
}

// A node's key as bytes: its first half is the number by which the tree is ordered.
static void pith_node_key(const ngx_http_file_cache_node_t *node, u_char *key) {
  ngx_memcpy(key, &node->node.key, sizeof(ngx_rbtree_key_t));
  ngx_memcpy(key + sizeof(ngx_rbtree_key_t), node->key, PITH_KEY_BYTES - sizeof(ngx_rbtree_key_t));
}

static int pith_compare(const u_char *key, const ngx_rbtree_node_t *node) {
  const ngx_http_file_cache_node_t *of = (const ngx_http_file_cache_node_t *) node;
  ngx_rbtree_key_t first;
  ngx_memcpy(&first, key, sizeof(first));
  if (first != node->key) return first < node->key ? -1 : 1;
  return ngx_memcmp(key + sizeof(first), of->key, PITH_KEY_BYTES - sizeof(first));
}

ngx_http_file_cache_node_t *pith_zone_find(ngx_http_file_cache_t *cache, const u_char *key) {
  ngx_rbtree_node_t *node = cache->sh->rbtree.root;
  while (node != cache->sh->rbtree.sentinel) {
    int order = pith_compare(key, node);
    if (order == 0) return (ngx_http_file_cache_node_t *) node;
    node = order < 0 ? node->left : node->right;
  }
  return NULL;
}

uint64_t pith_zone_sizes(ngx_http_file_cache_t *cache, const pith_event_t *events, ngx_uint_t count, off_t *blocks) {
  ngx_http_file_cache_node_t *node;
  uint64_t began;
  ngx_uint_t i;
  ngx_shmtx_lock(&cache->shpool->mutex);
  began = pith_now_ns();
  for (i = 0; i < count; i++) {
    node = pith_zone_find(cache, events[i].key);
    blocks[i] = node != NULL && node->exists && !node->deleting ? node->fs_size : -1;
  }
  ngx_shmtx_unlock(&cache->shpool->mutex);
  return pith_now_ns() - began;
}

ngx_uint_t pith_zone_walk(ngx_http_file_cache_t *cache, const u_char *after, pith_node_t *nodes, ngx_uint_t most) {
  ngx_rbtree_node_t *node, *next, *sentinel;
  ngx_http_file_cache_node_t *of;
  ngx_uint_t count = 0;
  ngx_shmtx_lock(&cache->shpool->mutex);
  sentinel = cache->sh->rbtree.sentinel;
  for (; count < most; count++) {
    next = NULL;
    for (node = cache->sh->rbtree.root; node != sentinel;) {
      if (after == NULL || pith_compare(after, node) < 0) {
        next = node;
        node = node->left;
      } else {
        node = node->right;
      }
    }
    if (next == NULL) break;
    of = (ngx_http_file_cache_node_t *) next;
    pith_node_key(of, nodes[count].key);
    nodes[count].blocks = of->exists ? of->fs_size : 0;
    nodes[count].expire = of->expire;
    nodes[count].uses = of->uses;
    after = nodes[count].key;
  }
  ngx_shmtx_unlock(&cache->shpool->mutex);
  return count;
}

// The file's name. name has room for NGX_MAX_PATH bytes.
static ngx_int_t pith_file_name(const ngx_path_t *path, const u_char *key, u_char *name) {
  size_t length = path->name.len + 1 + path->len + 2 * PITH_KEY_BYTES;
  u_char *end;
  if (length + 1 > NGX_MAX_PATH) return NGX_ERROR;
  ngx_memcpy(name, path->name.data, path->name.len);
  end = ngx_hex_dump(name + path->name.len + 1 + path->len, (u_char *) key, PITH_KEY_BYTES);
  *end = '\0';
  ngx_create_hashed_filename((ngx_path_t *) path, name, length);
  return NGX_OK;
}

ngx_int_t pith_zone_delete(ngx_http_file_cache_t *cache, const u_char *key, off_t *blocks) {
  ngx_http_file_cache_node_t *node;
  ngx_file_info_t info;
  u_char name[NGX_MAX_PATH];
  *blocks = 0;
  if (pith_file_name(cache->path, key, name) != NGX_OK) return NGX_DECLINED;
  ngx_shmtx_lock(&cache->shpool->mutex);
  node = pith_zone_find(cache, key);
  if (node == NULL || node->count > 0 || node->deleting) {
    ngx_shmtx_unlock(&cache->shpool->mutex);
    return node == NULL ? NGX_DECLINED : NGX_BUSY;
  }
  if (node->exists) {
    *blocks = node->fs_size;
    cache->sh->size -= node->fs_size;
    // Who finds the node meanwhile fetches the object anew, and then adds all of its size.
    node->fs_size = 0;
    node->count++;
    node->deleting = 1;
    ngx_shmtx_unlock(&cache->shpool->mutex);
    if (ngx_delete_file(name) == NGX_FILE_ERROR && ngx_errno != NGX_ENOENT) {
      ngx_log_error(NGX_LOG_CRIT, ngx_cycle->log, ngx_errno, ngx_delete_file_n " \"%s\" failed", name);
    }
    ngx_shmtx_lock(&cache->shpool->mutex);
    node->count--;
    node->deleting = 0;
    // A worker has stored it anew meanwhile, before its file was removed here or after.
    if (node->count == 0 && node->fs_size > 0) {
      if (ngx_file_info(name, &info) != NGX_FILE_ERROR) {
        ngx_shmtx_unlock(&cache->shpool->mutex);
        return NGX_OK;
      }
      cache->sh->size -= node->fs_size;
    }
  }
  if (node->count == 0) {
    ngx_queue_remove(&node->queue);
    ngx_rbtree_delete(&cache->sh->rbtree, &node->node);
    ngx_slab_free_locked(cache->shpool, node);
    cache->sh->count--;
  }
  ngx_shmtx_unlock(&cache->shpool->mutex);
  return NGX_OK;
}

ngx_int_t pith_zone_oldest(ngx_http_file_cache_t *cache, time_t expire, u_char *key) {
  ngx_http_file_cache_node_t *node;
  ngx_queue_t *at, *towards_head;
  ngx_uint_t tries = 0;
  ngx_int_t found = NGX_DECLINED;
  ngx_shmtx_lock(&cache->shpool->mutex);
  for (at = ngx_queue_last(&cache->sh->queue); at != ngx_queue_sentinel(&cache->sh->queue); at = towards_head) {
    towards_head = ngx_queue_prev(at);
    node = ngx_queue_data(at, ngx_http_file_cache_node_t, queue);
    if (expire != 0 && node->expire > expire) break;
    if (node->count == 0) {
      pith_node_key(node, key);
      found = NGX_OK;
      break;
    }
    if (expire != 0 && !node->deleting) {
      // Left by a worker that was killed, or in use for very long: it gets another time, as with NGINX.
      ngx_queue_remove(at);
      node->expire = ngx_time() + cache->inactive;
      ngx_queue_insert_head(&cache->sh->queue, at);
    }
    if (++tries == PITH_MOST_TRIES) break;
  }
  ngx_shmtx_unlock(&cache->shpool->mutex);
  return found;
}
