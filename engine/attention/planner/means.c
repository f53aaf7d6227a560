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

// Tiles of an item; channels of neighbouring heads that are summed together; with fewer items than
// this heads go one by one.
enum { ITEM_TILES = 8, MOST_CHANNELS = 1024, LEAST_ITEMS = 64, AHEAD = 16 };

static int64_t smaller(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

// How many heads can be read as one token of more channels: heads of a token mostly lie side by
// side, and their cache lines are the same.
static int64_t heads_together(const hd_planner_tokens *x, int64_t heads)
{
    const int64_t size = x->dtype == HD_BF16 ? 2 : 4;
    const int64_t most = smaller(MOST_CHANNELS / x->dim, heads);
    for (int64_t h = 1; h < heads; h++)
        if ((const char *)x[h].data != (const char *)x[h - 1].data + x->dim * size ||
            x[h].order != x->order || x[h].stride != x->stride)
            return 1;
    return most > 1 ? most : 1;
}

// Asks for a tile's tokens ahead of their use: short runs that the processor does not foresee.
static void expect_tile(const hd_planner_tokens *x, int64_t first, int64_t count)
{
    const int64_t bytes = x->dim * (x->dtype == HD_BF16 ? 2 : 4);
    for (int64_t r = first; r < first + count; r++) {
        const char *token = hd_planner_token(x, r);
        for (int64_t at = 0; at < bytes; at += 64)
            __builtin_prefetch(token + at);
    }
}

// Of `heads` heads that lie side by side, from `mean` on, heads `tiles` means apart.
static void means_together(const hd_planner_kernels *kernels, float *mean,
                           const hd_planner_tokens *first_head, int64_t heads, const int32_t *bound,
                           int64_t tiles, int64_t first, int64_t end)
{
    hd_planner_tokens x = *first_head;
    float sum[MOST_CHANNELS];
    const int64_t dim = x.dim;
    x.dim *= heads;
    for (int64_t t = first; t < end; t++) {
        float *to = mean + t * dim, *from = heads > 1 ? sum : to;
        const int64_t count = bound[t + 1] - bound[t];
        if (t + 1 < tiles)
            expect_tile(&x, bound[t + 1], smaller(bound[t + 2] - bound[t + 1], AHEAD));
        kernels->sum(from, &x, bound[t], count);
        const float share = 1.0f / (float)count;
        for (int64_t h = 0; h < heads; h++, to += tiles * dim, from += dim)
            for (int64_t d = 0; d < dim; d++)
                to[d] = from[d] * share;
    }
}

void hd_planner_means_some(const hd_planner_kernels *kernels, float *mean,
                           const hd_planner_tokens *x, int64_t heads, const int32_t *bound,
                           int64_t tiles, int64_t first, int64_t end)
{
    const int64_t together = heads_together(x, heads);
    for (int64_t h = 0; h < heads; h += together)
        means_together(kernels, mean + h * tiles * x->dim, x + h, smaller(heads - h, together),
                       bound, tiles, first, end);
}

typedef struct mean_work {
    const hd_planner_kernels *kernels;
    float *mean;
    const hd_planner_tokens *x;
    const int32_t *bound;
    int64_t heads, tiles;
    int64_t together; // heads of an item
    int64_t items;    // of those heads
} mean_work;

static hd_status mean_item(void *arg, int64_t item, int thread)
{
    const mean_work *w = arg;
    (void)thread;
    const int64_t head = item / w->items * w->together, first = item % w->items * ITEM_TILES;
    hd_planner_means_some(w->kernels, w->mean + head * w->tiles * w->x->dim, w->x + head,
                          smaller(w->heads - head, w->together), w->bound, w->tiles, first,
                          smaller(first + ITEM_TILES, w->tiles));
    return HD_OK;
}

hd_status hd_planner_means(const hd_exec *ex, float *mean, const hd_planner_tokens *x,
                           int64_t heads, const int32_t *bound, int64_t tiles)
{
    if (heads < 1) return HD_OK;
    mean_work w = {.kernels = hd_planner_kernels_of(ex),
                   .mean = mean,
                   .x = x,
                   .bound = bound,
                   .heads = heads,
                   .tiles = tiles,
                   .together = heads_together(x, heads),
                   .items = (tiles + ITEM_TILES - 1) / ITEM_TILES};
    if ((heads + w.together - 1) / w.together * w.items < LEAST_ITEMS) w.together = 1;
    const int64_t runs = (heads + w.together - 1) / w.together;
    return hd_parallel_for(ex->pool, runs * w.items, mean_item, &w);
}
