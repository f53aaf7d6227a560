/* sparse/xattention.c: keep, per head and query tile, the key tiles that hold a share tau of the
 * attention, as sampled along antidiagonals.
 *
 * { "use": "xattention", "tau": 0.9, "stride": 16, "score": "groupmean",
 *   "sites": ["** self tokens>=4096"], "steps": [0.1, 1] }
 *
 * A tile's weight is the softmax of sampled scores, summed over it (sparse/xattention_score.h). Of
 * each query tile's row the largest weights are kept until those before the next reach tau of the
 * row. tau 1 is dense by definition. The published code always keeps tile 0 of a row that drops
 * anything: keep_first.
 *
 * XAttention (Xu et al., arXiv 2503.16428). State: with "reuse", the list of the step that made it.
 */
#include "engine/attention/planner/lists.h"
#include "engine/attention/planner/means.h"
#include "sparse/all.h"
#include "sparse/xattention_score.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { XATTENTION_MOST_TAUS = 4096 };

typedef struct xattention {
    const hd_json *tau;  // a number, a list by head, or a list of lists by layer and head
    const hd_json *tile; // frames, height, width
    double *taus;        // [layers][heads] of tau; owned
    int64_t layers, heads;
    int64_t box[3]; // of tile; 0: runs of tokens
    int64_t stride, block, reuse;
    float norm, rho_max;
    bool keep_first, keep_diag, mask_padding;
    int text;  // 0: dense, 1: scored
    int score; // 0: antidiag, 1: groupmean
} xattention;

static const char *const xattention_texts[] = {"dense", "scored", NULL};
static const char *const xattention_scores[] = {"antidiag", "groupmean", NULL};

static const hd_param xattention_params[] = {
    HD_PARAM_JSON(xattention, tau,
                  .help = "share of the attention to keep, (0, 1], default 0.95; or a list by "
                          "head, or lists by layer and head"),
    HD_PARAM_INT(xattention, stride, .def = 8, .min = 1, .max = 128,
                 .help = "tokens of a group; divides the block"),
    HD_PARAM_INT(xattention, block, .def = 128, .min = 1, .max = 128, .help = "tokens of a tile"),
    HD_PARAM_JSON(xattention, tile,
                  .help = "frames, height, width of a tile, instead of runs of `block` tokens"),
    HD_PARAM_FLOAT(xattention, norm, .def = 1.0, .min = 1e-3, .max = 1e3,
                   .help = "divides the sampled scores"),
    HD_PARAM_ENUM(xattention, score, .def_text = "antidiag", .names = xattention_scores,
                  .help = "sampled antidiagonals, or means of groups"),
    HD_PARAM_BOOL(xattention, keep_first, .def = 1,
                  .help = "always keep tile 0, as the published code does"),
    HD_PARAM_BOOL(xattention, keep_diag, .def = 0, .help = "always keep a query tile's own keys"),
    HD_PARAM_ENUM(xattention, text, .def_text = "dense", .names = xattention_texts,
                  .help = "text is seen by all, or cut into tiles and scored like the grid"),
    HD_PARAM_BOOL(xattention, mask_padding, .def = 1,
                  .help = "leave out what pads the last tile; false: as the published code"),
    HD_PARAM_INT(xattention, reuse, .def = 0, .min = 0, .max = 1000,
                 .help = "further steps that a list serves"),
    HD_PARAM_FLOAT(xattention, rho_max, .def = 1.0, .min = 1e-4, .max = 1.0,
                   .help = "largest share of the tiles that a row keeps by its weights"),
    HD_PARAM_END,
};

// A list of numbers of (0, 1], behind those there are.
static hd_status read_taus(xattention *p, const hd_json *node)
{
    double row[256];
    int64_t count;
    HD_TRY(hd_json_to_doubles(node, 1e-6, 1.0, 1, (int64_t)HD_COUNT(row), row, &count));
    if (p->layers > 0 && count != p->heads)
        return hd_json_fail(node, HD_ERR_ARGUMENT, "has %lld heads, the layers before it have %lld",
                            (long long)count, (long long)p->heads);
    if (p->layers * count >= XATTENTION_MOST_TAUS)
        return hd_json_fail(node, HD_ERR_ARGUMENT, "makes more than %d thresholds in all",
                            XATTENTION_MOST_TAUS);
    if (!p->taus) p->taus = malloc((XATTENTION_MOST_TAUS + HD_COUNT(row)) * sizeof *p->taus);
    if (!p->taus) return hd_fail(HD_ERR_NOMEM, "xattention: no memory for the thresholds");
    p->heads = count;
    memcpy(p->taus + p->layers++ * count, row, (size_t)count * sizeof *row);
    return HD_OK;
}

static hd_status xattention_check(void *params)
{
    xattention *p = params;
    int64_t count;
    if (p->block % p->stride || p->block / p->stride > HD_PLANNER_LANES)
        return hd_fail(
            HD_ERR_ARGUMENT,
            "stride is %lld, must divide the block of %lld tokens into at most %d groups",
            (long long)p->stride, (long long)p->block, HD_PLANNER_LANES);
    if (p->tile) {
        HD_TRY(hd_json_to_ints(p->tile, 1, 4096, 3, 3, p->box, &count));
        int64_t tokens = p->box[0] * p->box[1] * p->box[2];
        if (tokens % p->stride || tokens / p->stride > HD_PLANNER_LANES || tokens > 256)
            return hd_json_fail(p->tile, HD_ERR_ARGUMENT,
                                "is %lld tokens; must be at most 256, and a multiple of the "
                                "stride of %lld, at most %d times",
                                (long long)tokens, (long long)p->stride, HD_PLANNER_LANES);
    }
    if (!p->tau) return HD_OK;
    if (hd_json_kind(hd_json_at(p->tau, 0) ? hd_json_at(p->tau, 0) : p->tau) != HD_JSON_ARRAY)
        return read_taus(p, p->tau);
    for (int64_t i = 0; i < hd_json_count(p->tau); i++) {
        HD_TRY(hd_json_expect(hd_json_at(p->tau, i), HD_JSON_ARRAY));
        HD_TRY(read_taus(p, hd_json_at(p->tau, i)));
    }
    return HD_OK;
}

static void xattention_clear(void *params)
{
    xattention *p = params;
    free(p->taus);
    p->taus = NULL;
}

// What a site needs at every call.
typedef struct xattention_site {
    hd_tiling *tiling;
    hd_xattention_groups groups;
    int64_t heads, words;
    double *tau; // [heads]
} xattention_site;

typedef struct xattention_room {
    hd_xattention_room score;
    float *weight;  // per share: [tiles]
    int32_t *index; // per share: [tiles]
    uint64_t *sort; // per share: [2 tiles]
    uint64_t *kept; // [heads][tiles][words]
    hd_lists lists;
    hd_plan *plan;
} xattention_room;

static int64_t heads_together(const xattention_site *site)
{
    return site->heads < HD_XATTENTION_HEADS ? site->heads : HD_XATTENTION_HEADS;
}

static void lists_and_plan(xattention_room *r, hd_room *room, const xattention_site *site)
{
    r->lists = hd_lists_take(room, site->heads, site->tiling->tiles, site->tiling->tiles);
    r->plan = hd_room_take(room, 1, sizeof *r->plan);
}

// `row_room`: one per batch row; `shared`: used by the rows one after the other.
static xattention_room xattention_take(hd_room *row_room, hd_room *shared,
                                       const xattention_site *site, const xattention *p,
                                       int64_t dim)
{
    const int64_t tiles = site->tiling->tiles;
    xattention_room r;
    r.score = hd_xattention_room_take(shared, site->tiling, &site->groups, p->score != 0,
                                      heads_together(site), dim);
    r.weight = hd_room_take(shared, HD_PLANNER_SHARES * tiles, sizeof *r.weight);
    r.index = hd_room_take(shared, HD_PLANNER_SHARES * tiles, sizeof *r.index);
    r.sort = hd_room_take(shared, HD_PLANNER_SHARES * 2 * tiles, sizeof *r.sort);
    r.kept = hd_room_take(shared, site->heads * tiles * site->words, sizeof *r.kept);
    lists_and_plan(&r, row_room, site);
    return r;
}

static void xattention_release(void *made)
{
    xattention_site *site = made;
    if (!site) return;
    hd_tiling_free(site->tiling);
    hd_xattention_groups_free(&site->groups);
    free(site->tau);
    free(site);
}

// The thresholds of this site's heads.
static hd_status xattention_taus(xattention_site *site, const xattention *p, const hd_site *where)
{
    long long layer = 0;
    site->tau = malloc((size_t)site->heads * sizeof *site->tau);
    if (!site->tau)
        return hd_fail(HD_ERR_NOMEM, "no memory for %lld thresholds", (long long)site->heads);
    if (p->layers > 1 && sscanf(where->path, "block.%lld", &layer) != 1)
        return hd_json_fail(p->tau, HD_ERR_ARGUMENT,
                            "is a table by layer, and %s is no numbered block: give one list by "
                            "head, or other \"sites\"",
                            where->path);
    if (p->taus && (layer < 0 || layer >= p->layers))
        return hd_json_fail(p->tau, HD_ERR_ARGUMENT, "has %lld layers, none for %s",
                            (long long)p->layers, where->path);
    if (p->taus && p->heads != 1 && p->heads != site->heads)
        return hd_json_fail(p->tau, HD_ERR_ARGUMENT, "has %lld heads, %s has %lld",
                            (long long)p->heads, where->path, (long long)site->heads);
    for (int64_t h = 0; h < site->heads; h++)
        site->tau[h] = !p->taus ? 0.95 : p->taus[layer * p->heads + (p->heads == 1 ? 0 : h)];
    return HD_OK;
}

static hd_status xattention_make(xattention_site *site, const xattention *p,
                                 const hd_attention_call *call)
{
    hd_tiling_options options = {.box = {p->box[0], p->box[1], p->box[2]},
                                 .tile = p->box[0] ? 0 : p->block,
                                 .text = p->text == 1};
    if (options.text) {
        if (call->q.dim[1] != call->k.dim[1] || call->key_len)
            return hd_fail(HD_ERR_UNSUPPORTED,
                           "text \"scored\" needs the same tokens as queries and keys, all of "
                           "them real; use \"dense\"");
        if (p->box[0]) options.tile = p->box[0] * p->box[1] * p->box[2];
    }
    site->heads = call->q.dim[2];
    HD_TRY(hd_tiling_create(&site->tiling, call, options));
    site->words = hd_bit_words(site->tiling->tiles);
    HD_TRY(hd_xattention_groups_make(&site->groups, site->tiling, p->stride));
    return xattention_taus(site, p, &call->site);
}

static hd_status xattention_prepare(hd_prepare_ctx *ctx)
{
    const xattention *p = ctx->params;
    xattention_site *site = calloc(1, sizeof *site);
    if (!site) return hd_fail(HD_ERR_NOMEM, "no memory for the site");
    hd_status status = xattention_make(site, p, ctx->call);
    if (status != HD_OK) {
        xattention_release(site);
        return status;
    }
    hd_room rows = {0}, shared = {0};
    for (int64_t b = 0; b < ctx->call->q.dim[0]; b++) {
        shared.used = 0;
        xattention_take(&rows, &shared, site, p, ctx->call->q.dim[3]);
    }
    ctx->scratch_bytes = rows.used + shared.used;
    if (p->reuse > 0)
        ctx->state_bytes =
            hd_lists_state_bytes(site->heads, site->tiling->tiles, site->tiling->tiles);
    ctx->made = site;
    return HD_OK;
}

typedef struct select_work {
    const xattention *p;
    const xattention_site *site;
    const xattention_room *room;
    int64_t first_head; // of those that are scored together
} select_work;

// The tiles that one query tile keeps.
static hd_status select_row(void *arg, int64_t head, int64_t query_tile, const float *weight,
                            int64_t share)
{
    const select_work *w = arg;
    const int64_t tiles = w->site->tiling->tiles;
    const double tau = w->site->tau[w->first_head + head];
    uint64_t *kept = w->room->kept + ((w->first_head + head) * tiles + query_tile) * w->site->words;
    int32_t *index = w->room->index + share * tiles;
    int64_t most = (int64_t)((double)w->p->rho_max * (double)tiles + 1e-6);
    hd_select_order(index, weight, tiles, w->room->sort + share * 2 * tiles);
    if (most < 1) most = 1;
    int64_t count = most;
    if (tau < 1) count = hd_select_share(weight, index, tiles, tau, most);
    memset(kept, 0, (size_t)w->site->words * sizeof *kept);
    for (int64_t i = 0; i < count; i++)
        hd_bit_set(kept, index[i]);
    if (w->p->keep_first) hd_bit_set(kept, 0);
    if (w->p->keep_diag) hd_bit_set(kept, query_tile);
    return HD_OK;
}

static hd_status xattention_row_plan(const hd_hook_ctx *ctx, const hd_tokens *tokens, int64_t row,
                                     const xattention_room *r)
{
    const xattention *p = ctx->params;
    const xattention_site *site = ctx->made;
    const hd_xattention_scorer scorer = {.ex = ctx->ex,
                                         .tiling = site->tiling,
                                         .groups = &site->groups,
                                         .means = p->score != 0,
                                         .mask_padding = p->mask_padding,
                                         .factor = ctx->call->scale / p->norm};
    for (int64_t first = 0; first < site->heads; first += HD_XATTENTION_HEADS) {
        hd_planner_tokens q[HD_XATTENTION_HEADS], k[HD_XATTENTION_HEADS];
        int64_t heads = 0;
        for (; heads < HD_XATTENTION_HEADS && first + heads < site->heads; heads++) {
            const int64_t h = first + heads;
            q[heads] = hd_tiling_tokens(site->tiling, tokens->q, row, h, site->heads);
            k[heads] = hd_tiling_tokens(site->tiling, tokens->k, row, h, site->heads);
        }
        select_work w = {p, site, r, first};
        HD_TRY(hd_xattention_score(&scorer, &r->score, r->weight, q, k, heads, select_row, &w));
    }
    return hd_lists_fill(ctx->ex, &r->lists, site->heads, r->kept, r->plan);
}

static hd_status xattention_plan(const hd_hook_ctx *ctx, const hd_tokens *tokens,
                                 const hd_plan **plan)
{
    const xattention *p = ctx->params;
    const xattention_site *site = ctx->made;
    const int64_t rows = tokens->q.dim[0];
    hd_room own = {0};
    for (int64_t b = 0; b < rows; b++) {
        xattention_room r;
        lists_and_plan(&r, &own, site);
    }
    hd_room row_room = {ctx->scratch, 0};
    char *shared = (char *)ctx->scratch + own.used;
    for (int64_t b = 0; b < rows; b++) {
        hd_room shared_room = {shared, 0};
        const xattention_room r =
            xattention_take(&row_room, &shared_room, site, p, tokens->q.dim[3]);
        if (!ctx->active[b]) continue;
        HD_TRY(hd_tiling_plan(site->tiling, tokens->q.dim[1], tokens->k.dim[1], r.plan));
        const int64_t step = ctx->call->forward->step.index;
        if (!hd_lists_recall(ctx->state[b], step, p->reuse, site->heads, r.plan)) {
            HD_TRY(xattention_row_plan(ctx, tokens, b, &r));
            hd_lists_remember(ctx->state[b], step, r.plan);
        }
        plan[b] = r.plan;
    }
    return HD_OK;
}

const hd_processor_class hd_xattention = {
    .name = "xattention",
    .summary = "The key tiles that hold a share tau of the sampled attention.",
    .params = xattention_params,
    .params_size = sizeof(xattention),
    .check = xattention_check,
    .clear = xattention_clear,
    .prepare = xattention_prepare,
    .plan = xattention_plan,
    .release = xattention_release,
};
