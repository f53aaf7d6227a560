/* engine/ops/sdpa.c: lays an attention call out and shares it out to threads. What it must be is
 * in sdpa_check.c, the packing of its keys in sdpa_pack.c, the walk of each query block through its
 * visit list in sdpa_visit.c; the arithmetic is in kernels/.
 *
 * Keys and values are packed first, in the plan's order, once per row and key head (linear in the
 * tokens: see kernels/cpu/sdpa.h). Then every item of work is a few blocks of queries of one query
 * tile of one row and head. Both splits come from the shapes and the plan alone. */
#include "engine/ops/sdpa.h"

#include "engine/arena.h"
#include "engine/ops/sdpa_internal.h"

// An item of work is at most so many queries, and so many bytes of them: what one thread keeps in
// its second-level cache while the keys pass by.
enum { ITEM_QUERIES = 4 * HD_SDPA_MAX_QUERIES, ITEM_BYTES = 512 << 10 };
// A row is cut into at least so many items, where it has as many blocks.
enum { ROW_ITEMS = 64 };
enum { LEAST_TILE = 8 };

// Below this many multiply-adds waking other threads costs more than they save.
static const double alone_below = 1e6;

// How many queries go through the keys together.
static int64_t choose_item_queries(const sdpa_run *run)
{
    const int64_t block = HD_SDPA_MAX_QUERIES;
    if (!run->kernel) return block;
    const int64_t bytes = (sdpa_depth(run) + run->value_dim) * (int64_t)sizeof(float);
    const int64_t row_blocks = run->heads * sdpa_parts(run->queries, block);
    const int64_t most = sdpa_smaller(ITEM_BYTES / bytes, ITEM_QUERIES) / block;
    return sdpa_larger(sdpa_smaller(row_blocks / ROW_ITEMS, most), 1) * block;
}

// The plan of a row that was given none: one key tile that all see.
static hd_plan dense_plan(const sdpa_run *run)
{
    return (hd_plan){.query_tile = run->item_queries,
                     .key_tile = run->keys,
                     .query_tiles = sdpa_parts(run->queries, run->item_queries),
                     .key_tiles = 1,
                     .query_ranks = run->queries,
                     .key_ranks = run->keys,
                     .orders = 1,
                     .heads = 1};
}

// What any plan needs at most, for a row whose plan is yet to be made; its lists are not read. Key
// tiles of fewer than LEAST_TILE keys on average would need more.
static hd_plan any_plan(const sdpa_run *run)
{
    static const int32_t list[2];
    static const int64_t start[2];
    static const hd_plan_axis axis[3];
    hd_plan plan = dense_plan(run);
    plan.key_tile = LEAST_TILE, plan.key_tiles = sdpa_parts(run->keys, LEAST_TILE);
    plan.key_bound = list, plan.key_order = list, plan.orders = run->heads;
    plan.row_start = start, plan.rest = HD_REST_PROXY;
    plan.window = axis, plan.grid[0] = plan.grid[1] = 1, plan.grid[2] = run->keys;
    return plan;
}

static bool all_are(const float *x, int64_t count, float value)
{
    for (int64_t i = 0; x && i < count; i++)
        if (x[i] != value) return false;
    return true;
}

// Is anything done to the scores of this row? Edited scores are rounded once more: a row that
// others stand beside must not be edited for their sake.
static bool edits_row(const hd_sdpa *a, int64_t b)
{
    if (hd_tensor_given(a->bias) || hd_tensor_given(a->mask)) return true;
    if (a->segments) {
        const int64_t pairs = a->segments->query_labels * a->segments->key_labels;
        const float *bias = a->segments->bias, *gain = a->segments->gain;
        if (!all_are(bias ? bias + b * pairs : NULL, pairs, 0.0f)) return true;
        if (!all_are(gain ? gain + b * pairs : NULL, pairs, 1.0f)) return true;
    }
    const hd_tensor c = a->column_bias;
    if (!hd_tensor_given(c)) return false;
    const int64_t row = c.dim[0] > 1 ? b : 0;
    for (int64_t h = 0; h < c.dim[1]; h++)
        if (!all_are((const float *)c.data + row * c.stride[0] + h * c.stride[1], c.dim[2], 0.0f))
            return true;
    return false;
}

// `row` is run->row[b], or on the dry pass a stand-in.
static void lay_out_row(sdpa_run *run, int64_t b, sdpa_row *row, bool recording)
{
    const hd_sdpa *a = run->a;
    *row = (sdpa_row){.plan = a->plan ? a->plan[b] : NULL, .dense = dense_plan(run)};
    row->planned = row->plan != NULL;
    row->edited = !recording && edits_row(a, b);
    if (!row->planned && a->plan && recording) row->dense = any_plan(run);
    if (!row->planned) row->plan = &row->dense;
    row->queries = run->queries, row->keys = run->keys;
    if (a->query_len && !recording) row->queries = a->query_len[b];
    if (a->key_len && !recording) row->keys = a->key_len[b];
    row->holes = row->keys < run->keys && (row->plan->key_order || sdpa_boxes(row->plan));
    row->parts = sdpa_parts(row->plan->query_tile, run->item_queries);
    row->first_item = run->items;
    row->items = row->plan->query_tiles * row->parts +
                 sdpa_parts(run->queries - row->plan->query_ranks, run->item_queries);
    run->items += run->heads * row->items;
    const int64_t *grid = row->plan->grid;
    if (row->plan->window)
        run->axis_words = sdpa_larger(run->axis_words, grid[0] + grid[1] + grid[2]);
    run->proxies |= sdpa_proxies(row->plan);
    if (run->kernel) {
        sdpa_lay_out_keys(run, row);
        return;
    }
    const size_t doubles = (size_t)hd_sdpa_reference_doubles(row->plan, run->keys, run->dim,
                                                             run->value_dim + run->indicators);
    if (run->scratch_bytes < doubles * sizeof(double))
        run->scratch_bytes = doubles * sizeof(double);
}

// Shapes into blocks and items.
static void lay_out(sdpa_run *run)
{
    const hd_sdpa *a = run->a;
    run->rows = a->q.dim[0], run->queries = a->q.dim[1];
    run->heads = a->q.dim[2], run->dim = a->q.dim[3];
    run->keys = a->k.dim[1], run->key_heads = a->k.dim[2], run->value_dim = a->v.dim[3];
    run->indicators = hd_tensor_given(a->indicator) ? a->indicator.dim[2] : 0;
    run->item_queries = choose_item_queries(run);
    // probabilities stay in the first-level cache, keys and values in the second
    run->step = run->dim + run->value_dim > 512 ? HD_SDPA_STEP / 2 : HD_SDPA_STEP;
}

// The rows and their memory, and the threads' scratch.
static hd_status take_memory(const hd_exec *ex, sdpa_run *run)
{
    run->row = hd_arena_bytes(ex->arena, (size_t)run->rows * sizeof *run->row);
    if (!run->row) return sdpa_arena_full(run);
    for (int64_t b = 0; b < run->rows; b++) {
        sdpa_row stand_in, *row = ex->recording ? &stand_in : &run->row[b];
        lay_out_row(run, b, row, ex->recording);
        HD_TRY(sdpa_take_measured(ex, run, row));
        if (run->kernel) HD_TRY(sdpa_take_keys(ex, run, row));
    }
    if (run->kernel) run->scratch_bytes = sdpa_item_bytes(run);
    if (run->kernel && run->proxies && run->scratch_bytes < sdpa_proxy_bytes(run))
        run->scratch_bytes = sdpa_proxy_bytes(run);
    run->scratch_bytes = (run->scratch_bytes + 63) / 64 * 64;
    run->scratch =
        hd_arena_bytes(ex->arena, run->scratch_bytes * (size_t)hd_pool_threads(ex->pool));
    return run->scratch ? HD_OK : sdpa_arena_full(run);
}

// Item: some queries of one query tile of one row and head.
static hd_status query_item(void *arg, int64_t item, int thread)
{
    sdpa_run *run = arg;
    int64_t b = 0;
    while (b + 1 < run->rows && item >= run->row[b + 1].first_item)
        b++;
    const sdpa_row *row = &run->row[b];
    const hd_plan *plan = row->plan;
    const int64_t head = (item - row->first_item) / row->items;
    const int64_t in_head = (item - row->first_item) % row->items;
    const int64_t query_tile = sdpa_smaller(in_head / row->parts, plan->query_tiles);
    const int64_t part = in_head - query_tile * row->parts;
    int64_t start = plan->query_ranks, tile_end = run->queries;
    if (query_tile < plan->query_tiles) {
        start = hd_plan_query_start(plan, query_tile);
        tile_end = hd_plan_query_start(plan, query_tile + 1);
    }
    // in the tokens' own order, what the row lacks is at the end
    if (!plan->query_order) tile_end = sdpa_smaller(tile_end, row->queries);
    const int64_t first = start + part * run->item_queries;
    const int64_t end = sdpa_smaller(first + run->item_queries, tile_end);
    if (first >= end) return HD_OK;

    char *scratch = run->scratch + run->scratch_bytes * (size_t)thread;
    int64_t visited;
    if (run->kernel) {
        visited = sdpa_visit(run, b, head, query_tile, first, end, scratch);
    } else {
        const hd_sdpa_head h = sdpa_head(run, b, head);
        visited = hd_sdpa_reference(&h, query_tile, first, end - first, (double *)scratch);
    }
    // a tile counts once, whichever its parts; causality may let the last reach further
    if (end == tile_end && row->planned) atomic_fetch_add(&run->visited, visited);
    return HD_OK;
}

static hd_status run_items(const hd_exec *ex, sdpa_run *run)
{
    double work = (double)run->rows * (double)run->heads * (double)run->queries *
                  (double)run->keys * (double)(run->dim + run->value_dim);
    hd_pool *pool = work < alone_below ? NULL : ex->pool;
    HD_TRY(sdpa_measure(pool, run));
    if (run->kernel) HD_TRY(sdpa_pack_keys(pool, run));
    return hd_parallel_for(pool, run->items, query_item, run);
}

hd_status hd_sdpa_run(const hd_exec *ex, const hd_sdpa *a)
{
    HD_TRY(hd_exec_check(ex));
    HD_TRY(sdpa_check_call(ex, a));
    if (a->visited) *a->visited = 0;
    if (hd_tensor_count(a->out) == 0) return HD_OK;

    sdpa_run run = {.a = a};
    HD_TRY(sdpa_choose_kernel(ex, &run));
    lay_out(&run);
    const size_t mark = hd_arena_mark(ex->arena);
    hd_status status = take_memory(ex, &run);
    if (status == HD_OK && !ex->recording) status = run_items(ex, &run);
    hd_arena_rewind(ex->arena, mark);
    if (a->visited && status == HD_OK) *a->visited = atomic_load(&run.visited);
    return status;
}
