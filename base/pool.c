/* base/pool.c: a pool of threads that share out the items of one loop at a time.
 *
 * The workers sleep on a condition variable between loops. A loop is one "generation": the caller
 * fills the job, wakes everybody, works along, and waits until the last worker has let go of the
 * job. Every hand-over happens under the mutex or through the atomic item counter, which is what
 * ThreadSanitizer checks. */
#include "base/pool.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef struct pool_failure {
    hd_status status;
    int64_t item;
    char message[2048];
    char origin[160];
} pool_failure;

struct hd_pool {
    int threads;
    int started; // workers that run, <= threads - 1
    pthread_t *worker;
    pthread_mutex_t mutex;
    pthread_cond_t wake, done;
    uint64_t generation;
    int busy; // workers inside the current generation
    bool quit;

    hd_work work;
    void *arg;
    int64_t count;
    atomic_int_fast64_t next;
    atomic_bool failed;
    pool_failure failure;
};

typedef struct pool_worker {
    hd_pool *pool;
    int thread;
} pool_worker;

// The CPU quota of the process's control group in whole processors, or 0 when there is none (cgroup
// v2, then v1).
static int quota_processors(void)
{
    char text[256] = "";
    long long quota = 0, period = 0;
    FILE *f = fopen("/proc/self/cgroup", "r");
    char group[200] = "";
    if (f) {
        while (fgets(text, sizeof text, f))
            if (sscanf(text, "0::%199s", group) == 1) break;
        fclose(f);
    }
    char path[300];
    for (int attempt = 0; attempt < 2 && quota == 0; attempt++) {
        snprintf(path, sizeof path, "/sys/fs/cgroup%s/cpu.max", attempt ? "" : group);
        if (!(f = fopen(path, "r"))) continue;
        if (fscanf(f, "%lld %lld", &quota, &period) != 2) quota = 0;
        fclose(f);
    }
    if (quota == 0 && (f = fopen("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "r"))) {
        if (fscanf(f, "%lld", &quota) != 1) quota = 0;
        fclose(f);
        if (quota > 0 && (f = fopen("/sys/fs/cgroup/cpu/cpu.cfs_period_us", "r"))) {
            if (fscanf(f, "%lld", &period) != 1) period = 0;
            fclose(f);
        }
    }
    if (quota <= 0 || period <= 0) return 0;
    return (int)((quota + period - 1) / period);
}

int hd_pool_default_threads(void)
{
    cpu_set_t set;
    int threads = 1;
    if (sched_getaffinity(0, sizeof set, &set) == 0)
        threads = CPU_COUNT(&set);
    else {
        long online = sysconf(_SC_NPROCESSORS_ONLN);
        if (online > 0) threads = (int)online;
    }
    int quota = quota_processors();
    if (quota > 0 && quota < threads) threads = quota;
    return threads > 0 ? threads : 1;
}

static void run_items(hd_pool *pool, int thread)
{
    while (!atomic_load(&pool->failed)) {
        int64_t item = atomic_fetch_add(&pool->next, 1);
        if (item >= pool->count) return;
        hd_status status = pool->work(pool->arg, item, thread);
        if (status == HD_OK) continue;
        pthread_mutex_lock(&pool->mutex);
        if (pool->failure.status == HD_OK || item < pool->failure.item) {
            pool->failure.status = status;
            pool->failure.item = item;
            snprintf(pool->failure.message, sizeof pool->failure.message, "%s", hd_message());
            snprintf(pool->failure.origin, sizeof pool->failure.origin, "%s", hd_message_origin());
        }
        pthread_mutex_unlock(&pool->mutex);
        atomic_store(&pool->failed, true);
    }
}

static void *worker_main(void *arg)
{
    pool_worker self = *(pool_worker *)arg;
    free(arg);
    hd_pool *pool = self.pool;
    uint64_t seen = 0;
    pthread_mutex_lock(&pool->mutex);
    for (;;) {
        while (!pool->quit && pool->generation == seen)
            pthread_cond_wait(&pool->wake, &pool->mutex);
        if (pool->quit) break;
        seen = pool->generation;
        pthread_mutex_unlock(&pool->mutex);
        run_items(pool, self.thread);
        pthread_mutex_lock(&pool->mutex);
        if (--pool->busy == 0) pthread_cond_signal(&pool->done);
    }
    pthread_mutex_unlock(&pool->mutex);
    return NULL;
}

static hd_status start_worker(hd_pool *pool, int thread)
{
    pool_worker *self = malloc(sizeof *self);
    if (!self) return hd_fail(HD_ERR_NOMEM, "threads: no memory to start thread %d", thread);
    *self = (pool_worker){pool, thread};
    if (pthread_create(&pool->worker[pool->started], NULL, worker_main, self) != 0) {
        free(self);
        return hd_fail(HD_ERR_NOMEM,
                       "threads: the system refused thread %d of %d; ask for fewer (--threads)",
                       thread + 1, pool->threads);
    }
    pool->started++;
    return HD_OK;
}

hd_status hd_pool_create(hd_pool **out, int threads)
{
    if (threads < 1 || threads > 4096)
        return hd_fail(HD_ERR_ARGUMENT, "threads is %d, must be 1 to 4096", threads);
    hd_pool *pool = calloc(1, sizeof *pool);
    if (!pool) return hd_fail(HD_ERR_NOMEM, "threads: no memory for a pool");
    pool->threads = threads;
    pthread_mutex_init(&pool->mutex, NULL);
    pthread_cond_init(&pool->wake, NULL);
    pthread_cond_init(&pool->done, NULL);
    hd_status status = HD_OK;
    pool->worker = calloc((size_t)threads, sizeof *pool->worker);
    if (!pool->worker) status = hd_fail(HD_ERR_NOMEM, "threads: no memory for %d threads", threads);
    for (int i = 1; i < threads && status == HD_OK; i++)
        status = start_worker(pool, i);
    if (status != HD_OK) {
        hd_pool_free(pool);
        return status;
    }
    *out = pool;
    return HD_OK;
}

void hd_pool_free(hd_pool *pool)
{
    if (!pool) return;
    pthread_mutex_lock(&pool->mutex);
    pool->quit = true;
    pthread_cond_broadcast(&pool->wake);
    pthread_mutex_unlock(&pool->mutex);
    for (int i = 0; i < pool->started; i++)
        pthread_join(pool->worker[i], NULL);
    pthread_cond_destroy(&pool->wake);
    pthread_cond_destroy(&pool->done);
    pthread_mutex_destroy(&pool->mutex);
    free(pool->worker);
    free(pool);
}

int hd_pool_threads(const hd_pool *pool)
{
    return pool ? pool->threads : 1;
}

hd_status hd_parallel_for(hd_pool *pool, int64_t count, hd_work work, void *arg)
{
    if (!pool || pool->threads == 1 || count <= 1) {
        for (int64_t i = 0; i < count; i++)
            HD_TRY(work(arg, i, 0));
        return HD_OK;
    }
    pthread_mutex_lock(&pool->mutex);
    pool->work = work;
    pool->arg = arg;
    pool->count = count;
    atomic_store(&pool->next, 0);
    atomic_store(&pool->failed, false);
    pool->failure.status = HD_OK;
    pool->busy = pool->started;
    pool->generation++;
    pthread_cond_broadcast(&pool->wake);
    pthread_mutex_unlock(&pool->mutex);

    run_items(pool, 0);

    pthread_mutex_lock(&pool->mutex);
    while (pool->busy > 0)
        pthread_cond_wait(&pool->done, &pool->mutex);
    hd_status status = pool->failure.status;
    pthread_mutex_unlock(&pool->mutex);
    if (status != HD_OK) hd_message_set(pool->failure.message, pool->failure.origin);
    return status;
}
