/* sparse/proxy.c: near keys exactly, one mean key and value for every far window.
 *
 * { "use": "proxy", "window": [1, 8, 8], "ring": 2, "sites": ["** self tokens>=2048"] }
 *
 * The grid is cut into windows, one tile each. A query window sees the windows within `ring` - 1 of
 * it (and the `topk` windows whose mean key scores best with its mean query) key by key, every
 * other one as a single key: the mean key and value, with ln(tokens of the window) added to the
 * score, the first-order expansion of that window's part of the softmax. `variance_correction` adds
 * the second order: half the variance of q . k over the window, channel by channel. Text is seen as
 * it is.
 *
 * The training-free half of proxy tokens (PT-DiT / Qihoo-T2X, Wang et al., arXiv 2409.04005, whose
 * first version drew one token per window); the logarithm is that of proportional attention (Bolya
 * et al., arXiv 2210.09461). Keeps no state. */
#include "engine/attention/planner/lists.h"
#include "engine/attention/planner/means.h"
#include "engine/attention/planner/scores.h"
#include "engine/attention/planner/tiling.h"
#include "engine/rng.h"
#include "sparse/all.h"

#include <stdlib.h>
#include <string.h>

typedef enum proxy_representative {
    PROXY_MEAN,
    PROXY_FIRST,
    PROXY_RANDOM,
} proxy_representative;

typedef struct proxy {
    const hd_json *window; // frames, height, width
    int64_t size[3];       // of it; 0: by the grid
    int64_t ring, topk;
    proxy_representative representative;
    int value; // 0: mean, 1: the representative's own
    int pool;  // 0: after RoPE, 1: before
    bool size_bias, variance_correction;
    float variance_clip;
    uint64_t seed;
} proxy;

static const char *const proxy_representatives[] = {"mean", "first", "random", NULL};
static const char *const proxy_values[] = {"mean", "same", NULL};
static const char *const proxy_pools[] = {"post_rope", "pre_rope", NULL};

static const hd_param proxy_params[] = {
    HD_PARAM_JSON(proxy, window,
                  .help = "frames, height, width of a window (default: 1, 8, 8 for pictures, 4, 4, "
                          "4 for video)"),
    HD_PARAM_INT(proxy, ring, .def = 2, .min = 1, .max = 1e6,
                 .help = "windows nearer than this are seen key by key; 1: a window's own"),
    HD_PARAM_INT(proxy, topk, .def = 0, .min = 0, .max = 1e6,
                 .help = "best windows by mean query and mean key, beside the ring"),
    HD_PARAM_ENUM(proxy, representative, .def_text = "mean", .names = proxy_representatives,
                  .help = "what stands for a far window"),
    HD_PARAM_ENUM(proxy, value, .def_text = "mean", .names = proxy_values,
                  .help = "its value: the window's mean, or that of the same token as the key"),
    HD_PARAM_BOOL(proxy, size_bias, .def = 1, .help = "add ln(tokens of the window) to its score"),
    HD_PARAM_BOOL(proxy, variance_correction, .def = 0,
                  .help = "second-order term of the window's part"),
    HD_PARAM_FLOAT(proxy, variance_clip, .def = 2.0, .min = 0.0, .max = 100.0,
                   .help = "most that the second-order term adds"),
    HD_PARAM_ENUM(proxy, pool, .def_text = "post_rope", .names = proxy_pools,
                  .help = "which keys are averaged; the same where keys are not turned by place"),
    HD_PARAM_U64(proxy, seed, .help = "of random representatives, with step and site"),
    HD_PARAM_END,
};

static hd_status proxy_check(void *params)
{
    proxy *p = params;
    int64_t count;
    if (p->window) HD_TRY(hd_json_to_ints(p->window, 1, 4096, 3, 3, p->size, &count));
    return HD_OK;
}

// What a site needs at every call.
typedef struct proxy_site {
    hd_tiling *tiling;
    int64_t heads, words;
    uint32_t number;    // of the site, for the draw
    uint64_t *ring;     // [tiles][words]
    int64_t *row_start; // the list, if no window is chosen online
    hd_visit *visit;
} proxy_site;

typedef struct proxy_room {
    int32_t *chosen;       // [tiles] ranks of what stands for them
    float *variance;       // [heads][tiles][dim]
    float *query, *key;    // [heads][tiles][dim] means
    float *panel, *scores; // per share: [dim][64], [tiles][64]
    uint64_t *top;         // per share: [tiles]
    uint64_t *kept;        // [heads][tiles][words]
    hd_lists lists;
    hd_planner_tokens *tokens; // [heads]
    hd_plan *plan;
} proxy_room;

static proxy_room proxy_take(hd_room *room, const proxy_site *site, const proxy *p, int64_t dim)
{
    const int64_t tiles = site->tiling->tiles, heads = site->heads;
    proxy_room r = {.plan = hd_room_take(room, 1, sizeof *r.plan)};
    if (p->representative != PROXY_MEAN) r.chosen = hd_room_take(room, tiles, sizeof *r.chosen);
    if (p->variance_correction)
        r.variance = hd_room_take(room, heads * tiles * dim, sizeof *r.variance);
    if (p->topk == 0 && !p->variance_correction) return r;
    r.key = hd_room_take(room, heads * tiles * dim, sizeof *r.key);
    r.tokens = hd_room_take(room, heads, sizeof *r.tokens);
    if (p->topk == 0) return r;
    r.query = hd_room_take(room, heads * tiles * dim, sizeof *r.query);
    r.panel = hd_room_take(room, HD_PLANNER_SHARES * dim * HD_PLANNER_LANES, sizeof *r.panel);
    r.scores = hd_room_take(room, HD_PLANNER_SHARES * tiles * HD_PLANNER_LANES, sizeof *r.scores);
    r.top = hd_room_take(room, HD_PLANNER_SHARES * tiles, sizeof *r.top);
    r.kept = hd_room_take(room, heads * tiles * site->words, sizeof *r.kept);
    r.lists = hd_lists_take(room, heads, tiles, tiles);
    return r;
}

static void proxy_release(void *made)
{
    proxy_site *site = made;
    if (!site) return;
    hd_tiling_free(site->tiling);
    free(site->ring);
    free(site->row_start);
    free(site->visit);
    free(site);
}

// The windows of every ring, as bits and as a list.
static hd_status proxy_rings(proxy_site *site, int64_t ring)
{
    const int64_t tiles = site->tiling->tiles;
    int64_t entries = 0, at = 0;
    site->words = hd_bit_words(tiles);
    site->ring = calloc((size_t)(tiles * site->words), sizeof *site->ring);
    site->row_start = malloc((size_t)(tiles + 1) * sizeof *site->row_start);
    if (!site->ring || !site->row_start)
        return hd_fail(HD_ERR_NOMEM, "no memory for %lld windows", (long long)tiles);
    for (int64_t a = 0; a < tiles; a++)
        for (int64_t b = 0; b < tiles; b++)
            if (hd_tiling_apart(site->tiling, a, b) < ring) {
                hd_bit_set(site->ring + a * site->words, b);
                entries++;
            }
    site->visit = malloc((size_t)entries * sizeof *site->visit);
    if (!site->visit) return hd_fail(HD_ERR_NOMEM, "no memory for %lld visits", (long long)entries);
    for (int64_t a = 0; a < tiles; a++) {
        site->row_start[a] = at;
        for (int64_t b = 0; b < tiles; b++)
            if (hd_bit(site->ring + a * site->words, b))
                site->visit[at++] = (hd_visit){(int32_t)b, HD_VISIT_FULL};
    }
    site->row_start[tiles] = at;
    return HD_OK;
}

static hd_status proxy_make(proxy_site *site, const proxy *p, const hd_attention_call *call)
{
    static const int64_t picture[3] = {1, 8, 8}, video[3] = {4, 4, 4};
    hd_grid grid;
    if (p->pool && call->site.network != HD_NETWORK_UNET)
        return hd_fail(HD_ERR_UNSUPPORTED,
                       "pool is \"pre_rope\", and its keys come here turned by their places: use "
                       "\"post_rope\"");
    HD_TRY(hd_grid_of_call(&grid, call));
    const int64_t *size = p->size[0] ? p->size : grid.size[0] == 1 ? picture : video;
    hd_tiling_options options = {.box = {size[0], size[1], size[2]}};
    site->heads = call->q.dim[2];
    site->number = 2166136261u; // FNV-1a
    for (const char *path = call->site.path; *path; path++)
        site->number = (site->number ^ (unsigned char)*path) * 16777619u;
    HD_TRY(hd_tiling_create(&site->tiling, call, options));
    return proxy_rings(site, p->ring);
}

static hd_status proxy_prepare(hd_prepare_ctx *ctx)
{
    const proxy *p = ctx->params;
    proxy_site *site = calloc(1, sizeof *site);
    if (!site) return hd_fail(HD_ERR_NOMEM, "no memory for the site");
    hd_status status = HD_OK;
    if (ctx->rest != HD_REST_PROXY)
        status = hd_fail(HD_ERR_ARGUMENT, "rest is \"drop\"; far windows without their proxies are "
                                          "another method: leave \"rest\" out, or use "
                                          "\"swin_windows\" or \"gna\"");
    if (status == HD_OK) status = proxy_make(site, p, ctx->call);
    if (status != HD_OK) {
        proxy_release(site);
        return status;
    }
    hd_room room = {0};
    for (int64_t b = 0; b < ctx->call->q.dim[0]; b++)
        proxy_take(&room, site, p, ctx->call->q.dim[3]);
    ctx->scratch_bytes = room.used;
    ctx->made = site;
    return HD_OK;
}

typedef struct proxy_work {
    const proxy_site *site;
    const proxy_room *room;
    const hd_planner_kernels *kernels;
    int64_t dim, topk;
} proxy_work;

// Item: 64 query windows of one head.
static hd_status proxy_panel(void *arg, int64_t item, int64_t share)
{
    const proxy_work *w = arg;
    const int64_t tiles = w->site->tiling->tiles, words = w->site->words;
    const int64_t panels = (tiles + HD_PLANNER_LANES - 1) / HD_PLANNER_LANES;
    const int64_t head = item / panels, first = item % panels * HD_PLANNER_LANES;
    const int64_t means = head * tiles * w->dim;
    float *scores = w->room->scores + share * tiles * HD_PLANNER_LANES;
    uint64_t *top = w->room->top + share * tiles;
    hd_planner_scores(w->kernels, scores, w->room->panel + share * w->dim * HD_PLANNER_LANES,
                      w->room->query + means, first, tiles, w->room->key + means, tiles, w->dim);
    w->kernels->top(top, scores, tiles, w->topk, NULL);
    for (int64_t a = first; a < first + HD_PLANNER_LANES && a < tiles; a++) {
        uint64_t *kept = w->room->kept + (head * tiles + a) * words;
        memcpy(kept, w->site->ring + a * words, (size_t)words * sizeof *kept);
        for (int64_t b = 0; b < tiles; b++)
            if (top[b] >> (a - first) & 1) hd_bit_set(kept, b);
    }
    return HD_OK;
}

static hd_status proxy_means(const hd_hook_ctx *ctx, hd_tensor x, int64_t row, const proxy_room *r,
                             float *mean)
{
    const proxy_site *site = ctx->made;
    const hd_tiling *t = site->tiling;
    for (int64_t h = 0; h < site->heads; h++)
        r->tokens[h] = hd_tiling_tokens(t, x, row, h, site->heads);
    return hd_planner_means(ctx->ex, mean, r->tokens, site->heads, t->bound, t->tiles);
}

// The windows that are seen key by key.
static hd_status proxy_near(const hd_hook_ctx *ctx, const hd_tokens *tokens, int64_t row,
                            const proxy_room *r)
{
    const proxy *p = ctx->params;
    const proxy_site *site = ctx->made;
    const int64_t panels = (site->tiling->tiles + HD_PLANNER_LANES - 1) / HD_PLANNER_LANES;
    if (p->topk == 0) {
        r->plan->heads = 1;
        r->plan->row_start = site->row_start;
        r->plan->visit = site->visit;
        return HD_OK;
    }
    HD_TRY(proxy_means(ctx, tokens->q, row, r, r->query));
    HD_TRY(proxy_means(ctx, tokens->k, row, r, r->key));
    proxy_work w = {site, r, hd_planner_kernels_of(ctx->ex), tokens->q.dim[3], p->topk};
    HD_TRY(hd_share_for(ctx->ex, site->heads * panels, proxy_panel, &w));
    return hd_lists_fill(ctx->ex, &r->lists, site->heads, r->kept, r->plan);
}

// Item: the variances of one window's keys in one head, whose mean is known.
static hd_status proxy_spread(void *arg, int64_t item, int thread)
{
    const proxy_work *w = arg;
    const hd_tiling *t = w->site->tiling;
    const int64_t head = item / t->tiles, tile = item % t->tiles;
    const hd_planner_tokens *x = &w->room->tokens[head];
    const float *mean = w->room->key + item * w->dim;
    float *variance = w->room->variance + item * w->dim;
    const float share = 1.0f / (float)hd_tiling_count(t, tile);
    (void)thread;
    memset(variance, 0, (size_t)w->dim * sizeof *variance);
    for (int64_t r = t->bound[tile]; r < t->bound[tile + 1]; r++) {
        const void *token = hd_planner_token(x, r);
        for (int64_t d = 0; d < w->dim; d++) {
            const float key = x->dtype == HD_BF16 ? hd_bf16_to_f32(((const hd_bf16 *)token)[d])
                                                  : ((const float *)token)[d];
            variance[d] += share * (key - mean[d]) * (key - mean[d]);
        }
    }
    return HD_OK;
}

// The ranks that stand for the windows: the first of each, or one drawn for this step and site.
static void proxy_choose(const hd_hook_ctx *ctx, const proxy_room *r)
{
    const proxy *p = ctx->params;
    const proxy_site *site = ctx->made;
    const hd_tiling *t = site->tiling;
    const uint32_t key[2] = {(uint32_t)p->seed, (uint32_t)(p->seed >> 32)};
    for (int64_t tile = 0; tile < t->tiles; tile++) {
        const uint32_t counter[4] = {(uint32_t)tile, (uint32_t)ctx->call->forward->step.index,
                                     site->number, 0};
        uint32_t drawn[4] = {0};
        if (p->representative == PROXY_RANDOM) hd_philox4x32(counter, key, drawn);
        r->chosen[tile] = t->bound[tile] +
                          (int32_t)((uint64_t)drawn[0] * (uint64_t)hd_tiling_count(t, tile) >> 32);
    }
}

// What stands for the others.
static hd_status proxy_far(const hd_hook_ctx *ctx, const hd_tokens *tokens, int64_t row,
                           const proxy_room *r)
{
    const proxy *p = ctx->params;
    const proxy_site *site = ctx->made;
    r->plan->rest = HD_REST_PROXY;
    r->plan->proxy.uncounted = !p->size_bias;
    if (r->chosen) proxy_choose(ctx, r);
    r->plan->proxy.key = r->chosen;
    if (p->value) r->plan->proxy.value = r->chosen;
    if (!p->variance_correction) return HD_OK;
    r->plan->proxy.variance = r->variance, r->plan->proxy.clip = p->variance_clip;
    HD_TRY(proxy_means(ctx, tokens->k, row, r, r->key));
    proxy_work w = {.site = site, .room = r, .dim = tokens->k.dim[3]};
    return hd_parallel_for(ctx->ex->pool, site->heads * site->tiling->tiles, proxy_spread, &w);
}

static hd_status proxy_plan(const hd_hook_ctx *ctx, const hd_tokens *tokens, const hd_plan **plan)
{
    const proxy *p = ctx->params;
    const proxy_site *site = ctx->made;
    hd_room room = {ctx->scratch, 0};
    for (int64_t b = 0; b < tokens->q.dim[0]; b++) {
        const proxy_room r = proxy_take(&room, site, p, tokens->q.dim[3]);
        if (!ctx->active[b]) continue;
        HD_TRY(hd_tiling_plan(site->tiling, tokens->q.dim[1], tokens->k.dim[1], r.plan));
        HD_TRY(proxy_near(ctx, tokens, b, &r));
        HD_TRY(proxy_far(ctx, tokens, b, &r));
        plan[b] = r.plan;
    }
    return HD_OK;
}

const hd_processor_class hd_proxy = {
    .name = "proxy",
    .summary = "Near windows key by key, every far window as one mean key and value.",
    .params = proxy_params,
    .params_size = sizeof(proxy),
    .check = proxy_check,
    .prepare = proxy_prepare,
    .plan = proxy_plan,
    .release = proxy_release,
    .rest = HD_REST_PROXY,
    .rows_alike = true,
};
