/* sparse/gna.c: attention to a box of tokens around each query (Hassani et al., Generalized
 * Neighborhood Attention, arXiv 2504.16922).
 *
 * { "use": "gna", "window": [18, 24, 24], "stride": [16, 8, 8], "steps": [0.3, 1.0],
 *   "sites": ["block.** joint"] }
 *
 * window w, stride s and dilation d per axis (frames, height, width; a picture has the last two)
 * make neighborhood attention (s = 1), its dilated form (d > 1), strided windows (1 < s < w) and
 * blocked attention (s = w). Text and other tokens beside the grid see everything and are seen by
 * everything. The plan follows from shapes alone: it is made once per site, before the first step,
 * and shared by all rows, and by all heads unless "heads" says otherwise. Where every window is the
 * whole grid the call stays dense. */
#include "sparse/gna.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "sparse/all.h"

enum { ON_SMALL_ERROR, ON_SMALL_CLAMP };
static const char *const on_small_names[] = {"error", "clamp", NULL};
static const char *const kv_tiling_names[] = {"auto", "static", "dynamic", NULL};

static const hd_param gna_params[] = {
    HD_PARAM_JSON(hd_gna_options, window, .required = true,
                  .help = "keys seen per axis: a number or one for each axis; -1: all"),
    HD_PARAM_JSON(hd_gna_options, stride,
                  .help = "neighbouring queries that share a window, 1 to window; default 1"),
    HD_PARAM_JSON(hd_gna_options, dilation, .help = "see every so many-th token; default 1"),
    HD_PARAM_JSON(hd_gna_options, causal,
                  .help = "see nothing behind oneself on this axis; default false"),
    HD_PARAM_ENUM(hd_gna_options, on_small, .def_text = "error", .names = on_small_names,
                  .help = "a window larger than its axis: refuse, or as large as fits"),
    HD_PARAM_JSON(hd_gna_options, base_size,
                  .help = "the grid that the numbers are for (-1: the same): others scale them"),
    HD_PARAM_BOOL(hd_gna_options, snap, .def = 1, .given_flag = true,
                  .given_offset = offsetof(hd_gna_options, snap_given),
                  .help = "with base_size: round scaled windows and strides up to whole tiles"),
    HD_PARAM_JSON(hd_gna_options, extra,
                  .help = "[[from, to], ...]: the tokens beside the grid; default all there are"),
    HD_PARAM_JSON(hd_gna_options, tile_q, .help = "queries per tile and axis; default: chosen"),
    HD_PARAM_JSON(hd_gna_options, tile_kv, .help = "keys per tile and axis; default: chosen"),
    HD_PARAM_ENUM(hd_gna_options, kv_tiling, .def_text = "auto", .names = kv_tiling_names,
                  .help = "key tiles of one fixed cut, or from each query tile's first key on"),
    HD_PARAM_JSON(hd_gna_options, heads,
                  .help =
                      "[{\"heads\": [0, 1], \"window\": ...}, ...]: heads with a window, stride "
                      "and dilation of their own"),
    HD_PARAM_FLOAT(hd_gna_options, scale, .def = 0.0, .given_flag = true,
                   .given_offset = offsetof(hd_gna_options, scale_given),
                   .help = "factor of the scores; not given: the model's own"),
    HD_PARAM_BOOL(hd_gna_options, strict, .help = "refuse axes and windows of a single token"),
    HD_PARAM_END,
};

/* --- reading the preset */

static const hd_json *entry(const hd_json *node, const hd_gna_list *list, int64_t i)
{
    return list->single ? node : hd_json_at(node, i);
}

// Numbers of at least `least` (or -1, where that means the whole axis).
static hd_status read_list(hd_gna_list *out, const hd_json *node, int64_t least, bool whole,
                           const char *why)
{
    if (!node) return HD_OK;
    out->single = hd_json_kind(node) != HD_JSON_ARRAY;
    HD_TRY(hd_json_to_ints(node, INT32_MIN, INT32_MAX, 1, 3, out->value, &out->count));
    for (int64_t i = 0; i < out->count; i++)
        if (out->value[i] < least && !(whole && out->value[i] == -1))
            return hd_json_fail(entry(node, out, i), HD_ERR_ARGUMENT, "is %lld: %s",
                                (long long)out->value[i], why);
    return HD_OK;
}

static hd_status read_causal(hd_gna_list *out, const hd_json *node)
{
    if (!node) return HD_OK;
    bool causal[3];
    out->single = hd_json_kind(node) != HD_JSON_ARRAY;
    HD_TRY(hd_json_to_bools(node, 1, 3, causal, &out->count));
    for (int64_t i = 0; i < out->count; i++)
        out->value[i] = causal[i];
    return HD_OK;
}

static hd_status same_length(const hd_gna_list *list, const hd_json *node, const hd_gna_list *like,
                             const char *name)
{
    if (list->count == 0 || list->single || like->count == 0 || like->single ||
        list->count == like->count)
        return HD_OK;
    return hd_json_fail(node, HD_ERR_ARGUMENT,
                        "has %lld numbers but %s has %lld: give one for each axis in both, or a "
                        "single number for all",
                        (long long)list->count, name, (long long)like->count);
}

static hd_status read_window(hd_gna_rule *rule, const hd_json *window, const hd_json *stride,
                             const hd_json *dilation)
{
    HD_TRY(read_list(&rule->window, window, 1, true,
                     "a window is at least 1 key wide; -1 means the whole axis"));
    HD_TRY(read_list(&rule->stride, stride, 1, false,
                     "a window is shared by at least 1 query; use 1 for a window each"));
    HD_TRY(read_list(&rule->dilation, dilation, 1, false,
                     "must be at least 1, which sees every token"));
    HD_TRY(same_length(&rule->stride, stride, &rule->window, "window"));
    return same_length(&rule->dilation, dilation, &rule->window, "window");
}

typedef struct gna_row { // an entry of "heads"
    const hd_json *heads, *window, *stride, *dilation;
} gna_row;

static const hd_param gna_row_params[] = {
    HD_PARAM_JSON(gna_row, heads, .required = true, .help = "numbers of the heads"),
    HD_PARAM_JSON(gna_row, window, .help = "as above"),
    HD_PARAM_JSON(gna_row, stride, .help = "as above"),
    HD_PARAM_JSON(gna_row, dilation, .help = "as above"),
    HD_PARAM_END,
};

static hd_status check_disjoint(const hd_gna_options *o, const hd_gna_heads *row, int64_t entries)
{
    for (const hd_gna_heads *other = o->rows; other <= row; other++)
        for (int64_t a = 0; a < row->count && a < entries; a++)
            for (int64_t b = 0; b < (other == row ? a : other->count); b++)
                if (row->head[a] == other->head[b])
                    return hd_json_fail(row->node, HD_ERR_ARGUMENT,
                                        "names head %d, which \"heads\" already has: each head has "
                                        "one window",
                                        (int)row->head[a]);
    return HD_OK;
}

static hd_status read_row(hd_gna_options *o, hd_gna_heads *row)
{
    gna_row r = {0};
    HD_TRY(hd_json_expect(row->node, HD_JSON_OBJECT));
    HD_TRY(hd_params_read(gna_row_params, &r, row->node, NULL));
    const int64_t entries = hd_json_kind(r.heads) == HD_JSON_ARRAY ? hd_json_count(r.heads) : 1;
    int64_t *number = calloc((size_t)(entries ? entries : 1), sizeof *number);
    row->head = calloc((size_t)(entries ? entries : 1), sizeof *row->head);
    hd_status status = HD_OK;
    if (!number || !row->head)
        status = hd_fail(HD_ERR_NOMEM, "gna: no memory for %lld heads", (long long)entries);
    if (status == HD_OK)
        status = hd_json_to_ints(r.heads, 0, INT32_MAX, 1, entries, number, &row->count);
    for (int64_t i = 0; i < row->count && status == HD_OK; i++)
        row->head[i] = (int32_t)number[i];
    free(number);
    HD_TRY(status);
    HD_TRY(check_disjoint(o, row, entries));
    row->rule = o->rule; // what the row does not say
    if (r.window) row->rule.window = (hd_gna_list){.count = 0};
    if (r.stride) row->rule.stride = (hd_gna_list){.count = 0};
    if (r.dilation) row->rule.dilation = (hd_gna_list){.count = 0};
    return read_window(&row->rule, r.window, r.stride, r.dilation);
}

static hd_status read_rows(hd_gna_options *o)
{
    if (!o->heads) return HD_OK;
    HD_TRY(hd_json_expect(o->heads, HD_JSON_ARRAY));
    const int64_t count = hd_json_count(o->heads);
    o->rows = calloc((size_t)(count ? count : 1), sizeof *o->rows);
    if (!o->rows) return hd_fail(HD_ERR_NOMEM, "gna: no memory for %lld windows", (long long)count);
    for (int64_t i = 0; i < count; i++) {
        o->rows[i].node = hd_json_at(o->heads, i);
        o->row_count = i + 1;
        HD_TRY(read_row(o, &o->rows[i]));
    }
    return HD_OK;
}

static hd_status read_tiles(hd_gna_options *o)
{
    static const char tile_why[] = "a tile is at least 1 token long";
    if (!o->tile_q != !o->tile_kv)
        return hd_json_fail(o->tile_q ? o->tile_q : o->tile_kv, HD_ERR_ARGUMENT,
                            "is given without \"%s\": give both, or neither and they are chosen",
                            o->tile_q ? "tile_kv" : "tile_q");
    HD_TRY(read_list(&o->query_tile, o->tile_q, 1, false, tile_why));
    HD_TRY(read_list(&o->key_tile, o->tile_kv, 1, false, tile_why));
    HD_TRY(same_length(&o->query_tile, o->tile_q, &o->rule.window, "window"));
    return same_length(&o->key_tile, o->tile_kv, &o->rule.window, "window");
}

static hd_status gna_check(void *params)
{
    hd_gna_options *o = params;
    HD_TRY(read_window(&o->rule, o->window, o->stride, o->dilation));
    HD_TRY(read_causal(&o->rule.causal, o->causal));
    HD_TRY(same_length(&o->rule.causal, o->causal, &o->rule.window, "window"));
    HD_TRY(
        read_list(&o->limits.base_size, o->base_size, 1, true,
                  "an axis of the grid it was made for has at least 1 token; -1 means as many as "
                  "there are"));
    HD_TRY(same_length(&o->limits.base_size, o->base_size, &o->rule.window, "window"));
    if (o->snap_given && o->snap && !o->base_size)
        return hd_fail(HD_ERR_ARGUMENT,
                       "\"snap\" is true but there is no \"base_size\": only scaled windows are "
                       "rounded to tiles");
    o->limits.clamp = o->on_small == ON_SMALL_CLAMP;
    o->limits.strict = o->strict;
    HD_TRY(read_tiles(o));
    return read_rows(o);
}

static void gna_clear(void *params)
{
    hd_gna_options *o = params;
    for (int64_t i = 0; i < o->row_count; i++)
        free(o->rows[i].head);
    free(o->rows);
    o->rows = NULL;
    o->row_count = 0;
}

/* --- at a site */

// Tokens beside the grid, as "extra" says: all of them, and nothing else.
static hd_status check_extra(const hd_gna_options *o, const hd_grid *grid, int64_t keys)
{
    if (!o->extra) return HD_OK;
    HD_TRY(hd_json_expect(o->extra, HD_JSON_ARRAY));
    const int64_t grid_end = grid->token + hd_grid_tokens(grid);
    int64_t sum = 0, last = 0;
    for (int64_t i = 0; i < hd_json_count(o->extra); i++) {
        const hd_json *node = hd_json_at(o->extra, i);
        int64_t range[2], count;
        HD_TRY(hd_json_to_ints(node, 0, INT32_MAX, 2, 2, range, &count));
        if (range[0] >= range[1] || range[0] < last || range[1] > keys ||
            (range[0] < grid_end && range[1] > grid->token))
            return hd_json_fail(node, HD_ERR_SHAPE,
                                "is [%lld, %lld]: must ascend, lie within the %lld tokens, and "
                                "leave out the grid's %lld to %lld",
                                (long long)range[0], (long long)range[1], (long long)keys,
                                (long long)grid->token, (long long)grid_end);
        sum += range[1] - range[0];
        last = range[1];
    }
    if (sum + hd_grid_tokens(grid) != keys)
        return hd_json_fail(o->extra, HD_ERR_SHAPE,
                            "names %lld tokens, which with the grid's %lld are not the %lld of the "
                            "sequence; leave \"extra\" out to mean all there are",
                            (long long)sum, (long long)hd_grid_tokens(grid), (long long)keys);
    return HD_OK;
}

static hd_status check_heads(const hd_attention_call *call)
{
    if (call->k.dim[2] < 1 || call->q.dim[2] % call->k.dim[2])
        return hd_fail(HD_ERR_SHAPE,
                       "its %lld query heads are no multiple of its %lld key heads: they cannot "
                       "share them evenly",
                       (long long)call->q.dim[2], (long long)call->k.dim[2]);
    if (call->q.dim[3] != call->k.dim[3])
        return hd_fail(HD_ERR_SHAPE,
                       "its query heads have %lld channels, its key heads %lld: both must be the "
                       "same",
                       (long long)call->q.dim[3], (long long)call->k.dim[3]);
    return HD_OK;
}

static hd_status resolve_rules(hd_gna_site *s, const hd_gna_options *o, int64_t heads)
{
    hd_gna_problem *p = &s->problem;
    p->rules = 1 + o->row_count;
    p->heads = o->row_count ? heads : 1;
    s->rule = calloc((size_t)p->rules, sizeof *s->rule);
    s->rule_of = calloc((size_t)p->heads, sizeof *s->rule_of);
    if (!s->rule || !s->rule_of)
        return hd_fail(HD_ERR_NOMEM, "gna: no memory for the windows of %lld heads",
                       (long long)heads);
    p->rule = (const hd_gna_axis(*)[3])s->rule;
    p->rule_of = s->rule_of;
    HD_TRY(hd_gna_resolve(s->rule[0], &o->rule, &o->limits, &p->grid));
    for (int64_t r = 0; r < o->row_count; r++) {
        const hd_gna_heads *row = &o->rows[r];
        hd_status status = hd_gna_resolve(s->rule[r + 1], &row->rule, &o->limits, &p->grid);
        if (status != HD_OK) return hd_note(status, "in heads[%lld]", (long long)r);
        for (int64_t i = 0; i < row->count; i++) {
            if (row->head[i] >= heads)
                return hd_json_fail(row->node, HD_ERR_ARGUMENT,
                                    "names head %d, a site it acts on has %lld (0 to %lld); choose "
                                    "\"sites\" with heads==",
                                    (int)row->head[i], (long long)heads, (long long)(heads - 1));
            s->rule_of[row->head[i]] = (int32_t)(r + 1);
        }
    }
    return HD_OK;
}

static bool all_dense(const hd_gna_problem *p)
{
    for (int64_t r = 0; r < p->rules; r++)
        for (int i = 0; i < 3; i++)
            if (!hd_gna_is_dense(&p->rule[r][i], p->grid.size[i])) return false;
    return true;
}

// A few tiles that would do, for a message.
static hd_status fail_tiles(const hd_gna_site *s, const char *name, int64_t has, int64_t most)
{
    hd_gna_tiles best[4];
    int64_t count;
    char text[400] = "";
    size_t used = 0;
    HD_TRY(hd_gna_choose(best, &count, 4, &s->problem, HD_GNA_KV_AUTO));
    for (int64_t i = 0; i < count && used < sizeof text; i++)
        used += (size_t)snprintf(text + used, sizeof text - used,
                                 "%s[%lld, %lld, %lld] with [%lld, %lld, %lld]", i ? ", " : "",
                                 (long long)best[i].query[0], (long long)best[i].query[1],
                                 (long long)best[i].query[2], (long long)best[i].key[0],
                                 (long long)best[i].key[1], (long long)best[i].key[2]);
    return hd_fail(HD_ERR_UNSUPPORTED,
                   "%s has %lld tokens, the kernel's tiles at most %lld; tile_q with tile_kv that "
                   "suit this grid: %s",
                   name, (long long)has, (long long)most, text);
}

static hd_status given_tiles(hd_gna_site *s, const hd_gna_options *o, hd_gna_kv kv)
{
    hd_gna_tiles *t = &s->tiles;
    HD_TRY(hd_gna_spread(t->query, &o->query_tile, "tile_q", &s->problem.grid, 1));
    HD_TRY(hd_gna_spread(t->key, &o->key_tile, "tile_kv", &s->problem.grid, 1));
    int64_t queries = 1, keys = 1;
    for (int i = 0; i < 3; i++) {
        queries = queries > HD_GNA_QUERY_MOST ? queries : queries * t->query[i];
        keys = keys > HD_GNA_KEY_MOST ? keys : keys * t->key[i];
    }
    if (queries > HD_GNA_QUERY_MOST) return fail_tiles(s, "tile_q", queries, HD_GNA_QUERY_MOST);
    if (keys > HD_GNA_KEY_MOST) return fail_tiles(s, "tile_kv", keys, HD_GNA_KEY_MOST);
    t->dynamic = kv == HD_GNA_KV_DYNAMIC;
    if (kv != HD_GNA_KV_AUTO || hd_gna_dilated(&s->problem)) return HD_OK;
    double cost_static, cost_dynamic;
    hd_gna_tiles dynamic = *t;
    dynamic.dynamic = true;
    HD_TRY(hd_gna_cost(&cost_static, &s->problem, t));
    HD_TRY(hd_gna_cost(&cost_dynamic, &s->problem, &dynamic));
    t->dynamic = cost_dynamic < cost_static;
    return HD_OK;
}

static int64_t up_to_multiple(int64_t x, int64_t of)
{
    return (x + of - 1) / of * of;
}

// Scaled windows and strides to whole tiles, as far as the axis allows. A stride of 1 asks for a
// window of each query's own: it stays.
static void snap_rules(hd_gna_site *s)
{
    for (int64_t r = 0; r < s->problem.rules; r++)
        for (int i = 0; i < 3; i++) {
            hd_gna_axis *a = &s->rule[r][i];
            const int64_t length = s->problem.grid.size[i] / a->dilation;
            const int64_t window = up_to_multiple(a->window, s->tiles.key[i]);
            a->window = window < length ? window : length;
            const int64_t stride = a->stride > 1 ? up_to_multiple(a->stride, s->tiles.query[i]) : 1;
            a->stride = stride < a->window ? stride : a->window;
        }
}

static hd_status resolve_tiles(hd_gna_site *s, const hd_gna_options *o, hd_plan_rest rest)
{
    hd_gna_kv kv = o->kv_tiling;
    if (kv == HD_GNA_KV_DYNAMIC && hd_gna_dilated(&s->problem))
        return hd_fail(
            HD_ERR_UNSUPPORTED,
            "kv_tiling is \"dynamic\" but an axis is dilated: key boxes with free origins "
            "have no dilation; use \"static\" or leave it out");
    if (kv == HD_GNA_KV_DYNAMIC && rest == HD_REST_PROXY)
        return hd_fail(
            HD_ERR_UNSUPPORTED,
            "kv_tiling is \"dynamic\" but \"rest\" is \"proxy\": a proxy stands for a tile "
            "of a fixed cut; use \"static\" or leave it out");
    if (rest == HD_REST_PROXY) kv = HD_GNA_KV_STATIC;
    int64_t count = 1;
    if (o->tile_q)
        HD_TRY(given_tiles(s, o, kv));
    else
        HD_TRY(hd_gna_choose(&s->tiles, &count, 1, &s->problem, kv));
    HD_ENSURE(count == 1);
    if (o->base_size && o->snap) snap_rules(s);
    return HD_OK;
}

static hd_status resolve_site(hd_gna_site *s, const hd_gna_options *o,
                              const hd_attention_call *call, hd_plan_rest rest)
{
    hd_gna_problem *p = &s->problem;
    HD_TRY(hd_grid_of_call(&p->grid, call));
    HD_TRY(check_heads(call));
    p->queries = call->q.dim[1];
    p->keys = call->k.dim[1];
    HD_TRY(check_extra(o, &p->grid, p->keys));
    HD_TRY(resolve_rules(s, o, call->q.dim[2]));
    s->dense = all_dense(p);
    if (s->dense) return HD_OK;
    HD_TRY(resolve_tiles(s, o, rest));
    s->dense = all_dense(p); // rounded up to it
    return HD_OK;
}

hd_status hd_gna_resolve_site(hd_gna_site *out, const hd_gna_options *options,
                              const hd_attention_call *call, hd_plan_rest rest)
{
    *out = (hd_gna_site){.dense = false};
    const hd_status status = resolve_site(out, options, call, rest);
    if (status != HD_OK) hd_gna_site_free(out);
    return status;
}

void hd_gna_site_free(hd_gna_site *site)
{
    free(site->rule);
    free(site->rule_of);
    site->rule = NULL;
    site->rule_of = NULL;
}

// Windows that a small grid has cut are not what was asked for.
static void note_clamped(hd_prepare_ctx *ctx, const hd_gna_options *o, const hd_grid *grid)
{
    hd_gna_axis asked[3], fits[3];
    hd_gna_limits whole = o->limits;
    whole.clamp = false;
    if (!o->limits.clamp || hd_gna_resolve(asked, &o->rule, &whole, grid) == HD_OK) return;
    if (hd_gna_resolve(fits, &o->rule, &o->limits, grid) != HD_OK) return;
    snprintf(ctx->note, sizeof ctx->note, "window cut to %lldx%lldx%lld", (long long)fits[0].window,
             (long long)fits[1].window, (long long)fits[2].window);
}

static hd_status gna_prepare(hd_prepare_ctx *ctx)
{
    hd_gna_site site;
    hd_plan_builder *b = NULL;
    HD_TRY(hd_gna_resolve_site(&site, ctx->params, ctx->call, ctx->rest));
    note_clamped(ctx, ctx->params, &site.problem.grid);
    hd_status status = site.dense ? HD_OK : hd_plan_builder_create(&b);
    if (status == HD_OK && b) status = hd_gna_build(b, &site.problem, &site.tiles);
    hd_gna_site_free(&site);
    if (status == HD_OK)
        ctx->made = b;
    else
        hd_plan_builder_destroy(b);
    return status;
}

static hd_status gna_logits(const hd_hook_ctx *ctx, hd_logits *logits)
{
    const hd_gna_options *o = ctx->params;
    if (!o->scale_given) return HD_OK;
    return hd_logits_scale_rows(logits, &ctx->call->q_layout, HD_TOKENS_ALL,
                                o->scale / ctx->call->scale);
}

const hd_processor_class hd_gna = {
    .name = "gna",
    .summary = "Attend to a window around each query: neighborhood, dilated, strided, blocked.",
    .params = gna_params,
    .params_size = sizeof(hd_gna_options),
    .check = gna_check,
    .clear = gna_clear,
    .prepare = gna_prepare,
    .logits = gna_logits,
    .plan = hd_plan_give_built,
    .release = hd_plan_builder_destroy,
    .static_plan = true,
    .rows_alike = true,
};
