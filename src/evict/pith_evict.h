/* Evictors for C programs, such as servers that keep objects in a cache of their own: which ones shall go.
 *
 * Keys have 16 bytes. One thread at a time uses an evictor. Nothing throws, and a request allocates nothing.
 * See docs/nginx.md for a program that uses it. */
#ifndef PITH_EVICT_PITH_EVICT_H_
#define PITH_EVICT_PITH_EVICT_H_

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define PITH_EVICT_KEY_BYTES 16

typedef struct pith_evictor pith_evictor;

typedef struct {
  unsigned char key[PITH_EVICT_KEY_BYTES];
  uint64_t size; /* bytes */
  double time;   /* s; never goes back */
  float ttl;     /* s that it may be served from now on; infinite: unknown */
  float rtt;     /* us that its origin took; NaN: unknown */
  int fetched;   /* it came from the origin, whether or not an older one was stored */
} pith_evict_request;

/* policy: a name of `pith sim --list`, with parameters behind a colon ("coldrl:k=8,model=FILE"); capacity in bytes;
 * most_objects: keys that are known at a time, stored or not, for which memory is taken now. Null: `error` says why in
 * one sentence. */
pith_evictor *pith_evictor_open(const char *policy, uint64_t capacity, uint32_t most_objects, char *error,
                                size_t error_bytes);
void pith_evictor_close(pith_evictor *evictor); /* null: nothing */

/* 1: it was stored, 0: it was not. Before the next request pith_evictor_victim gives what must go: the object itself
 * where it is not to be stored. */
int pith_evictor_ask(pith_evictor *evictor, const pith_evict_request *request);
/* 1: another victim; 0: none. */
int pith_evictor_victim(pith_evictor *evictor, unsigned char key[PITH_EVICT_KEY_BYTES]);

int pith_evictor_holds(const pith_evictor *evictor, const unsigned char key[PITH_EVICT_KEY_BYTES]);
/* Something else has removed it. */
void pith_evictor_erase(pith_evictor *evictor, const unsigned char key[PITH_EVICT_KEY_BYTES]);

uint64_t pith_evictor_bytes(const pith_evictor* evictor); /* that it stores */

/* What became of the questions to another process ("coldrl:sidecar=SOCKET,deadline=US"), since the evictor was opened;
 * all 0 where it asks none. Each that was not answered was decided by age. */
typedef struct {
  uint64_t answered;
  uint64_t late;   /* no answer within the time */
  uint64_t wrong;  /* an answer that can't be one */
  uint64_t absent; /* nobody was there to ask */
  uint64_t rested; /* not asked for a second, since five in a hundred had no answer */
} pith_evict_sidecar;
void pith_evictor_sidecar(const pith_evictor *evictor, pith_evict_sidecar *counters);

#ifdef __cplusplus
}
#endif

#endif /* PITH_EVICT_PITH_EVICT_H_ */
