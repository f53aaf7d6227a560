/* engine/precision.c: timing panels of matmul in f32 and bf16.
 *
 * Every thread multiplies at once, as in a run: clocks, shared caches and shared cores are part of
 * the answer. */
#include "engine/precision.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "kernels/cpu/onednn.h"

enum { TOKENS = 128, OUTPUTS = 256, REPEATS = 4 };

#define BF16_WINS_BELOW 0.9 // of f32's time: what is closer is not worth the digits

typedef struct timing {
    hd_dnn *dnn;
    hd_dnn_panel *panel;
    char *data; // per thread: y, x, scratch
    size_t stride, y_bytes, x_bytes;
} timing;

static hd_status timing_item(void *arg, int64_t item, int thread)
{
    const timing *t = arg;
    (void)item;
    char *y = t->data + (size_t)thread * t->stride, *x = y + t->y_bytes;
    return hd_dnn_panel_run(t->panel, thread, 0, (float *)y, x, x + t->x_bytes);
}

static hd_status timing_run(const hd_exec *ex, const timing *t, double *best_ms)
{
    *best_ms = INFINITY;
    // the first round warms caches up
    for (int i = 0; i <= REPEATS; i++) {
        struct timespec from, to;
        clock_gettime(CLOCK_MONOTONIC, &from);
        HD_TRY(hd_parallel_for(ex->pool, 4 * (int64_t)hd_pool_threads(ex->pool), timing_item,
                               (void *)(uintptr_t)t));
        clock_gettime(CLOCK_MONOTONIC, &to);
        double ms =
            1e3 * (double)(to.tv_sec - from.tv_sec) + 1e-6 * (double)(to.tv_nsec - from.tv_nsec);
        if (i > 0 && ms < *best_ms) *best_ms = ms;
    }
    return HD_OK;
}

static hd_status timing_make(timing *t, const hd_exec *ex, hd_dtype dtype, int64_t in, int64_t out)
{
    int threads = hd_pool_threads(ex->pool);
    hd_dnn_filter filter = {.in = in, .out = out, .block = out, .compute = dtype};
    HD_TRY(hd_dnn_create(&t->dnn, filter));
    hd_dnn_input input = {.h = 1, .w = TOKENS, .x_stride = in};
    HD_TRY(hd_dnn_panel_get(t->dnn, threads, input, &t->panel));
    t->y_bytes = ((size_t)(TOKENS * out) * sizeof(float) + 63) & ~(size_t)63;
    t->x_bytes = ((size_t)(TOKENS * in) * hd_dtype_size(dtype) + 63) & ~(size_t)63;
    size_t all = t->y_bytes + t->x_bytes + hd_dnn_panel_scratch_bytes(t->panel);
    size_t weights = (size_t)(in * out) * hd_dtype_size(dtype);
    t->stride = (all + 4095) & ~(size_t)4095;
    size_t bytes = t->stride * (size_t)threads;
    if (bytes < weights) bytes = weights;
    t->data = aligned_alloc(4096, (bytes + 4095) & ~(size_t)4095);
    if (!t->data) return hd_fail(HD_ERR_NOMEM, "precision: no memory to time matrices");
    memset(t->data, 0x3c, bytes); // small numbers, whatever the type
    return hd_dnn_pack(t->dnn, 0, t->data);
}

static hd_status time_one(const hd_exec *ex, hd_dtype dtype, int64_t in, int64_t out, double *ms)
{
    int64_t part = out < OUTPUTS ? out : OUTPUTS;
    timing t;
    memset(&t, 0, sizeof t);
    hd_status status = timing_make(&t, ex, dtype, in, part);
    if (status == HD_OK) status = timing_run(ex, &t, ms);
    *ms *= (double)out / (double)part;
    hd_dnn_free(t.dnn);
    free(t.data);
    if (status != HD_ERR_UNSUPPORTED || dtype == HD_F32) return status;
    *ms = INFINITY; // there is no bf16 here
    return HD_OK;
}

hd_status hd_precision_time(const hd_exec *ex, int count, const int64_t (*in_out)[2],
                            hd_precision_row *table)
{
    for (int i = 0; i < count; i++) {
        hd_precision_row *row = &table[i];
        *row = (hd_precision_row){.in = in_out[i][0], .out = in_out[i][1]};
        HD_TRY(time_one(ex, HD_F32, row->in, row->out, &row->f32_ms));
        HD_TRY(time_one(ex, HD_BF16, row->in, row->out, &row->bf16_ms));
    }
    return HD_OK;
}

hd_dtype hd_precision_choose(int count, const hd_precision_row *table, double *ratio)
{
    double f32_ms = 0, bf16_ms = 0;
    for (int i = 0; i < count; i++) {
        f32_ms += table[i].f32_ms;
        bf16_ms += table[i].bf16_ms;
    }
    double found = f32_ms > 0 ? bf16_ms / f32_ms : 1;
    if (ratio) *ratio = found;
    return found < BF16_WINS_BELOW ? HD_BF16 : HD_F32; // NaN and INFINITY: f32
}
