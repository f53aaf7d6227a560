/* sparse/vmoba.c: every query keeps the key blocks whose mean key suits it best, its own block
 * always; blocks are slabs of frames, columns of space or boxes, by layer in turn.
 *
 * { "use": "vmoba", "block3": [4, 6, 4], "k3": 18, "cycle": [0, 0, 1], "steps": [0.25, 1] }
 *
 * The softmax is exact over what is kept. Selection is per query, so tiles are shared by queries
 * that do not agree: sparse/vmoba_layout.h has the two ways to carry that, and "auto" takes the
 * cheaper by the pairs that each makes the kernel compute. Pictures (one frame) have 2-D blocks in
 * every layer. Text is a dense tail: never gated, seen by all.
 *
 * VMoBA (Wu et al., arXiv 2506.23858); defaults are those of its Wan 2.1 runs. top-k 1 is block
 * diagonal and tau 1 is dense here, by definition; the published code makes the first dense and
 * misses blocks in the second. Keeps no state. */
#include "engine/attention/planner/means.h"
#include "engine/attention/planner/tiling.h"
#include "sparse/all.h"
#include "sparse/vmoba_layout.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef enum vmoba_mode {
    VMOBA_TOPK,
    VMOBA_THRESHOLD,
} vmoba_mode;

typedef enum vmoba_layout {
    VMOBA_AUTO,
    VMOBA_A,
    VMOBA_B,
    VMOBA_C,
} vmoba_layout;

typedef struct vmoba {
    const hd_json *block1, *block2, *block3, *cycle;
    double frames;       // of block1
    int64_t box2[2];     // of block2; 0: by the grid
    int64_t box3[3];     // of block3
    int64_t in_cycle[3]; // layers of each kind
    int64_t k1, k2, k3;  // 0: by the grid
    int64_t dense_layers;
    vmoba_mode mode;
    int scope; // 0: by the mode; else hd_vmoba_scope + 1
    vmoba_layout layout;
    float tau, eps;
    bool pool_rows;
} vmoba;

static const char *const vmoba_modes[] = {"topk", "threshold", NULL};
static const char *const vmoba_scopes[] = {"auto", "local", "global", "block", "overall", NULL};
static const char *const vmoba_layouts[] = {"auto", "A", "B", "C", NULL};

static const hd_param vmoba_params[] = {
    HD_PARAM_ENUM(vmoba, mode, .def_text = "topk", .names = vmoba_modes,
                  .help = "a number of blocks, or a share of the similarity"),
    HD_PARAM_ENUM(vmoba, scope, .def_text = "auto", .names = vmoba_scopes,
                  .help = "what competes: blocks of a query (local), of a head (global), of all; "
                          "auto: local with topk, global with threshold"),
    HD_PARAM_FLOAT(vmoba, tau, .def = 0.25, .min = 1e-6, .max = 1.0,
                   .help = "threshold: share of the min-max normalised similarity"),
    HD_PARAM_INT(vmoba, k1, .def = 0, .min = 0, .max = 1e6,
                 .help = "blocks per query in 1-D layers, its own counted; 0: by the grid"),
    HD_PARAM_INT(vmoba, k2, .def = 0, .min = 0, .max = 1e6, .help = "in 2-D layers"),
    HD_PARAM_INT(vmoba, k3, .def = 0, .min = 0, .max = 1e6, .help = "in 3-D layers"),
    HD_PARAM_JSON(vmoba, block1, .help = "frames of a 1-D block, may be a fraction; default 3"),
    HD_PARAM_JSON(vmoba, block2, .help = "height, width of a 2-D block; default by the grid"),
    HD_PARAM_JSON(vmoba, block3, .help = "frames, height, width of a 3-D block; by the grid"),
    HD_PARAM_JSON(vmoba, cycle, .help = "1-D, 2-D and 3-D layers in a cycle; default 1, 1, 1"),
    HD_PARAM_INT(vmoba, dense_layers, .def = 0, .min = 0, .max = 1e6,
                 .help = "first layers, which stay dense"),
    HD_PARAM_FLOAT(vmoba, eps, .def = 1e-6, .min = 0.0, .max = 1.0,
                   .help = "added to the sum of similarities"),
    HD_PARAM_BOOL(vmoba, pool_rows, .def = 0,
                  .help = "batch rows compete with each other, as in the published code"),
    HD_PARAM_ENUM(vmoba, layout, .def_text = "auto", .names = vmoba_layouts,
                  .help = "A: row masks; C: queries sorted by their blocks; B: not built"),
    HD_PARAM_END,
};

static hd_vmoba_scope vmoba_scope_of(const vmoba *p)
{
    if (p->scope > 0) return (hd_vmoba_scope)(p->scope - 1);
    return p->mode == VMOBA_TOPK ? HD_VMOBA_LOCAL : HD_VMOBA_GLOBAL;
}

static hd_status vmoba_check(void *params)
{
    vmoba *p = params;
    int64_t count;
    p->frames = 3;
    p->in_cycle[0] = p->in_cycle[1] = p->in_cycle[2] = 1;
    if (p->block1) HD_TRY(hd_json_to_double(p->block1, 1e-6, 1e6, &p->frames));
    if (p->block2) HD_TRY(hd_json_to_ints(p->block2, 1, 1000000, 2, 2, p->box2, &count));
    if (p->block3) HD_TRY(hd_json_to_ints(p->block3, 1, 1000000, 3, 3, p->box3, &count));
    if (p->cycle) HD_TRY(hd_json_to_ints(p->cycle, 0, 1000, 3, 3, p->in_cycle, &count));
    if (p->in_cycle[0] + p->in_cycle[1] + p->in_cycle[2] == 0)
        return hd_json_fail(p->cycle, HD_ERR_ARGUMENT, "has no layers at all");
    if (p->layout == VMOBA_B)
        return hd_fail(HD_ERR_UNSUPPORTED,
                       "layout is \"B\", which needs lists of queries by key block; the kernel has "
                       "lists of keys by query tile only: use \"A\", \"C\" or \"auto\"");
    if (p->mode == VMOBA_TOPK && vmoba_scope_of(p) == HD_VMOBA_BLOCK)
        return hd_fail(HD_ERR_ARGUMENT,
                       "scope is \"block\", which has no top-k form; use mode \"threshold\", or "
                       "scope \"local\", \"global\" or \"overall\"");
    return HD_OK;
}

// What the published runs used on their grids.
static const struct vmoba_grid {
    int64_t grid[3], box2[2], box3[3], k[3];
} vmoba_grids[] = {
    {{21, 30, 52}, {5, 13}, {7, 5, 13}, {2, 6, 18}},
    {{21, 45, 80}, {9, 10}, {7, 15, 20}, {2, 10, 9}},
    {{24, 36, 64}, {6, 8}, {8, 12, 8}, {0, 0, 0}}, // trained with a threshold
    {{36, 30, 52}, {5, 13}, {12, 10, 13}, {0, 0, 0}},
};

// What a site needs at every call.
typedef struct vmoba_site {
    bool dense; // one of the first layers
    hd_tiling *blocks;
    hd_vmoba_tiles tiles;
    hd_vmoba_shape shape;
    hd_vmoba_rule rule;
} vmoba_site;

static void vmoba_release(void *made)
{
    vmoba_site *site = made;
    if (!site) return;
    hd_tiling_free(site->blocks);
    hd_vmoba_tiles_free(&site->tiles);
    free(site);
}

// 0: 1-D, 1: 2-D, 2: 3-D; -1: dense.
static hd_status vmoba_kind(const vmoba *p, const hd_grid *grid, const hd_site *where, int *kind)
{
    const int64_t *n = p->in_cycle, cycle = n[0] + n[1] + n[2];
    const bool one_kind = n[0] == cycle || n[1] == cycle || n[2] == cycle || grid->size[0] == 1;
    long long layer = 0;
    if (sscanf(where->path, "block.%lld", &layer) != 1 && (!one_kind || p->dense_layers > 0))
        return hd_fail(HD_ERR_UNSUPPORTED,
                       "blocks go by the number of the layer, and %s has none; give a \"cycle\" "
                       "with one kind of layer (as [0, 0, 1]) and no \"dense_layers\"",
                       where->path);
    const int64_t at = (layer - p->dense_layers) % cycle;
    *kind = at < n[0] ? 0 : at < n[0] + n[1] ? 1 : 2;
    if (grid->size[0] == 1) *kind = 1;
    if (layer < p->dense_layers) *kind = -1;
    return HD_OK;
}

static hd_status vmoba_missing(const hd_grid *grid, const char *field)
{
    return hd_fail(HD_ERR_ARGUMENT,
                   "\"%s\" has no default for a grid of %lld x %lld x %lld (only grids of the "
                   "published runs have one): give it",
                   field, (long long)grid->size[0], (long long)grid->size[1],
                   (long long)grid->size[2]);
}

// Box and number of blocks per query of this kind of layer.
static hd_status vmoba_options(const vmoba *p, const hd_grid *grid, int kind,
                               hd_tiling_options *options, int64_t *top)
{
    static const struct vmoba_grid none;
    static const char *const boxes[] = {"block1", "block2", "block3"}, *const tops[] = {"k1", "k2",
                                                                                        "k3"};
    const struct vmoba_grid *known = &none;
    for (size_t i = 0; i < HD_COUNT(vmoba_grids); i++)
        if (memcmp(vmoba_grids[i].grid, grid->size, sizeof grid->size) == 0)
            known = &vmoba_grids[i];
    const int64_t *box2 = p->box2[0] ? p->box2 : known->box2;
    const int64_t *box3 = p->box3[0] ? p->box3 : known->box3;
    const int64_t k[3] = {p->k1, p->k2, p->k3};
    *options = (hd_tiling_options){0};
    if (kind == 0)
        options->tile = (int64_t)(p->frames * (double)(grid->size[1] * grid->size[2]));
    else if (kind == 1)
        *options = (hd_tiling_options){.box = {box2[0] ? grid->size[0] : 0, box2[0], box2[1]}};
    else
        *options = (hd_tiling_options){.box = {box3[0], box3[1], box3[2]}};
    if (kind > 0 && options->box[0] == 0) return vmoba_missing(grid, boxes[kind]);
    if (kind == 0 && options->tile < 1)
        return hd_fail(HD_ERR_ARGUMENT, "block1 is %g frames, less than a token", p->frames);
    *top = k[kind] ? k[kind] : known->k[kind];
    if (p->mode == VMOBA_TOPK && *top == 0) return vmoba_missing(grid, tops[kind]);
    return HD_OK;
}

static hd_status vmoba_make(vmoba_site *site, const vmoba *p, const hd_attention_call *call)
{
    hd_grid grid;
    hd_tiling_options options;
    int kind;
    int64_t top;
    HD_TRY(hd_grid_of_call(&grid, call));
    HD_TRY(vmoba_kind(p, &grid, &call->site, &kind));
    site->dense = kind < 0;
    if (site->dense) return HD_OK;
    HD_TRY(vmoba_options(p, &grid, kind, &options, &top));
    HD_TRY(hd_tiling_create(&site->blocks, call, options));
    const hd_tiling *t = site->blocks;
    site->shape = (hd_vmoba_shape){.heads = call->q.dim[2],
                                   .ranks = t->ranks,
                                   .blocks = t->tiles,
                                   .panels = (t->ranks + HD_PLANNER_LANES - 1) / HD_PLANNER_LANES,
                                   .dim = call->q.dim[3],
                                   .bound = t->bound};
    site->rule = (hd_vmoba_rule){.scope = vmoba_scope_of(p),
                                 .top = p->mode == VMOBA_TOPK ? top : 0,
                                 .tau = (double)p->tau,
                                 .eps = (double)p->eps,
                                 .pool_rows = p->pool_rows};
    const double masks =
        (double)site->shape.heads * (double)site->shape.panels * (double)site->shape.blocks;
    if (masks > INT32_MAX || t->tiles > 65535)
        return hd_fail(HD_ERR_UNSUPPORTED,
                       "%lld blocks of %lld tokens in %lld heads are more than a plan can number; "
                       "take larger blocks",
                       (long long)t->tiles, (long long)t->ranks, (long long)site->shape.heads);
    return hd_vmoba_tiles_make(&site->tiles, &site->shape);
}

// One batch row's memory.
typedef struct vmoba_room {
    hd_vmoba_gates gates;
    hd_vmoba_layout layout;
    hd_plan *plan;
} vmoba_room;

static vmoba_room vmoba_take(hd_room *room, const vmoba_site *site, const vmoba *p, int64_t queries,
                             int64_t keys)
{
    vmoba_room r;
    r.gates = hd_vmoba_gates_take(room, &site->shape, site->rule.scope == HD_VMOBA_LOCAL);
    r.layout =
        hd_vmoba_layout_take(room, &site->shape, &site->tiles, p->layout != VMOBA_A, queries, keys);
    r.plan = hd_room_take(room, 1, sizeof *r.plan);
    return r;
}

static hd_status vmoba_prepare(hd_prepare_ctx *ctx)
{
    const vmoba *p = ctx->params;
    vmoba_site *site = calloc(1, sizeof *site);
    if (!site) return hd_fail(HD_ERR_NOMEM, "no memory for the site");
    hd_status status = vmoba_make(site, p, ctx->call);
    if (status != HD_OK) {
        vmoba_release(site);
        return status;
    }
    ctx->made = site;
    if (site->dense) return HD_OK;
    hd_room room = {0};
    for (int64_t b = 0; b < ctx->call->q.dim[0]; b++)
        vmoba_take(&room, site, p, ctx->call->q.dim[1], ctx->call->k.dim[1]);
    hd_room_take(&room, ctx->call->q.dim[0], sizeof(vmoba_room));
    hd_room_take(&room, ctx->call->q.dim[0], sizeof(hd_vmoba_gates *));
    if (site->rule.scope != HD_VMOBA_LOCAL) hd_vmoba_radix_take(&room);
    ctx->scratch_bytes = room.used;
    return HD_OK;
}

// The cheaper of the layouts that the preset leaves open.
static hd_status vmoba_lay_out(const hd_hook_ctx *ctx, const hd_tokens *tokens, const vmoba_room *r)
{
    const vmoba *p = ctx->params;
    const vmoba_site *site = ctx->made;
    const hd_vmoba_shape *s = &site->shape;
    const int64_t queries = tokens->q.dim[1], keys = tokens->k.dim[1];
    const uint64_t *words = r->gates.words;
    const bool choose = p->layout == VMOBA_AUTO && hd_vmoba_sortable(s);
    bool sorted = p->layout == VMOBA_C;
    int64_t plain = 0;
    if (choose) { // sorting pays only where the queries of a tile disagree
        plain = hd_vmoba_pairs(s, words, false);
        sorted = (double)plain > 1.1 * (double)hd_vmoba_pairs(s, words, true);
    }
    if (sorted) HD_TRY(hd_vmoba_sort(ctx->ex, s, site->blocks, words, &r->layout, queries, keys));
    if (sorted && choose)
        sorted = (double)hd_vmoba_pairs(s, r->layout.words, false) < 0.97 * (double)plain;
    if (sorted) {
        words = r->layout.words;
        r->plan->orders = s->heads;
        r->plan->query_order = r->layout.query_order;
        r->plan->key_order = r->layout.key_order;
    }
    return hd_vmoba_list(ctx->ex, s, &site->tiles, words, &r->layout, r->plan);
}

static hd_status vmoba_gate_row(const hd_hook_ctx *ctx, const hd_tokens *tokens, int64_t row,
                                const vmoba_room *r)
{
    const vmoba_site *site = ctx->made;
    const int64_t heads = site->shape.heads;
    HD_TRY(hd_tiling_plan(site->blocks, tokens->q.dim[1], tokens->k.dim[1], r->plan));
    for (int64_t h = 0; h < heads; h++) {
        r->gates.query[h] = hd_tiling_tokens(site->blocks, tokens->q, row, h, heads);
        r->gates.key[h] = hd_tiling_tokens(site->blocks, tokens->k, row, h, heads);
    }
    return hd_vmoba_gate(ctx->ex, &site->shape, &site->rule, &r->gates);
}

static hd_status vmoba_plan(const hd_hook_ctx *ctx, const hd_tokens *tokens, const hd_plan **plan)
{
    const vmoba *p = ctx->params;
    const vmoba_site *site = ctx->made;
    const int64_t rows = tokens->q.dim[0];
    if (site->dense) return HD_OK;
    hd_room room = {ctx->scratch, 0};
    vmoba_room *r = hd_room_take(&room, rows, sizeof *r);
    const hd_vmoba_gates **gates = hd_room_take(&room, rows, sizeof *gates);
    int64_t active = 0;
    for (int64_t b = 0; b < rows; b++) {
        r[b] = vmoba_take(&room, site, p, ctx->call->q.dim[1], ctx->call->k.dim[1]);
        if (!ctx->active[b]) continue;
        HD_TRY(vmoba_gate_row(ctx, tokens, b, &r[b]));
        gates[active++] = &r[b].gates;
    }
    if (site->rule.scope != HD_VMOBA_LOCAL && active > 0)
        HD_TRY(hd_vmoba_select(ctx->ex, &site->shape, &site->rule, gates, active,
                               hd_vmoba_radix_take(&room)));
    for (int64_t b = 0; b < rows; b++) {
        if (!ctx->active[b]) continue;
        HD_TRY(vmoba_lay_out(ctx, tokens, &r[b]));
        plan[b] = r[b].plan;
    }
    return HD_OK;
}

const hd_processor_class hd_vmoba = {
    .name = "vmoba",
    .summary = "Each query keeps the key blocks with the best mean key, and its own.",
    .params = vmoba_params,
    .params_size = sizeof(vmoba),
    .check = vmoba_check,
    .prepare = vmoba_prepare,
    .plan = vmoba_plan,
    .release = vmoba_release,
    .rows_alike = true,
};
