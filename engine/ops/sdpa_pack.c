/* engine/ops/sdpa_pack.c: the keys of an attention call in the order that the plan wants: where
 * each one goes, and the packing.
 *
 * Positions are laid out from the plan's numbers alone, not from its lists: on the dry pass those
 * need not exist yet. What stands for tiles is packed behind them (sdpa_proxy.c). */
#include <string.h>

#include "engine/arena.h"
#include "engine/ops/sdpa_internal.h"

static int64_t units_of(const sdpa_run *run, int64_t elements)
{
    return sdpa_parts(elements, run->kernel->unit);
}

static int64_t grid_tokens(const hd_plan *plan)
{
    return plan->grid[0] * plan->grid[1] * plan->grid[2];
}

void sdpa_lay_out_keys(const sdpa_run *run, sdpa_row *row)
{
    const hd_plan *plan = row->plan;
    const int64_t unit = run->kernel->unit;
    row->orders = plan->key_order && plan->orders > 1 ? run->heads : 1;
    row->packs = row->orders > 1 || sdpa_own_proxies(run, plan) ? run->heads : run->key_heads;
    if (sdpa_boxes(plan)) {
        row->line = units_of(run, plan->grid[2]) * unit;
        row->tail = plan->grid[0] * plan->grid[1] * row->line;
    } else if (plan->key_bound) { // at worst every tile lacks all but one of its last unit
        row->tail = units_of(run, plan->key_ranks + plan->key_tiles * (unit - 1)) * unit;
    } else if (plan->key_tiles > 0) {
        const int64_t last = plan->key_tiles - 1;
        row->tail = (last * units_of(run, plan->key_tile) +
                     units_of(run, plan->key_ranks - last * plan->key_tile)) *
                    unit;
    }
    row->proxy = row->tail + units_of(run, run->keys - plan->key_ranks) * unit;
    row->positions = row->proxy;
    if (sdpa_proxies(plan)) row->positions += units_of(run, plan->key_tiles) * unit;
    // an odd number of cache lines, so that panels do not fall upon each other in the caches
    row->units = row->positions / unit | 1;
    row->key_floats = sdpa_parts(row->positions * sdpa_key_floats(run), 16) * 16;
    row->pack_floats = row->units * (run->value_dim + run->indicators);
    row->pack_floats = row->key_floats + sdpa_parts(row->pack_floats, 16) * 16;
}

static bool take(const hd_exec *ex, void *at, int64_t count, size_t size)
{
    void *bytes = hd_arena_bytes(ex->arena, (size_t)count * size);
    memcpy(at, &bytes, sizeof bytes);
    return bytes != NULL;
}

hd_status sdpa_take_keys(const hd_exec *ex, const sdpa_run *run, sdpa_row *row)
{
    const hd_plan *plan = row->plan;
    bool fits = take(ex, &row->packed, row->packs * row->pack_floats, sizeof *row->packed) &&
                take(ex, &row->token, row->orders * row->positions, sizeof *row->token);
    if (fits && plan->key_bound && !sdpa_boxes(plan))
        fits = take(ex, &row->tile, plan->key_tiles + 1, sizeof *row->tile);
    if (fits && plan->window) fits = take(ex, &row->place, grid_tokens(plan), sizeof *row->place);
    if (fits && sdpa_proxies(plan))
        fits = take(ex, &row->proxy_bias, row->packs * plan->key_tiles, sizeof *row->proxy_bias);
    return fits ? HD_OK : sdpa_arena_full(run);
}

hd_status sdpa_take_measured(const hd_exec *ex, const sdpa_run *run, sdpa_row *row)
{
    if (run->a->qk != HD_NUMBER_INT8 && run->a->pv != HD_NUMBER_INT8) return HD_OK;
    const int64_t floats = run->key_heads * (run->dim + run->value_dim);
    return take(ex, &row->measured, floats, sizeof *row->measured) ? HD_OK : sdpa_arena_full(run);
}

static void *element_at(hd_tensor t, int64_t row, int64_t head, int row_axis, int head_axis)
{
    int64_t at = (t.dim[row_axis] > 1 ? row * t.stride[row_axis] : 0) +
                 (t.dim[head_axis] > 1 ? head * t.stride[head_axis] : 0);
    return (char *)t.data + at * (int64_t)hd_dtype_size(t.dtype);
}

static void head_edits(hd_sdpa_head *h, const sdpa_run *run, int64_t row, int64_t head)
{
    const hd_sdpa *a = run->a;
    if (hd_tensor_given(a->column_bias))
        h->column_bias = element_at(a->column_bias, row, head, 0, 1);
    if (hd_tensor_given(a->bias)) {
        h->bias = element_at(a->bias, row, head, 0, 1);
        h->bias_stride = a->bias.dim[2] > 1 ? a->bias.stride[2] : 0;
    }
    if (hd_tensor_given(a->mask)) {
        h->mask = element_at(a->mask, row, head, 0, 1);
        h->mask_stride = a->mask.dim[2] > 1 ? a->mask.stride[2] : 0;
    }
    if (a->segments) {
        const hd_sdpa_segments *s = a->segments;
        const int64_t table = row * s->query_labels * s->key_labels;
        h->query_label = s->query_label + row * run->queries;
        h->key_label = s->key_label + row * run->keys;
        h->key_labels = s->key_labels;
        h->segment_bias = s->bias ? s->bias + table : NULL;
        h->segment_gain = s->gain ? s->gain + table : NULL;
    }
}

// What int8 codes of a row and key head are made with; NULL where the product is not in int8.
static float *key_mean(const sdpa_run *run, int64_t row, int64_t key_head)
{
    const float *measured = run->row[row].measured;
    if (!measured || run->a->qk != HD_NUMBER_INT8) return NULL;
    return run->row[row].measured + key_head * (run->dim + run->value_dim);
}

static float *value_largest(const sdpa_run *run, int64_t row, int64_t key_head)
{
    const float *measured = run->row[row].measured;
    if (!measured || run->a->pv != HD_NUMBER_INT8) return NULL;
    return run->row[row].measured + key_head * (run->dim + run->value_dim) + run->dim;
}

hd_sdpa_head sdpa_head(const sdpa_run *run, int64_t row, int64_t head)
{
    const hd_sdpa *a = run->a;
    const int64_t key_head = head / (run->heads / run->key_heads);
    hd_sdpa_head h = {
        .dtype = a->q.dtype,
        .q = element_at(a->q, row, head, 0, 2),
        .k = element_at(a->k, row, key_head, 0, 2),
        .v = element_at(a->v, row, key_head, 0, 2),
        .out = element_at(a->out, row, head, 0, 2),
        .q_stride = a->q.stride[1],
        .k_stride = a->k.stride[1],
        .v_stride = a->v.stride[1],
        .out_stride = a->out.stride[1],
        .queries = run->row[row].queries,
        .keys = run->row[row].keys,
        .all_queries = run->queries,
        .all_keys = run->keys,
        .dim = run->dim,
        .value_dim = run->value_dim,
        .scale = a->scale,
        .row_scale = a->row_scale ? a->row_scale + row * run->queries : NULL,
        .causal = a->causal,
        .indicators = run->indicators,
        .key_mean = key_mean(run, row, key_head),
        .value_largest = value_largest(run, row, key_head),
        .plan = run->row[row].plan,
        .number = head,
    };
    head_edits(&h, run, row, head);
    if (hd_tensor_given(a->lse)) {
        h.lse = element_at(a->lse, row, head, 0, 1);
        h.lse_stride = a->lse.stride[2];
    }
    if (run->indicators) {
        h.indicator = element_at(a->indicator, row, 0, 0, 1);
        h.indicator_stride = a->indicator.stride[1];
        h.probed = element_at(a->probed, row, head, 0, 1);
        h.probed_stride = a->probed.stride[2];
    }
    return h;
}

// The keys of ranks first .. end - 1 at `to` ..; those that the row lacks are left -1.
static void list_ranks(const sdpa_run *run, const sdpa_row *row, int64_t order, int64_t first,
                       int64_t end, int32_t *to)
{
    const hd_plan *plan = row->plan;
    for (int64_t r = first; r < end; r++) {
        const int64_t token = plan->key_order ? plan->key_order[order * run->keys + r] : (int32_t)r;
        if (token < row->keys) to[r - first] = (int32_t)token;
    }
}

static void list_tiles(const sdpa_run *run, const sdpa_row *row, int64_t order, int32_t *token)
{
    const hd_plan *plan = row->plan;
    for (int64_t t = 0; t < plan->key_tiles; t++) {
        const int64_t first = hd_plan_key_start(plan, t), end = hd_plan_key_start(plan, t + 1);
        list_ranks(run, row, order, first, end,
                   token + sdpa_tile_position(row, t, run->kernel->unit));
    }
}

static void list_places(const hd_plan *plan, sdpa_place *place)
{
    for (int32_t f = 0; f < plan->grid[0]; f++)
        for (int32_t y = 0; y < plan->grid[1]; y++)
            for (int32_t x = 0; x < plan->grid[2]; x++)
                *place++ = (sdpa_place){{f, y, x}};
}

static void list_starts(const sdpa_run *run, sdpa_row *row)
{
    const int64_t unit = run->kernel->unit;
    int64_t position = 0;
    for (int64_t t = 0; t <= row->plan->key_tiles; t++) {
        row->tile[t] = (int32_t)position;
        const int64_t first = hd_plan_key_start(row->plan, t);
        if (t < row->plan->key_tiles)
            position += units_of(run, hd_plan_key_start(row->plan, t + 1) - first) * unit;
    }
}

// Item: one order of one row.
static hd_status list_item(void *arg, int64_t item, int thread)
{
    const sdpa_run *run = arg;
    const sdpa_row *row = &run->row[item / run->heads];
    const int64_t order = item % run->heads;
    (void)thread;
    if (order >= row->orders) return HD_OK;
    int32_t *token = row->token + order * row->positions;
    for (int64_t i = 0; i < row->positions; i++)
        token[i] = -1;
    if (sdpa_boxes(row->plan)) {
        const hd_plan *plan = row->plan;
        for (int64_t line = 0; line < plan->grid[0] * plan->grid[1]; line++)
            for (int64_t x = 0; x < plan->grid[2]; x++) {
                const int64_t at = plan->grid_token + line * plan->grid[2] + x;
                if (at < row->keys) token[line * row->line + x] = (int32_t)at;
            }
    } else {
        list_tiles(run, row, order, token);
    }
    list_ranks(run, row, order, row->plan->key_ranks, run->keys, token + row->tail);
    return HD_OK;
}

// Item: one row and key head.
static hd_status measure_item(void *arg, int64_t item, int thread)
{
    const sdpa_run *run = arg;
    const int64_t row = item / run->key_heads, key_head = item % run->key_heads;
    (void)thread;
    const hd_sdpa_head h = sdpa_head(run, row, key_head * (run->heads / run->key_heads));
    float *mean = key_mean(run, row, key_head), *largest = value_largest(run, row, key_head);
    if (run->kernel)
        run->kernel->measure(&h, mean, largest);
    else
        hd_sdpa_reference_measure(&h, mean, largest);
    return HD_OK;
}

hd_status sdpa_measure(hd_pool *pool, sdpa_run *run)
{
    if (!run->row->measured) return HD_OK;
    return hd_parallel_for(pool, run->rows * run->key_heads, measure_item, run);
}

// Item: some positions of one pack of one row.
static hd_status pack_item(void *arg, int64_t item, int thread)
{
    const sdpa_run *run = arg;
    const int64_t first = item % run->pack_chunks * HD_SDPA_STEP;
    const int64_t pack = item / run->pack_chunks % run->heads;
    const sdpa_row *row = &run->row[item / run->pack_chunks / run->heads];
    (void)thread;
    if (pack >= row->packs || first >= row->proxy) return HD_OK;
    const int64_t head = pack * (run->heads / row->packs);
    const hd_sdpa_head h = sdpa_head(run, row - run->row, head);
    const hd_sdpa_packed to = sdpa_packed(run, row, head);
    const int32_t *token = row->token + (row->orders > 1 ? pack : 0) * row->positions;
    const int64_t count = sdpa_smaller(row->proxy - first, HD_SDPA_STEP);
    run->kernel->pack_keys(&h, token + first, first, count, &to);
    run->kernel->pack_values(&h, token + first, first, count, &to);
    return HD_OK;
}

hd_status sdpa_pack_keys(hd_pool *pool, sdpa_run *run)
{
    for (int64_t b = 0; b < run->rows; b++) {
        sdpa_row *row = &run->row[b];
        if (row->tile) list_starts(run, row);
        if (row->place) list_places(row->plan, row->place);
        run->pack_chunks = sdpa_larger(run->pack_chunks, sdpa_parts(row->proxy, HD_SDPA_STEP));
    }
    const int64_t packs = run->rows * run->heads;
    HD_TRY(hd_parallel_for(pool, packs, list_item, run));
    HD_TRY(hd_parallel_for(pool, packs * run->pack_chunks, pack_item, run));
    return sdpa_pack_proxies(pool, run);
}
