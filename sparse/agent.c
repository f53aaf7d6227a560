/* sparse/agent.c: attention through a few agent tokens: the agents attend to all keys, the queries
 * to the agents; and, where that does not pay, tokens merged by similarity alone (ToMe).
 *
 * { "use": "agent", "sites": ["** self"], "steps": [0, 0.4], "sx": 4, "sy": 4,
 *   "agent_ratio": 0.95 },
 * { "use": "agent", "sites": ["** self"], "steps": [0.4, 1], "sx": 2, "sy": 2, "agents": false }
 *
 * Han et al., Agent Attention: On the Integration of Softmax and Linear Attention (ECCV 2024), the
 * training-free form for Stable Diffusion: q, k, v are averaged over tokens that are alike (means
 * commute with the projections), agents are means of q over more of them; the second softmax is
 * sharpened, a share of v is added, and every token gets its group's result. "source": "pool" takes
 * means over fixed cells for agents and merges nothing.
 *
 * Linear in the tokens but for the matching. All of it is found anew at each call; no state. It
 * moves tokens: what reads the map or addresses tokens by place cannot stand beside it. Scores are
 * f32 in every precision. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "sparse/agent_match.h"
#include "sparse/all.h"

typedef enum agent_source { AGENT_MERGE, AGENT_POOL } agent_source;
typedef enum agent_feature { AGENT_ON_X, AGENT_ON_K } agent_feature;

static const char *const agent_sources[] = {"merge", "pool", NULL};
static const char *const agent_features[] = {"x", "k", NULL};

typedef struct agent {
    float ratio, agent_ratio; // of the tokens, merged away for features and for agents
    bool ratio_given, agent_ratio_given;
    int64_t sx, sy, sf; // cells of the matching or of the pool
    bool agents;
    float k_scale2, k_shortcut;
    int64_t max_downsample;
    bool use_rand;
    uint64_t seed;
    agent_feature match_on;
    agent_source source;
} agent;

static const hd_param agent_params[] = {
    HD_PARAM_FLOAT(agent, ratio, .def = 0.4, .min = 0, .max = 0.99, .given_flag = true,
                   .given_offset = offsetof(agent, ratio_given),
                   .help = "share of the tokens that is merged away; 0: nothing is done"),
    HD_PARAM_FLOAT(agent, agent_ratio, .def = 0.95, .min = 0, .max = 0.9999, .given_flag = true,
                   .given_offset = offsetof(agent, agent_ratio_given),
                   .help = "the same for the agents"),
    HD_PARAM_INT(agent, sx, .def = 4, .min = 1, .max = 64, .help = "width of a cell"),
    HD_PARAM_INT(agent, sy, .def = 4, .min = 1, .max = 64, .help = "height of a cell"),
    HD_PARAM_INT(agent, sf, .def = 1, .min = 1, .max = 64, .help = "frames of a cell"),
    HD_PARAM_BOOL(agent, agents, .def = 1, .help = "false: only merge (ToMe)"),
    HD_PARAM_FLOAT(agent, k_scale2, .def = 0.3, .min = 0, .max = 1,
                   .help = "exponent of the scale of the second softmax; 1: the layer's own"),
    HD_PARAM_FLOAT(agent, k_shortcut, .def = 0.075, .min = 0, .max = 1,
                   .help = "share of v added to the result"),
    HD_PARAM_INT(agent, max_downsample, .def = 1, .min = 1, .max = 64,
                 .help = "layers further below the latent are left alone"),
    HD_PARAM_BOOL(agent, use_rand, .def = 1, .help = "false: the first token stands for its cell"),
    HD_PARAM_U64(agent, seed, .help = "of that draw, with step and site"),
    HD_PARAM_ENUM(agent, match_on, .names = agent_features,
                  .help = "what is compared: the layer's input, or the mean key of all heads"),
    HD_PARAM_ENUM(agent, source, .names = agent_sources,
                  .help = "agents from merged tokens, or means over cells"),
    HD_PARAM_END,
};

static hd_status agent_check(void *params)
{
    const agent *p = params;
    if (p->source != AGENT_POOL) return HD_OK;
    if (!p->agents)
        return hd_fail(HD_ERR_ARGUMENT, "agents is false, and source \"pool\" gives nothing else");
    if (p->ratio_given || p->agent_ratio_given)
        return hd_fail(HD_ERR_ARGUMENT,
                       "%s belongs to source \"merge\"; a pool has an agent per cell, sx x sy",
                       p->ratio_given ? "ratio" : "agent_ratio");
    return HD_OK;
}

/* What is known of a site before its first call. */
typedef struct agent_site {
    hd_match_grid grid;
    uint32_t number;              // of the site, for the draw
    int64_t merged, kept;         // tokens merged away, tokens left
    int64_t agent_merged, agents; // the same for the agents
    bool on;                      // agents pay: two thin attentions are less than one
    int64_t heads, dim, value_dim, channels;
    hd_dtype dtype;
} agent_site;

/* Scratch of a call. */
typedef struct agent_work {
    int32_t *target, *place; // [targets], [rows][tokens]
    hd_match match;
    hd_match_work matching;
    float *feature;    // [tokens][dim]: mean keys
    hd_tensor q, k, v; // merged [rows, kept, heads, dim]; of a pool v alone, as it came
    hd_tensor agents;  // [rows, agents, heads, dim]
} agent_work;

static hd_tensor take_tokens(hd_room *room, const agent_site *s, int64_t rows, int64_t tokens,
                             int64_t dim)
{
    hd_shape shape = hd_shape4(rows, tokens, s->heads, dim);
    void *data = hd_room_take(room, hd_shape_count(shape), hd_dtype_size(s->dtype));
    return hd_tensor_of(data, s->dtype, shape);
}

// For a call of so many rows: the dry pass knows the most that any call has.
static agent_work work_of(const agent *p, const agent_site *s, int64_t rows, hd_room *room)
{
    agent_work w = {.match = {0}};
    if (s->on) w.agents = take_tokens(room, s, rows, s->agents, s->dim);
    if (p->source == AGENT_MERGE && s->merged == 0) return w;
    w.v = take_tokens(room, s, rows, s->kept, s->value_dim);
    if (p->source == AGENT_POOL) return w;
    w.target = hd_room_take(room, s->grid.targets, sizeof *w.target);
    w.place = hd_room_take(room, rows * s->grid.tokens, sizeof *w.place);
    hd_match_take(room, &w.match, &s->grid);
    hd_match_work_take(room, &w.matching, &s->grid, s->channels);
    if (p->match_on == AGENT_ON_K)
        w.feature = hd_room_take(room, s->grid.tokens * s->dim, sizeof *w.feature);
    w.q = take_tokens(room, s, rows, s->kept, s->dim);
    w.k = take_tokens(room, s, rows, s->kept, s->dim);
    return w;
}

static agent_work work_in(const hd_hook_ctx *ctx)
{
    hd_room room = {.base = ctx->scratch};
    return work_of(ctx->params, ctx->made, ctx->call->q.dim[0], &room);
}

static hd_status check_site(const agent *p, const hd_attention_call *c)
{
    const hd_token_layout *layout = &c->q_layout;
    if (c->site.kind != HD_SITE_SELF)
        return hd_fail(HD_ERR_UNSUPPORTED,
                       "it merges the tokens of self attention; let \"sites\" say \"** self\"");
    if (layout->segments != 1 || layout->segment[0].kind != HD_TOKENS_GRID ||
        layout->segment[0].width == 0)
        return hd_fail(HD_ERR_UNSUPPORTED, "its tokens are not one grid");
    if (c->k.dim[1] != c->q.dim[1] || c->key_len || c->causal)
        return hd_fail(HD_ERR_UNSUPPORTED,
                       "it needs one key for each query: no appended keys, no padding, not causal");
    if (p->source == AGENT_MERGE && p->match_on == AGENT_ON_X && !hd_tensor_given(c->x))
        return hd_fail(HD_ERR_UNSUPPORTED,
                       "the layer does not hand out its input; \"match_on\": \"k\" compares keys");
    return HD_OK;
}

// Whole tokens of a share: 0.4 of 10 is 4, whatever 0.4 is in binary.
static int64_t share_of(float ratio, int64_t tokens, int64_t most)
{
    int64_t count = (int64_t)floor(((double)ratio + 1e-7) * (double)tokens);
    return count < most ? count : most;
}

static hd_status size_merged(const agent *p, agent_site *s)
{
    const hd_match_grid *g = &s->grid;
    if (p->ratio > 0 && g->targets == 0)
        return hd_fail(HD_ERR_ARGUMENT,
                       "cells of %lld x %lld x %lld tokens (sf, sy, sx) do not fit a grid of %lld "
                       "x %lld x %lld",
                       (long long)g->stride[0], (long long)g->stride[1], (long long)g->stride[2],
                       (long long)g->size[0], (long long)g->size[1], (long long)g->size[2]);
    s->merged = share_of(p->ratio, g->tokens, g->sources);
    s->agent_merged = share_of(p->agent_ratio, g->tokens, g->sources);
    s->kept = g->tokens - s->merged;
    s->agents = g->tokens - s->agent_merged;
    s->on = p->agents && s->merged > 0 && 2 * s->agents < s->kept;
    return HD_OK;
}

static hd_status size_pooled(agent_site *s)
{
    const hd_match_grid *g = &s->grid;
    s->kept = g->tokens;
    s->agents = 1;
    for (int i = 0; i < 3; i++)
        s->agents *= (g->size[i] + g->stride[i] - 1) / g->stride[i];
    s->on = 2 * s->agents < g->tokens;
    if (s->on) return HD_OK;
    return hd_fail(HD_ERR_ARGUMENT, "%lld agents for %lld tokens save nothing; take larger cells",
                   (long long)s->agents, (long long)g->tokens);
}

static uint32_t site_number(const char *path)
{
    uint32_t hash = 2166136261u; // FNV-1a
    for (; *path; path++)
        hash = (hash ^ (unsigned char)*path) * 16777619u;
    return hash;
}

static hd_status agent_prepare(hd_prepare_ctx *ctx)
{
    const agent *p = ctx->params;
    const hd_attention_call *c = ctx->call;
    ctx->idle = c->site.kind == HD_SITE_SELF && c->site.factor > p->max_downsample;
    if (ctx->idle) return HD_OK;
    HD_TRY(check_site(p, c));
    agent_site *s = calloc(1, sizeof *s);
    if (!s) return hd_fail(HD_ERR_NOMEM, "agent: no memory for a site");
    ctx->made = s;
    const hd_token_segment *grid = &c->q_layout.segment[0];
    s->grid = hd_match_grid_of((const int64_t[3]){grid->frames, grid->height, grid->width},
                               (const int64_t[3]){p->sf, p->sy, p->sx});
    s->number = site_number(c->site.path);
    s->heads = c->q.dim[2], s->dim = c->q.dim[3];
    s->value_dim = c->v.dim[3];
    s->dtype = c->q.dtype;
    s->channels = p->match_on == AGENT_ON_K ? s->dim : c->x.dim[2];
    if (c->k.dim[2] != s->heads)
        return hd_fail(HD_ERR_UNSUPPORTED, "its %lld query heads share %lld key heads",
                       (long long)s->heads, (long long)c->k.dim[2]);
    HD_TRY(p->source == AGENT_POOL ? size_pooled(s) : size_merged(p, s));
    hd_room room = {0};
    work_of(p, s, c->q.dim[0], &room);
    ctx->scratch_bytes = room.used;
    if (!s->on) return HD_OK;
    ctx->passes = 1;
    ctx->pass[0].when = HD_PASS_BEFORE;
    ctx->pass[0].query_len = s->agents;
    ctx->pass[0].key_len = s->kept;
    return HD_OK;
}

static float load(const void *x, hd_dtype dtype, int64_t i)
{
    return dtype == HD_F32 ? ((const float *)x)[i] : hd_bf16_to_f32(((const uint16_t *)x)[i]);
}

static void store(void *x, hd_dtype dtype, int64_t i, float value)
{
    if (dtype == HD_F32)
        ((float *)x)[i] = value;
    else
        ((uint16_t *)x)[i] = hd_bf16_from_f32(value);
}

static int64_t offset_of(hd_tensor t, int64_t row, int64_t token, int64_t head)
{
    return row * t.stride[0] + token * t.stride[1] + head * t.stride[2];
}

static void copy_token(hd_tensor to, int64_t to_token, hd_tensor from, int64_t token, int64_t row)
{
    const int64_t size = (int64_t)hd_dtype_size(from.dtype);
    for (int64_t h = 0; h < from.dim[2]; h++)
        memcpy((char *)to.data + offset_of(to, row, to_token, h) * size,
               (const char *)from.data + offset_of(from, row, token, h) * size,
               (size_t)(from.dim[3] * size));
}

enum { AGENT_PIECE = 64 };

// The mean of `token` [count] of one row into token `at` of `to`, summed in their order.
static void mean_tokens(hd_tensor to, int64_t at, hd_tensor from, const int32_t *token,
                        int64_t count, int64_t row)
{
    const float factor = 1.0f / (float)count;
    for (int64_t h = 0; h < from.dim[2]; h++)
        for (int64_t d = 0; d < from.dim[3]; d += AGENT_PIECE) {
            const int64_t n = from.dim[3] - d < AGENT_PIECE ? from.dim[3] - d : AGENT_PIECE;
            float sum[AGENT_PIECE] = {0};
            for (int64_t i = 0; i < count; i++) {
                const int64_t o = offset_of(from, row, token[i], h) + d;
                for (int64_t j = 0; j < n; j++)
                    sum[j] += load(from.data, from.dtype, o + j);
            }
            for (int64_t j = 0; j < n; j++)
                store(to.data, to.dtype, offset_of(to, row, at, h) + d + j, sum[j] * factor);
        }
}

typedef struct agent_merge {
    const agent_site *s;
    const hd_match *match;
    hd_tensor to, from;
    int64_t row, merged;
} agent_merge;

// Item: some tokens of the merged row: sources that stay, then targets with what came to them.
static hd_status merge_item(void *arg, int64_t item, int thread)
{
    const agent_merge *m = arg;
    const hd_match *match = m->match;
    const int64_t stay = m->s->grid.sources - m->merged, all = stay + m->s->grid.targets;
    (void)thread;
    for (int64_t i = item * AGENT_PIECE; i < all && i < (item + 1) * AGENT_PIECE; i++) {
        if (i < stay) {
            copy_token(m->to, i, m->from, match->source[match->order[m->merged + i]], m->row);
            continue;
        }
        const int32_t *start = match->start + (i - stay);
        mean_tokens(m->to, i, m->from, match->list + start[0], start[1] - start[0], m->row);
    }
    return HD_OK;
}

// One tensor's row, merged after the lists of `match`.
static hd_status merge_row(const hd_hook_ctx *ctx, const agent_work *w, hd_tensor to,
                           hd_tensor from, int64_t row, int64_t merged)
{
    const agent_site *s = ctx->made;
    agent_merge m = {s, &w->match, to, from, row, merged};
    const int64_t tokens = s->grid.tokens - merged;
    return hd_parallel_for(ctx->ex->pool, (tokens + AGENT_PIECE - 1) / AGENT_PIECE, merge_item, &m);
}

// What is compared of one row.
static hd_match_features features_of(const hd_hook_ctx *ctx, const agent_work *w, int64_t row)
{
    const agent_site *s = ctx->made;
    const hd_attention_call *c = ctx->call;
    if (!w->feature)
        return (hd_match_features){(const char *)c->x.data +
                                       row * c->x.stride[0] * (int64_t)hd_dtype_size(c->x.dtype),
                                   c->x.dtype, c->x.stride[1], s->channels};
    for (int64_t i = 0; i < s->grid.tokens; i++)
        for (int64_t d = 0; d < s->dim; d++) {
            float sum = 0;
            for (int64_t h = 0; h < s->heads; h++)
                sum += load(c->k.data, c->k.dtype, offset_of(c->k, row, i, h) + d);
            w->feature[i * s->dim + d] = sum / (float)s->heads;
        }
    return (hd_match_features){w->feature, HD_F32, s->dim, s->dim};
}

// Merged q, k, v and agents of the active rows.
static hd_status merge_call(const hd_hook_ctx *ctx, agent_work *w)
{
    const agent *p = ctx->params;
    const agent_site *s = ctx->made;
    const hd_attention_call *c = ctx->call;
    hd_match_targets(&s->grid, p->use_rand ? &p->seed : NULL, c->forward->step.index, s->number,
                     w->target);
    for (int64_t b = 0; b < ctx->call->q.dim[0]; b++) {
        if (!ctx->active[b]) continue;
        w->match.place = w->place + b * s->grid.tokens;
        hd_match_features x = features_of(ctx, w, b);
        HD_TRY(hd_match_find(ctx->ex, &w->match, &s->grid, &x, w->target, &w->matching));
        if (s->on) {
            hd_match_lists(&w->match, &s->grid, w->target, s->agent_merged);
            HD_TRY(merge_row(ctx, w, w->agents, c->q, b, s->agent_merged));
        }
        hd_match_lists(&w->match, &s->grid, w->target, s->merged);
        HD_TRY(merge_row(ctx, w, w->q, c->q, b, s->merged));
        HD_TRY(merge_row(ctx, w, w->k, c->k, b, s->merged));
        HD_TRY(merge_row(ctx, w, w->v, c->v, b, s->merged));
    }
    return HD_OK;
}

typedef struct agent_pool {
    const agent_site *s;
    hd_tensor to, from;
    int64_t row;
} agent_pool;

// Item: the mean query of one cell; the last ones of an axis may be short.
static hd_status pool_item(void *arg, int64_t item, int thread)
{
    const agent_pool *p = arg;
    const hd_match_grid *g = &p->s->grid;
    int64_t first[3], end[3], at = item;
    (void)thread;
    for (int i = 2; i >= 0; i--) {
        const int64_t cells = (g->size[i] + g->stride[i] - 1) / g->stride[i];
        first[i] = at % cells * g->stride[i];
        end[i] = first[i] + g->stride[i] < g->size[i] ? first[i] + g->stride[i] : g->size[i];
        at /= cells;
    }
    const float factor =
        1.0f / (float)((end[0] - first[0]) * (end[1] - first[1]) * (end[2] - first[2]));
    for (int64_t h = 0; h < p->s->heads; h++)
        for (int64_t d = 0; d < p->s->dim; d++) {
            float sum = 0;
            for (int64_t f = first[0]; f < end[0]; f++)
                for (int64_t y = first[1]; y < end[1]; y++)
                    for (int64_t x = first[2]; x < end[2]; x++)
                        sum += load(
                            p->from.data, p->from.dtype,
                            offset_of(p->from, p->row, (f * g->size[1] + y) * g->size[2] + x, h) +
                                d);
            store(p->to.data, p->to.dtype, offset_of(p->to, p->row, item, h) + d, sum * factor);
        }
    return HD_OK;
}

static void put_tokens(hd_tensor to, hd_tensor from, int64_t tokens, int64_t row)
{
    for (int64_t i = 0; i < tokens; i++)
        copy_token(to, i, from, i, row);
}

static hd_status agent_pass(const hd_hook_ctx *ctx, int index, hd_pass *pass)
{
    const agent *p = ctx->params;
    const agent_site *s = ctx->made;
    agent_work w = work_in(ctx);
    (void)index;
    pass->q = w.agents;
    if (p->source == AGENT_MERGE) {
        HD_TRY(merge_call(ctx, &w));
        pass->k = w.k, pass->v = w.v;
        return HD_OK;
    }
    pass->k = ctx->call->k, pass->v = ctx->call->v;
    for (int64_t b = 0; b < ctx->call->q.dim[0]; b++) {
        agent_pool pool = {s, w.agents, ctx->call->q, b};
        if (!ctx->active[b]) continue;
        put_tokens(w.v, ctx->call->v, s->kept, b); // the output wants a share of it
        HD_TRY(hd_parallel_for(ctx->ex->pool, s->agents, pool_item, &pool));
    }
    return HD_OK;
}

static hd_status agent_tokens(const hd_hook_ctx *ctx, hd_tokens *tokens)
{
    const agent *p = ctx->params;
    const agent_site *s = ctx->made;
    if (p->source == AGENT_MERGE && s->merged == 0) return HD_OK;
    agent_work w = work_in(ctx);
    if (!s->on) HD_TRY(merge_call(ctx, &w)); // else the pass has
    for (int64_t b = 0; b < ctx->call->q.dim[0]; b++) {
        if (!ctx->active[b]) continue;
        if (p->source == AGENT_MERGE) put_tokens(tokens->q, w.q, s->kept, b);
        put_tokens(tokens->k, s->on ? w.agents : w.k, s->on ? s->agents : s->kept, b);
        put_tokens(tokens->v, s->on ? ctx->pass[0].out : w.v, s->on ? s->agents : s->kept, b);
        tokens->query_len[b] = s->kept;
        tokens->key_len[b] = s->on ? s->agents : s->kept;
    }
    return HD_OK;
}

// The scale of the second softmax is the layer's to the power k_scale2.
static hd_status agent_logits(const hd_hook_ctx *ctx, hd_logits *logits)
{
    const agent *p = ctx->params;
    const agent_site *s = ctx->made;
    if (!s->on) return HD_OK;
    return hd_logits_scale_rows(logits, &ctx->call->q_layout, HD_TOKENS_ALL,
                                powf(ctx->call->scale, p->k_scale2 - 1.0f));
}

typedef struct agent_restore {
    const agent *p;
    const agent_site *s;
    hd_tensor out, v; // v: what a share is taken of, and where a merged row waits
    const int32_t *place;
    int64_t row;
} agent_restore;

static void add_share(const agent_restore *r, hd_tensor to, int64_t token)
{
    const float share = r->s->on ? r->p->k_shortcut : 0.0f;
    for (int64_t h = 0; h < r->s->heads; h++) {
        const int64_t o = offset_of(r->out, r->row, token, h),
                      v = offset_of(r->v, r->row, token, h);
        const int64_t y = offset_of(to, r->row, token, h);
        for (int64_t d = 0; d < r->s->value_dim; d++) {
            float x = load(r->out.data, r->out.dtype, o + d);
            if (share != 0.0f) x += share * load(r->v.data, r->v.dtype, v + d);
            store(to.data, to.dtype, y + d, x);
        }
    }
}

// Item: some result tokens with their share of v, over the merged v or (pool) in their place.
static hd_status share_item(void *arg, int64_t item, int thread)
{
    const agent_restore *r = arg;
    (void)thread;
    for (int64_t i = item * AGENT_PIECE; i < r->s->kept && i < (item + 1) * AGENT_PIECE; i++)
        add_share(r, r->place ? r->v : r->out, i);
    return HD_OK;
}

// Item: some tokens of the grid get their group's result.
static hd_status restore_item(void *arg, int64_t item, int thread)
{
    const agent_restore *r = arg;
    (void)thread;
    for (int64_t i = item * AGENT_PIECE; i < r->s->grid.tokens && i < (item + 1) * AGENT_PIECE; i++)
        copy_token(r->out, i, r->v, r->place[i], r->row);
    return HD_OK;
}

static hd_status agent_output(const hd_hook_ctx *ctx, hd_attention_output *output)
{
    const agent *p = ctx->params;
    const agent_site *s = ctx->made;
    const bool pool = p->source == AGENT_POOL;
    if (!pool && s->merged == 0) return HD_OK;
    agent_work w = work_in(ctx);
    for (int64_t b = 0; b < ctx->call->q.dim[0]; b++) {
        if (!ctx->active[b]) continue;
        agent_restore r = {p, s, output->out, w.v, pool ? NULL : w.place + b * s->grid.tokens, b};
        const int64_t tokens = s->grid.tokens;
        HD_TRY(hd_parallel_for(ctx->ex->pool, (s->kept + AGENT_PIECE - 1) / AGENT_PIECE, share_item,
                               &r));
        if (!pool)
            HD_TRY(hd_parallel_for(ctx->ex->pool, (tokens + AGENT_PIECE - 1) / AGENT_PIECE,
                                   restore_item, &r));
    }
    return HD_OK;
}

const hd_processor_class hd_agent = {
    .name = "agent",
    .summary = "Attention through a few agent tokens, or over merged tokens (ToMe).",
    .params = agent_params,
    .params_size = sizeof(agent),
    .edits = HD_EDITS_Q | HD_EDITS_K | HD_EDITS_V | HD_MOVES_TOKENS,
    .check = agent_check,
    .prepare = agent_prepare,
    .pass = agent_pass,
    .tokens = agent_tokens,
    .logits = agent_logits,
    .output = agent_output,
    .release = free,
    .rows_alike = true,
};
