/* sparse/dynamic_mask.c: the key tiles with the highest priority, per head and (with the scorer
 * "block_mean") per query tile; a mean key and value for each of the others.
 *
 * { "use": "dynamic_mask", "keep": 0.25, "mass": 0.98, "sites": ["** self tokens>=4096"],
 *   "steps": [0.2, 1] }
 *
 * What is left of dynamic mask attention (Shi et al., arXiv 2508.02124) without its learned scorer:
 * keys are kept by tile, compact windows of the grid. Own tile, ring, `sink` and text are always
 * kept; then the best, until the estimated mass reaches `mass` or the count `keep` of the tiles.
 * Scorers: block_mean mean query . mean key; col_mass exact columns of sampled queries; value_norm
 * and value_dev from the values alone, which lose to random keys on local attention: for
 * comparison. "rest" is "proxy" unless told otherwise. The learned form:
 * sparse/dynamic_mask_trained.h.
 *
 * State: the list, which serves for `refresh` steps. */
#include "engine/attention/planner/lists.h"
#include "engine/attention/planner/means.h"
#include "engine/attention/planner/scores.h"
#include "engine/attention/planner/tiling.h"
#include "sparse/all.h"
#include "sparse/dynamic_mask_score.h"

#include <stdlib.h>
#include <string.h>

typedef enum dynamic_mask_mode {
    DYNAMIC_MASK_KEY_SELECT,
    DYNAMIC_MASK_TRAINED,
} dynamic_mask_mode;

typedef struct dynamic_mask {
    const hd_json *window; // frames, height, width of a tile
    int64_t size[3];       // of it; 0: by the grid
    dynamic_mask_mode mode;
    int scorer;                        // hd_dynamic_mask_scorer, or prev_step behind them
    int64_t window_size, block_smooth; // of the learned form
    int select, bias_form;
    float keep, mass;
    int64_t ring, sink, refresh, query_sample;
} dynamic_mask;

static const char *const dynamic_mask_modes[] = {"key_select", "trained", NULL};
static const char *const dynamic_mask_scorers[] = {"block_mean", "col_mass",  "value_norm",
                                                   "value_dev",  "prev_step", NULL};
static const char *const dynamic_mask_selects[] = {"topk", "relu", NULL};
static const char *const dynamic_mask_forms[] = {"log", "exp", NULL};

static const hd_param dynamic_mask_params[] = {
    HD_PARAM_ENUM(dynamic_mask, mode, .def_text = "key_select", .names = dynamic_mask_modes,
                  .help = "by a scorer, or by a network's learned one"),
    HD_PARAM_ENUM(dynamic_mask, scorer, .def_text = "block_mean", .names = dynamic_mask_scorers,
                  .help = "what a key tile's priority is"),
    HD_PARAM_JSON(dynamic_mask, window,
                  .help = "frames, height, width of a tile (default: 1, 8, 8 for pictures, 4, 4, 4 "
                          "for video)"),
    HD_PARAM_FLOAT(dynamic_mask, keep, .def = 0.25, .min = 0.0, .max = 1.0,
                   .help = "share of the tiles that are kept at most"),
    HD_PARAM_FLOAT(dynamic_mask, mass, .def = 0.98, .min = 0.0, .max = 1.0,
                   .help = "estimated attention at which a row has enough"),
    HD_PARAM_INT(dynamic_mask, ring, .def = 1, .min = 1, .max = 1e6,
                 .help = "tiles nearer than this are always kept; 1: a tile's own"),
    HD_PARAM_INT(dynamic_mask, sink, .def = 0, .min = 0, .max = 1e6,
                 .help = "first tiles, always kept"),
    HD_PARAM_INT(dynamic_mask, refresh, .def = 4, .min = 1, .max = 1000,
                 .help = "steps that a list serves"),
    HD_PARAM_INT(dynamic_mask, query_sample, .def = 64, .min = 1, .max = 1e6,
                 .help = "col_mass: one query in so many is looked at"),
    HD_PARAM_INT(dynamic_mask, window_size, .def = 2048, .min = 1, .max = 1e9,
                 .help = "trained: keys kept"),
    HD_PARAM_ENUM(dynamic_mask, select, .def_text = "topk", .names = dynamic_mask_selects,
                  .help = "trained: the best keys, or those with a positive bias"),
    HD_PARAM_INT(dynamic_mask, block_smooth, .def = 0, .min = 0, .max = 1e6,
                 .help = "trained: blocks kept or dropped by majority; 0: none"),
    HD_PARAM_ENUM(dynamic_mask, bias_form, .def_text = "log", .names = dynamic_mask_forms,
                  .help = "trained: the bias as in the code or as in the paper"),
    HD_PARAM_END,
};

static hd_status dynamic_mask_check(void *params)
{
    dynamic_mask *p = params;
    int64_t count;
    if (p->window) HD_TRY(hd_json_to_ints(p->window, 1, 4096, 3, 3, p->size, &count));
    if (p->mode == DYNAMIC_MASK_TRAINED)
        return hd_fail(HD_ERR_UNSUPPORTED,
                       "mode is \"trained\", which needs the scorer's weights of a network that "
                       "was trained with it; none of the supported networks has them: use "
                       "\"key_select\"");
    if (p->scorer >= HD_DYNAMIC_MASK_SCORERS)
        return hd_fail(HD_ERR_UNSUPPORTED,
                       "scorer is \"prev_step\"; the attention kernel does not record the mass of "
                       "tiles: use \"block_mean\" or \"col_mass\"");
    return HD_OK;
}

typedef struct dynamic_mask_site {
    hd_tiling *tiling;
    int64_t heads, words, most; // most: tiles kept at most
    uint64_t *forced;           // [tiles][words]
} dynamic_mask_site;

static void dynamic_mask_release(void *made)
{
    dynamic_mask_site *site = made;
    if (!site) return;
    hd_tiling_free(site->tiling);
    free(site->forced);
    free(site);
}

static hd_status dynamic_mask_make(dynamic_mask_site *site, const dynamic_mask *p,
                                   const hd_attention_call *call)
{
    static const int64_t picture[3] = {1, 8, 8}, video[3] = {4, 4, 4};
    hd_grid grid;
    HD_TRY(hd_grid_of_call(&grid, call));
    const int64_t *size = p->size[0] ? p->size : grid.size[0] == 1 ? picture : video;
    HD_TRY(hd_tiling_create(&site->tiling, call,
                            (hd_tiling_options){.box = {size[0], size[1], size[2]}}));
    const int64_t tiles = site->tiling->tiles;
    site->heads = call->q.dim[2];
    site->words = hd_bit_words(tiles);
    site->most = (int64_t)((double)p->keep * (double)tiles + 1e-6);
    site->forced = calloc((size_t)(tiles * site->words), sizeof *site->forced);
    if (!site->forced) return hd_fail(HD_ERR_NOMEM, "no memory for %lld tiles", (long long)tiles);
    for (int64_t a = 0; a < tiles; a++)
        for (int64_t b = 0; b < tiles; b++)
            if (b < p->sink || hd_tiling_apart(site->tiling, a, b) < p->ring)
                hd_bit_set(site->forced + a * site->words, b);
    return HD_OK;
}

// One batch row's memory, and what the rows use one after the other.
typedef struct dynamic_mask_room {
    hd_lists lists;
    hd_plan *plan;
    hd_dynamic_mask_room score;
    float *row;     // per share [tiles]
    int32_t *index; // per share [tiles]
    uint64_t *sort; // per share [2 tiles]
    uint64_t *kept; // [heads][tiles][words]
} dynamic_mask_room;

static void row_take(dynamic_mask_room *r, hd_room *room, const dynamic_mask_site *site)
{
    const int64_t tiles = site->tiling->tiles;
    r->lists = hd_lists_take(room, site->heads, tiles, tiles);
    r->plan = hd_room_take(room, 1, sizeof *r->plan);
}

static void shared_take(dynamic_mask_room *r, hd_room *room, const dynamic_mask_site *site,
                        const dynamic_mask *p, int64_t dim, int64_t value_dim)
{
    const int64_t tiles = site->tiling->tiles;
    r->score = hd_dynamic_mask_room_take(room, site->tiling, (hd_dynamic_mask_scorer)p->scorer,
                                         site->heads, dim, value_dim);
    r->row = hd_room_take(room, HD_PLANNER_SHARES * tiles, sizeof *r->row);
    r->index = hd_room_take(room, HD_PLANNER_SHARES * tiles, sizeof *r->index);
    r->sort = hd_room_take(room, HD_PLANNER_SHARES * 2 * tiles, sizeof *r->sort);
    r->kept = hd_room_take(room, site->heads * tiles * site->words, sizeof *r->kept);
}

static hd_status dynamic_mask_prepare(hd_prepare_ctx *ctx)
{
    const dynamic_mask *p = ctx->params;
    const hd_attention_call *call = ctx->call;
    dynamic_mask_site *site = calloc(1, sizeof *site);
    if (!site) return hd_fail(HD_ERR_NOMEM, "no memory for the site");
    hd_status status = dynamic_mask_make(site, p, call);
    if (status != HD_OK) {
        dynamic_mask_release(site);
        return status;
    }
    hd_room room = {0};
    dynamic_mask_room r;
    shared_take(&r, &room, site, p, call->q.dim[3], call->v.dim[3]);
    for (int64_t b = 0; b < call->q.dim[0]; b++)
        row_take(&r, &room, site);
    ctx->scratch_bytes = room.used;
    if (p->refresh > 1)
        ctx->state_bytes =
            hd_lists_state_bytes(site->heads, site->tiling->tiles, site->tiling->tiles);
    ctx->made = site;
    return HD_OK;
}

typedef struct keep_work {
    const dynamic_mask *p;
    const dynamic_mask_site *site;
    const dynamic_mask_room *r;
} keep_work;

// The tiles of one query tile: those that must stay, then the best.
static hd_status keep_row(void *arg, int64_t head, int64_t query_tile, const float *share_of_tile,
                          int64_t share)
{
    const keep_work *w = arg;
    const int64_t tiles = w->site->tiling->tiles, words = w->site->words;
    uint64_t *kept = w->r->kept + (head * tiles + query_tile) * words;
    int32_t *index = w->r->index + share * tiles;
    memcpy(kept, w->site->forced + query_tile * words, (size_t)words * sizeof *kept);
    int64_t count = hd_bits_count(kept, words);
    double mass = 0;
    for (int64_t t = 0; t < tiles; t++)
        if (hd_bit(kept, t)) mass += (double)share_of_tile[t];
    hd_select_order(index, share_of_tile, tiles, w->r->sort + share * 2 * tiles);
    for (int64_t i = 0; i < tiles && count < w->site->most && mass < (double)w->p->mass; i++) {
        if (hd_bit(kept, index[i])) continue;
        hd_bit_set(kept, index[i]);
        mass += (double)share_of_tile[index[i]];
        count++;
    }
    return HD_OK;
}

static hd_status dynamic_mask_choose(const hd_hook_ctx *ctx, const hd_tokens *tokens, int64_t row,
                                     const dynamic_mask_room *r)
{
    const dynamic_mask *p = ctx->params;
    const dynamic_mask_site *site = ctx->made;
    keep_work w = {p, site, r};
    const hd_dynamic_mask_scoring scoring = {.ex = ctx->ex,
                                             .tiling = site->tiling,
                                             .scorer = (hd_dynamic_mask_scorer)p->scorer,
                                             .heads = site->heads,
                                             .query_sample = p->query_sample,
                                             .scale = ctx->call->scale,
                                             .q = tokens->q,
                                             .k = tokens->k,
                                             .v = tokens->v,
                                             .row = row};
    HD_TRY(hd_dynamic_mask_score(&scoring, &r->score, r->row, keep_row, &w));
    return hd_lists_fill(ctx->ex, &r->lists, site->heads, r->kept, r->plan);
}

static hd_status dynamic_mask_plan(const hd_hook_ctx *ctx, const hd_tokens *tokens,
                                   const hd_plan **plan)
{
    const dynamic_mask *p = ctx->params;
    const dynamic_mask_site *site = ctx->made;
    const int64_t step = ctx->call->forward->step.index;
    hd_room room = {ctx->scratch, 0};
    dynamic_mask_room r;
    shared_take(&r, &room, site, p, tokens->q.dim[3], tokens->v.dim[3]);
    for (int64_t b = 0; b < tokens->q.dim[0]; b++) {
        row_take(&r, &room, site);
        if (!ctx->active[b]) continue;
        HD_TRY(hd_tiling_plan(site->tiling, tokens->q.dim[1], tokens->k.dim[1], r.plan));
        if (!hd_lists_recall(ctx->state[b], step, p->refresh - 1, site->heads, r.plan)) {
            HD_TRY(dynamic_mask_choose(ctx, tokens, b, &r));
            hd_lists_remember(ctx->state[b], step, r.plan);
        }
        plan[b] = r.plan;
    }
    return HD_OK;
}

const hd_processor_class hd_dynamic_mask = {
    .name = "dynamic_mask",
    .summary = "The key tiles with the highest priority, a mean for each of the others.",
    .params = dynamic_mask_params,
    .params_size = sizeof(dynamic_mask),
    .check = dynamic_mask_check,
    .prepare = dynamic_mask_prepare,
    .plan = dynamic_mask_plan,
    .release = dynamic_mask_release,
    .rest = HD_REST_PROXY,
};
