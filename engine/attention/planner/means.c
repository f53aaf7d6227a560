/* engine/attention/planner/means.c: mean tokens of tiles; a tile is summed in rank order by one
 * thread. */
#include "engine/attention/planner/means.h"

const hd_planner_kernels *hd_planner_kernels_of(const hd_exec *ex)
{
    static const hd_planner_kernels *const variants[] = {
#if HD_WITH_AVX512
        &hd_planner_avx512,
#endif
#if HD_WITH_AVX2
        &hd_planner_avx2,
#endif
        &hd_planner_reference,
    };
    for (size_t i = 0; i < HD_COUNT(variants); i++)
        if (hd_exec_has(ex, variants[i]->needs)) return variants[i];
    return NULL;
}

hd_planner_product *hd_planner_pairs_of(const hd_exec *ex)
{
#if HD_WITH_AVX512_BF16
    if (hd_exec_has(ex, HD_CPU | HD_AVX512_BF16)) return hd_planner_product_avx512bf16;
#endif
    (void)ex;
    return NULL;
}

enum { ITEM_TILES = 8 };

typedef struct mean_work {
    const hd_planner_kernels *kernels;
    float *mean;
    const hd_planner_tokens *x;
    const int32_t *bound;
    int64_t tiles, items; // of one head
} mean_work;

static hd_status mean_item(void *arg, int64_t item, int thread)
{
    const mean_work *w = arg;
    (void)thread;
    const int64_t head = item / w->items, first = item % w->items * ITEM_TILES;
    const hd_planner_tokens *x = &w->x[head];
    for (int64_t t = first; t < first + ITEM_TILES && t < w->tiles; t++) {
        float *mean = w->mean + (head * w->tiles + t) * x->dim;
        const int64_t count = w->bound[t + 1] - w->bound[t];
        w->kernels->sum(mean, x, w->bound[t], count);
        const float share = 1.0f / (float)count;
        for (int64_t d = 0; d < x->dim; d++)
            mean[d] *= share;
    }
    return HD_OK;
}

hd_status hd_planner_means(const hd_exec *ex, float *mean, const hd_planner_tokens *x,
                           int64_t heads, const int32_t *bound, int64_t tiles)
{
    mean_work w = {.kernels = hd_planner_kernels_of(ex),
                   .mean = mean,
                   .x = x,
                   .bound = bound,
                   .tiles = tiles,
                   .items = (tiles + ITEM_TILES - 1) / ITEM_TILES};
    return hd_parallel_for(ex->pool, heads * w.items, mean_item, &w);
}
