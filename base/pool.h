/* base/pool.h: our own threads, so that the sanitizers see every hand-over.
 *
 * A pool is used by one caller at a time. The split of work into items is the caller's and never
 * depends on the number of threads: that is what makes results independent of it. */
#ifndef HD_BASE_POOL_H
#define HD_BASE_POOL_H

#include <stdint.h>

#include "base/status.h"

HD_BEGIN_DECLS

typedef struct hd_pool hd_pool;

/* The number of threads this process may use: the smaller of its affinity mask and its cgroup CPU
 * quota (rounded up), at least 1. */
int hd_pool_default_threads(void);

/* threads >= 1, the caller counted: a pool of 1 starts none. The caller owns *out.
 * hd_pool_free(NULL) does nothing. */
HD_CHECKED hd_status hd_pool_create(hd_pool **out, int threads);
void hd_pool_free(hd_pool *pool);
int hd_pool_threads(const hd_pool *pool); // 1 for NULL

/* One item of work. `thread` is 0 .. threads - 1 and selects per-thread scratch; results must not
 * depend on it. */
typedef hd_status (*hd_work)(void *arg, int64_t item, int thread);

/* Runs work(arg, i, thread) once for every i in [0, count), items handed out in ascending order.
 * After a failure no new item starts; the failure with the lowest item number is returned, its
 * message brought to the calling thread. A NULL pool runs everything on the caller. */
HD_CHECKED hd_status hd_parallel_for(hd_pool *pool, int64_t count, hd_work work, void *arg);

HD_END_DECLS
#endif
