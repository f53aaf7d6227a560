/* bench/bench_plan.c: attention over plans, beside the dense call of the same shape: what is left
 * of a plan's saving. A row's "share" is its useful query-key pairs over all of them, "efficiency"
 * share x dense time / time.
 *
 * bench_plan [threads [length]]; bf16, best of several runs, one plan per head where heads differ.
 * - tiles: 128 x 128, each kept at random
 * - full: every tile listed, tokens in a random order of each head
 * - window: every query sees the box around it, grids in 4 x 4 x 4 (8 x 8) query boxes, one key box
 *   with a free origin each */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "engine/arena.h"
#include "engine/ops/sdpa.h"

enum { HEADS = 4, REPEATS = 5, TILE = 128 };

static double seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static uint64_t random_bits(uint64_t *state)
{
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return *state >> 33;
}

static hd_tensor tokens(int64_t length, int64_t heads, int64_t dim, uint64_t seed)
{
    hd_tensor t = hd_tensor_of(NULL, HD_BF16, hd_shape4(1, length, heads, dim));
    t.data = malloc((size_t)hd_tensor_bytes(t));
    for (int64_t i = 0, count = hd_tensor_count(t); t.data && i < count; i++) {
        float sum = 0.0f;
        for (int k = 0; k < 4; k++)
            sum += (float)random_bits(&seed) * 0x1p-31f - 0.5f;
        ((hd_bf16 *)t.data)[i] = hd_bf16_from_f32(sum * 1.7320508f);
    }
    return t;
}

static hd_status measure(const hd_exec *ex, int64_t length, int64_t heads, int64_t dim,
                         const hd_plan *plan, int repeats, double *best)
{
    hd_sdpa a = {.q = tokens(length, heads, dim, 1),
                 .k = tokens(length, heads, dim, 2),
                 .v = tokens(length, heads, dim, 3),
                 .out = tokens(length, heads, dim, 4),
                 .scale = 1.0f / sqrtf((float)dim),
                 .plan = plan ? &plan : NULL};
    hd_status status = HD_OK;
    *best = 1e9;
    for (int i = 0; i < repeats && status == HD_OK; i++) {
        double start = seconds();
        status = hd_sdpa_run(ex, &a);
        double took = seconds() - start;
        if (took < *best) *best = took;
    }
    free(a.q.data), free(a.k.data), free(a.v.data), free(a.out.data);
    return status;
}

static void report(const char *what, int64_t length, int64_t dim, double share, double took,
                   double dense)
{
    printf("%-8s %6lld %4lld  %6.2f %%  %9.2f ms  dense %9.2f ms  efficiency %.3f\n", what,
           (long long)length, (long long)dim, 100.0 * share, took * 1e3, dense * 1e3,
           share * dense / took);
}

/* A list with room for `rows` rows of `most` entries. */
static bool make_list(hd_plan *plan, int64_t rows, int64_t most, int64_t **start, hd_visit **visit)
{
    *start = calloc((size_t)rows + 1, sizeof **start);
    *visit = calloc((size_t)(rows * most), sizeof **visit);
    plan->row_start = *start, plan->visit = *visit;
    return *start && *visit;
}

// Tiles kept with probability keep / 1024; 1024 with a random order per head.
static hd_status measure_tiles(const hd_exec *ex, int64_t length, int64_t dim, uint64_t keep,
                               double dense)
{
    const int64_t tiles = length / TILE, rows = HEADS * tiles;
    hd_plan plan = {.query_tile = TILE,
                    .key_tile = TILE,
                    .query_tiles = tiles,
                    .key_tiles = tiles,
                    .query_ranks = length,
                    .key_ranks = length,
                    .orders = HEADS,
                    .heads = HEADS};
    int64_t *start;
    hd_visit *visit;
    int32_t *order = malloc(sizeof *order * (size_t)(HEADS * length));
    hd_status status = HD_ERR_NOMEM;
    double took = 0.0;
    uint64_t seed = keep;
    if (make_list(&plan, rows, tiles, &start, &visit) && order) {
        for (int64_t r = 0, n = 0; r < rows; r++, start[r] = n)
            for (int64_t t = 0; t < tiles; t++)
                if (random_bits(&seed) % 1024 < keep)
                    visit[n++] = (hd_visit){(int32_t)t, HD_VISIT_FULL};
        for (int64_t i = 0; i < HEADS * length; i++) {
            const int64_t at = i % length, other = (int64_t)(random_bits(&seed) % (at + 1));
            int32_t *head = order + i - at;
            head[at] = head[other], head[other] = (int32_t)at;
        }
        if (keep == 1024) plan.query_order = plan.key_order = order;
        status = measure(ex, length, HEADS, dim, &plan, REPEATS, &took);
    }
    if (status == HD_OK)
        report(keep == 1024 ? "full" : "tiles", length, dim,
               (double)start[rows] / (double)(rows * tiles), took, dense);
    free(start), free(visit), free(order);
    return status;
}

/* One axis of a window that stays within the grid. */
typedef struct axis {
    int64_t size, window, tile;
    int32_t *start, *end;
} axis;

static int64_t axis_extent(const axis *a)
{
    int64_t longest = 0;
    for (int64_t x = 0; x < a->size; x += a->tile) {
        const int64_t last = (x + a->tile < a->size ? x + a->tile : a->size) - 1;
        const int64_t extent = a->end[last] - a->start[x];
        longest = extent > longest ? extent : longest;
    }
    return longest;
}

// The query boxes' tokens, and the first rank and key box of each.
static void cut_boxes(const axis a[3], int32_t *order, int32_t *bound, hd_visit *visit)
{
    int64_t rank = 0, box = 0;
    for (int64_t f = 0; f < a[0].size; f += a[0].tile)
        for (int64_t y = 0; y < a[1].size; y += a[1].tile)
            for (int64_t x = 0; x < a[2].size; x += a[2].tile) {
                const int64_t key =
                    (a[0].start[f] * a[1].size + a[1].start[y]) * a[2].size + a[2].start[x];
                visit[box] = (hd_visit){(int32_t)key, HD_VISIT_PARTIAL};
                bound[box++] = (int32_t)rank;
                for (int64_t i = f; i < f + a[0].tile && i < a[0].size; i++)
                    for (int64_t j = y; j < y + a[1].tile && j < a[1].size; j++)
                        for (int64_t k = x; k < x + a[2].tile && k < a[2].size; k++)
                            order[rank++] = (int32_t)((i * a[1].size + j) * a[2].size + k);
            }
    bound[box] = (int32_t)rank;
}

static hd_status measure_window(const hd_exec *ex, axis a[3], int64_t dim, double dense_pair)
{
    int64_t length = 1, boxes = 1, pairs = 1, volume = 1;
    hd_plan_axis window[3];
    hd_plan plan = {.query_tile = 1, .orders = 1, .heads = 1, .window = window, .windows = 1};
    for (int i = 0; i < 3; i++) {
        a[i].start = malloc(sizeof *a[i].start * (size_t)a[i].size);
        a[i].end = malloc(sizeof *a[i].end * (size_t)a[i].size);
        if (!a[i].start || !a[i].end) return HD_ERR_NOMEM;
        for (int64_t x = 0; x < a[i].size; x++) {
            int64_t start = x - a[i].window / 2;
            if (start > a[i].size - a[i].window) start = a[i].size - a[i].window;
            a[i].start[x] = (int32_t)(start > 0 ? start : 0);
            a[i].end[x] = (int32_t)(a[i].start[x] + a[i].window);
        }
        window[i] = (hd_plan_axis){1, a[i].start, a[i].end};
        plan.grid[i] = a[i].size, plan.box_extent[i] = axis_extent(&a[i]);
        plan.query_tile *= a[i].tile;
        length *= a[i].size, pairs *= a[i].window, volume *= plan.box_extent[i];
        boxes *= (a[i].size + a[i].tile - 1) / a[i].tile;
    }
    plan.query_ranks = plan.key_ranks = length, plan.query_tiles = boxes, plan.key_tile = volume;
    int32_t *order = malloc(sizeof *order * (size_t)length);
    int32_t *bound = malloc(sizeof *bound * (size_t)(boxes + 1));
    int64_t *start;
    hd_visit *visit;
    hd_status status = HD_ERR_NOMEM;
    double took = 0.0;
    if (make_list(&plan, boxes, 1, &start, &visit) && order && bound) {
        cut_boxes(a, order, bound, visit);
        for (int64_t r = 0; r < boxes; r++)
            start[r + 1] = r + 1;
        plan.query_order = order, plan.query_bound = bound;
        status = measure(ex, length, 1, dim, &plan, 2, &took);
    }
    if (status == HD_OK)
        report("window", length, dim, (double)pairs / (double)length, took,
               dense_pair * (double)length * (double)length);
    for (int i = 0; i < 3; i++)
        free(a[i].start), free(a[i].end);
    free(start), free(visit), free(order), free(bound);
    return status;
}

static hd_status measure_all(const hd_exec *ex, int64_t length)
{
    static const int64_t dims[] = {64, 128};
    for (size_t d = 0; d < HD_COUNT(dims); d++) {
        double dense;
        HD_TRY(measure(ex, length, HEADS, dims[d], NULL, REPEATS, &dense));
        for (uint64_t keep = 1024; keep >= 128; keep /= 2)
            HD_TRY(measure_tiles(ex, length, dims[d], keep, dense));
        const double pair = dense / (double)(HEADS * length * length);
        axis video[3] = {{30, 18, 4, NULL, NULL}, {48, 24, 4, NULL, NULL}, {80, 24, 4, NULL, NULL}};
        axis image[3] = {{1, 1, 1, NULL, NULL}, {256, 80, 8, NULL, NULL}, {256, 80, 8, NULL, NULL}};
        HD_TRY(measure_window(ex, video, dims[d], pair));
        HD_TRY(measure_window(ex, image, dims[d], pair));
    }
    return HD_OK;
}

int main(int argc, char **argv)
{
    const int threads = argc > 1 ? atoi(argv[1]) : hd_pool_default_threads();
    const int64_t length = argc > 2 ? atoll(argv[2]) / TILE * TILE : 4096;
    hd_exec ex = {.has = hd_cpu_features()};
    hd_status status = hd_pool_create(&ex.pool, threads);
    if (status == HD_OK) status = hd_arena_create(&ex.arena, (size_t)1 << 30);
    if (status == HD_OK) status = measure_all(&ex, length);
    if (status != HD_OK) fprintf(stderr, "bench_plan: %s\n", hd_message());
    hd_pool_free(ex.pool);
    hd_arena_free(ex.arena);
    return status != HD_OK;
}
