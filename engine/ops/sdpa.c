/* engine/ops/sdpa.c: checks an attention call, shares it out to threads, and walks each query
 * block's visit list; the arithmetic is in kernels/.
 *
 * Keys and values are packed first, tile by tile, once per row and key head (linear in the tokens:
 * see kernels/cpu/sdpa.h). Then every item of work is a few blocks of queries of one row and head.
 * Both splits come from the shapes alone. */
#include "engine/ops/sdpa.h"

#include <stdatomic.h>

#include "engine/arena.h"
#include "kernels/cpu/sdpa.h"

// An item of work is at most so many queries, and so many bytes of them: what one thread keeps in
// its second-level cache while the key tiles pass by.
enum { ITEM_QUERIES = 4 * HD_SDPA_MAX_QUERIES, ITEM_BYTES = 512 << 10 };
// A row is cut into at least so many items, where it has as many blocks.
enum { ROW_ITEMS = 64 };
enum { MAX_BLOCKS = 16 }; // of an item: those of the narrowest kernel

// Below this many multiply-adds waking other threads costs more than they save.
static const double alone_below = 1e6;

typedef struct sdpa_run {
    const hd_sdpa *a;
    const hd_sdpa_kernel *kernel; // NULL: the reference
    hd_plan plan;
    int64_t rows, heads, key_heads, queries, keys, dim, value_dim;
    int64_t key_tiles;              // of the longest row
    int64_t item_queries;           // at most, per item of work
    int64_t items_per_tile, items;  // of one query tile, of one head
    float *packed;                  // [rows][key_heads][key_tiles][tile]
    int64_t tile_keys, tile_floats; // of one packed tile: its keys, all of it
    char *scratch;                  // one per thread
    size_t scratch_bytes;
    atomic_int_fast64_t visited;
} sdpa_run;

static int64_t smaller(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

static hd_status check_tokens(const char *what, hd_tensor t, hd_dtype dtype, hd_shape shape)
{
    HD_TRY(hd_expect_shape(what, t, dtype, shape));
    if (t.dim[3] > 1 && t.stride[3] != 1)
        return hd_fail(HD_ERR_SHAPE, "%s: the stride of its last axis is %lld, must be 1", what,
                       (long long)t.stride[3]);
    return HD_OK;
}

// [B or 1, H or 1, Lq or 1, Lk]
static hd_status check_edit(const char *what, hd_tensor t, hd_dtype dtype, hd_shape full)
{
    if (!hd_tensor_given(t)) return HD_OK;
    bool fits = t.rank == 4 && t.dtype == dtype && t.dim[3] == full.dim[3];
    for (int i = 0; fits && i < 3; i++)
        fits = t.dim[i] == 1 || t.dim[i] == full.dim[i];
    if (!fits) {
        char found[200], expected[160];
        return hd_fail(HD_ERR_SHAPE,
                       "sdpa: %s is %s, expected %s %s, where any axis but the last may be 1", what,
                       hd_tensor_text(found, sizeof found, t),
                       hd_shape_text(expected, sizeof expected, full), hd_dtype_name(dtype));
    }
    return check_tokens(what, t, dtype, hd_tensor_shape(t));
}

static hd_status check_tensors(const hd_sdpa *a)
{
    if (a->q.rank != 4 || a->k.rank != 4 || a->v.rank != 4) {
        char q[200], k[200], v[200];
        return hd_fail(HD_ERR_SHAPE, "sdpa: q is %s, k %s, v %s, expected 4 axes [B, L, H, D] each",
                       hd_tensor_text(q, sizeof q, a->q), hd_tensor_text(k, sizeof k, a->k),
                       hd_tensor_text(v, sizeof v, a->v));
    }
    const int64_t rows = a->q.dim[0], queries = a->q.dim[1], heads = a->q.dim[2], dim = a->q.dim[3];
    const int64_t keys = a->k.dim[1], key_heads = a->k.dim[2], value_dim = a->v.dim[3];
    const hd_dtype dtype = a->q.dtype;
    if (dtype != HD_F32 && dtype != HD_BF16)
        return hd_fail(HD_ERR_UNSUPPORTED, "sdpa: q is %s, must be f32 or bf16",
                       hd_dtype_name(dtype));
    HD_TRY(check_tokens("sdpa: q", a->q, dtype, hd_shape4(rows, queries, heads, dim)));
    HD_TRY(check_tokens("sdpa: k", a->k, dtype, hd_shape4(rows, keys, key_heads, dim)));
    HD_TRY(check_tokens("sdpa: v", a->v, dtype, hd_shape4(rows, keys, key_heads, value_dim)));
    HD_TRY(check_tokens("sdpa: out", a->out, dtype, hd_shape4(rows, queries, heads, value_dim)));
    if (keys < 1 || dim < 1 || value_dim < 1 || key_heads < 1)
        return hd_fail(HD_ERR_SHAPE,
                       "sdpa: %lld keys in %lld heads of %lld and %lld channels; "
                       "none may be 0",
                       (long long)keys, (long long)key_heads, (long long)dim, (long long)value_dim);
    if (heads % key_heads)
        return hd_fail(HD_ERR_SHAPE, "sdpa: %lld query heads cannot share %lld key heads evenly",
                       (long long)heads, (long long)key_heads);
    const hd_shape map = hd_shape4(rows, heads, queries, keys);
    HD_TRY(check_edit("bias", a->bias, HD_F32, map));
    HD_TRY(check_edit("mask", a->mask, HD_BOOL, map));
    if (hd_tensor_given(a->lse))
        HD_TRY(hd_expect_shape("sdpa: lse", a->lse, HD_F32, hd_shape3(rows, heads, queries)));
    for (int64_t b = 0; a->key_len && b < rows; b++)
        if (a->key_len[b] < 1 || a->key_len[b] > keys)
            return hd_fail(HD_ERR_ARGUMENT, "sdpa: key_len[%lld] is %lld, must be 1 to %lld",
                           (long long)b, (long long)a->key_len[b], (long long)keys);
    return HD_OK;
}

static hd_status check_plan(const hd_plan *p, int64_t heads, int64_t queries, int64_t keys)
{
    if (p->query_tile < 1 || p->key_tile < 1)
        return hd_fail(HD_ERR_ARGUMENT, "sdpa: the plan's tiles are %lld x %lld, must be positive",
                       (long long)p->query_tile, (long long)p->key_tile);
    if (p->query_bound || p->key_bound || p->query_order || p->key_order || p->box_extent[0] ||
        p->query_ranks != queries || p->key_ranks != keys || p->rest != HD_REST_DROP)
        return hd_fail(HD_ERR_UNSUPPORTED, "sdpa: plans of tiles in the tokens' own order only");
    if (!p->row_start) return HD_OK;
    const int64_t query_tiles = (queries + p->query_tile - 1) / p->query_tile;
    const int64_t key_tiles = (keys + p->key_tile - 1) / p->key_tile;
    if ((p->heads != 1 && p->heads != heads) || p->query_tiles != query_tiles)
        return hd_fail(HD_ERR_SHAPE,
                       "sdpa: the plan is for %lld heads of %lld query tiles, expected %lld (or 1) "
                       "of %lld",
                       (long long)p->heads, (long long)p->query_tiles, (long long)heads,
                       (long long)query_tiles);
    for (int64_t r = 0; r < p->heads * p->query_tiles; r++) {
        int64_t last = -1;
        for (int64_t i = p->row_start[r]; i < p->row_start[r + 1]; i++) {
            if (p->visit[i].mask != HD_VISIT_FULL)
                return hd_fail(HD_ERR_UNSUPPORTED, "sdpa: row %lld of the plan has partial entries",
                               (long long)r);
            if (p->visit[i].key <= last || p->visit[i].key >= key_tiles)
                return hd_fail(HD_ERR_ARGUMENT,
                               "sdpa: row %lld of the plan visits key tile %d after %lld; must "
                               "ascend and stay below %lld",
                               (long long)r, (int)p->visit[i].key, (long long)last,
                               (long long)key_tiles);
            last = p->visit[i].key;
        }
    }
    return HD_OK;
}

static const hd_sdpa_kernel *choose_kernel(const hd_exec *ex, hd_dtype dtype)
{
    static const struct {
        unsigned needs;
        bool bf16_only;
        const hd_sdpa_kernel *kernel;
    } variants[] = {
#if HD_WITH_AVX512_BF16
        {HD_CPU | HD_AVX512_BF16, true, &hd_sdpa_avx512bf16},
#endif
#if HD_WITH_AVX512
        {HD_CPU | HD_AVX512, false, &hd_sdpa_avx512},
#endif
#if HD_WITH_AVX2
        {HD_CPU | HD_AVX2, false, &hd_sdpa_avx2},
#endif
        {HD_CPU, false, NULL},
    };
    for (size_t i = 0; i < HD_COUNT(variants); i++)
        if (hd_exec_has(ex, variants[i].needs) && (dtype == HD_BF16 || !variants[i].bf16_only))
            return variants[i].kernel;
    return NULL;
}

static void *element_at(hd_tensor t, int64_t row, int64_t head, int row_axis, int head_axis)
{
    int64_t at = (t.dim[row_axis] > 1 ? row * t.stride[row_axis] : 0) +
                 (t.dim[head_axis] > 1 ? head * t.stride[head_axis] : 0);
    return (char *)t.data + at * (int64_t)hd_dtype_size(t.dtype);
}

static hd_sdpa_head head_of(const sdpa_run *run, int64_t row, int64_t head)
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
        .queries = run->queries,
        .keys = a->key_len ? a->key_len[row] : run->keys,
        .dim = run->dim,
        .value_dim = run->value_dim,
        .scale = a->scale,
        .row_scale = a->row_scale ? a->row_scale + row * run->queries : NULL,
        .causal = a->causal,
    };
    if (hd_tensor_given(a->bias)) {
        h.bias = element_at(a->bias, row, head, 0, 1);
        h.bias_stride = a->bias.dim[2] > 1 ? a->bias.stride[2] : 0;
    }
    if (hd_tensor_given(a->mask)) {
        h.mask = element_at(a->mask, row, head, 0, 1);
        h.mask_stride = a->mask.dim[2] > 1 ? a->mask.stride[2] : 0;
    }
    if (hd_tensor_given(a->lse)) {
        h.lse = element_at(a->lse, row, head, 0, 1);
        h.lse_stride = a->lse.stride[2];
    }
    return h;
}

static float *packed_tile(const sdpa_run *run, int64_t row, int64_t key_head, int64_t tile)
{
    return run->packed +
           ((row * run->key_heads + key_head) * run->key_tiles + tile) * run->tile_floats;
}

static int64_t units_of(const sdpa_run *run, int64_t elements)
{
    return (elements + run->kernel->unit - 1) / run->kernel->unit;
}

// A packed tile: its keys, then its values.
static float *tile_values(const sdpa_run *run, float *tile)
{
    return tile + run->tile_keys * units_of(run, run->dim);
}

// Item: one key tile of one row and key head.
static hd_status pack_item(void *arg, int64_t item, int thread)
{
    const sdpa_run *run = arg;
    (void)thread;
    const int64_t tile = item % run->key_tiles, key_head = item / run->key_tiles % run->key_heads;
    const int64_t row = item / run->key_tiles / run->key_heads;
    const hd_sdpa_head head = head_of(run, row, key_head * (run->heads / run->key_heads));
    const int64_t first = tile * run->plan.key_tile;
    if (first >= head.keys) return HD_OK;
    float *packed = packed_tile(run, row, key_head, tile);
    run->kernel->pack(&head, first, smaller(head.keys - first, run->plan.key_tile), packed,
                      tile_values(run, packed));
    return HD_OK;
}

// The arrays of one block; scores are shared by the blocks of an item.
static int64_t block_floats(const sdpa_run *run)
{
    return (3 + units_of(run, run->dim) + run->value_dim) * run->kernel->max_queries;
}

static size_t item_bytes(const sdpa_run *run)
{
    if (!run->kernel) return (size_t)run->keys * sizeof(double);
    const int64_t lanes = run->kernel->max_queries;
    const int64_t blocks = (run->item_queries + lanes - 1) / lanes;
    return (size_t)(run->tile_keys * lanes + blocks * block_floats(run)) * sizeof(float);
}

// Queries first .. end - 1 as blocks in the thread's scratch; returns how many. Each array is a
// multiple of max_queries floats long, that is of 64 bytes.
static int cut_blocks(const sdpa_run *run, hd_sdpa_block *b, const hd_sdpa_head *head,
                      int64_t first, int64_t end, int thread)
{
    const int64_t lanes = run->kernel->max_queries;
    float *scores = (float *)(run->scratch + run->scratch_bytes * (size_t)thread);
    float *at = scores + run->tile_keys * lanes;
    int count = 0;
    for (; first < end; first += lanes, at += block_floats(run))
        b[count++] = (hd_sdpa_block){
            .head = head,
            .first = first,
            .queries = (int)smaller(end - first, lanes),
            .scores = scores,
            .max = at,
            .sum = at + lanes,
            .factor = at + 2 * lanes,
            .q = at + 3 * lanes,
            .out = at + (3 + units_of(run, run->dim)) * lanes,
        };
    return count;
}

// How many of the visits are in reach of the row's keys, and of the block's last query if causal.
static hd_visits reachable(hd_visits visits, const hd_sdpa_head *head, int64_t key_tile,
                           int64_t last_query)
{
    int64_t end = head->keys;
    if (head->causal && last_query + 1 < end) end = last_query + 1;
    while (visits.count > 0 && hd_visits_entry(visits, visits.count - 1).key * key_tile >= end)
        visits.count--;
    return visits;
}

// Blocks of queries through their visit list: the streaming softmax. They go from tile to tile
// together, so that a tile's keys and values come from memory once.
static void run_blocks(const sdpa_run *run, hd_sdpa_block *blocks, int block_count,
                       hd_visits visits, float *packed)
{
    const hd_sdpa_kernel *kernel = run->kernel;
    const hd_sdpa_head *head = blocks->head;
    const int64_t key_tile = run->plan.key_tile;
    for (int i = 0; i < block_count; i++)
        kernel->begin(&blocks[i]);
    for (int64_t i = 0; i < visits.count; i++) {
        const int64_t tile = hd_visits_entry(visits, i).key, first = tile * key_tile;
        const int64_t count = smaller(head->keys - first, key_tile);
        float *keys = packed + tile * run->tile_floats, *values = tile_values(run, keys);
        for (hd_sdpa_block *b = blocks; b < blocks + block_count; b++) {
            if (head->causal && first >= b->first + b->queries) continue;
            const bool diagonal = head->causal && first + count - 1 > b->first;
            const bool edited = head->bias || head->mask || diagonal;
            kernel->scores(b, keys, count);
            if (edited) kernel->edit(b, first, count);
            kernel->softmax(b, count, edited);
            kernel->accumulate(b, values, count);
        }
    }
    for (int i = 0; i < block_count; i++)
        kernel->finish(&blocks[i]);
}

// Item: some queries of one query tile of one row and head.
static hd_status query_item(void *arg, int64_t item, int thread)
{
    sdpa_run *run = arg;
    const int64_t in_head = item % run->items, head_number = item / run->items % run->heads;
    const int64_t row = item / run->items / run->heads;
    const int64_t query_tile = in_head / run->items_per_tile, part = in_head % run->items_per_tile;
    const int64_t tile_end = smaller((query_tile + 1) * run->plan.query_tile, run->queries);
    const int64_t first = query_tile * run->plan.query_tile + part * run->item_queries;
    const int64_t end = smaller(first + run->item_queries, tile_end);
    if (first >= end) return HD_OK;

    const hd_sdpa_head head = head_of(run, row, head_number);
    const hd_visits listed = hd_plan_row(&run->plan, head_number, query_tile);
    const hd_visits visits = reachable(listed, &head, run->plan.key_tile, end - 1);
    if (end == tile_end) atomic_fetch_add(&run->visited, visits.count);
    if (!run->kernel) {
        hd_sdpa_reference(&head, visits, run->plan.key_tile, first, end - first,
                          (double *)(run->scratch + run->scratch_bytes * (size_t)thread));
        return HD_OK;
    }
    hd_sdpa_block blocks[MAX_BLOCKS];
    const int count = cut_blocks(run, blocks, &head, first, end, thread);
    run_blocks(run, blocks, count, visits,
               packed_tile(run, row, head_number / (run->heads / run->key_heads), 0));
    return HD_OK;
}

// How many queries go through the key tiles together.
static int64_t choose_item_queries(const sdpa_run *run)
{
    const int64_t block = HD_SDPA_MAX_QUERIES;
    if (!run->kernel) return block;
    const int64_t bytes = (units_of(run, run->dim) + run->value_dim) * (int64_t)sizeof(float);
    const int64_t row_blocks = run->heads * ((run->queries + block - 1) / block);
    const int64_t most = smaller(ITEM_BYTES / bytes, ITEM_QUERIES) / block;
    const int64_t blocks = smaller(row_blocks / ROW_ITEMS, most);
    return (blocks > 1 ? blocks : 1) * block;
}

// Shapes into tiles, blocks and bytes.
static void lay_out(sdpa_run *run)
{
    const hd_sdpa *a = run->a;
    run->rows = a->q.dim[0], run->queries = a->q.dim[1];
    run->heads = a->q.dim[2], run->dim = a->q.dim[3];
    run->keys = a->k.dim[1], run->key_heads = a->k.dim[2], run->value_dim = a->v.dim[3];
    run->item_queries = choose_item_queries(run);
    if (a->plan && a->plan[0])
        run->plan = *a->plan[0];
    else // probabilities stay in the first-level cache, keys and values in the second
        run->plan = (hd_plan){.query_tile = run->item_queries,
                              .key_tile = run->dim + run->value_dim > 512 ? 64 : 128};
    run->plan.key_tile = smaller(run->plan.key_tile, run->keys);
    run->plan.query_tile = smaller(run->plan.query_tile, run->queries);
    run->item_queries = smaller(run->item_queries, run->plan.query_tile);
    run->key_tiles = (run->keys + run->plan.key_tile - 1) / run->plan.key_tile;
    run->plan.key_tiles = run->key_tiles;
    run->items_per_tile = (run->plan.query_tile + run->item_queries - 1) / run->item_queries;
    run->items =
        (run->queries + run->plan.query_tile - 1) / run->plan.query_tile * run->items_per_tile;
    if (run->kernel) {
        run->tile_keys = run->plan.key_tile;
        run->tile_floats = run->tile_keys * units_of(run, run->dim) +
                           units_of(run, run->tile_keys) * run->value_dim;
        run->tile_floats = (run->tile_floats + 15) / 16 * 16;
    }
    run->scratch_bytes = (item_bytes(run) + 63) / 64 * 64;
}

static hd_status take_scratch(const hd_exec *ex, sdpa_run *run)
{
    const int64_t floats = run->rows * run->key_heads * run->key_tiles * run->tile_floats;
    run->packed = hd_arena_bytes(ex->arena, (size_t)floats * sizeof(float));
    run->scratch =
        hd_arena_bytes(ex->arena, run->scratch_bytes * (size_t)hd_pool_threads(ex->pool));
    if (!run->packed || !run->scratch)
        return hd_fail(HD_ERR_NOMEM,
                       "sdpa: no memory for the scratch of %lld x %lld tokens: the arena is full",
                       (long long)run->queries, (long long)run->keys);
    return HD_OK;
}

static hd_status run_items(const hd_exec *ex, sdpa_run *run)
{
    double work = (double)run->rows * (double)run->heads * (double)run->queries *
                  (double)run->keys * (double)(run->dim + run->value_dim);
    hd_pool *pool = work < alone_below ? NULL : ex->pool;
    if (run->kernel)
        HD_TRY(hd_parallel_for(pool, run->rows * run->key_heads * run->key_tiles, pack_item, run));
    return hd_parallel_for(pool, run->rows * run->heads * run->items, query_item, run);
}

hd_status hd_sdpa_run(const hd_exec *ex, const hd_sdpa *a)
{
    HD_TRY(hd_exec_check(ex));
    HD_TRY(check_tensors(a));
    if (a->plan && a->plan[0] && !ex->recording)
        HD_TRY(check_plan(a->plan[0], a->q.dim[2], a->q.dim[1], a->k.dim[1]));
    if (a->visited) *a->visited = 0;
    if (hd_tensor_count(a->out) == 0) return HD_OK;

    sdpa_run run = {.a = a, .kernel = choose_kernel(ex, a->q.dtype)};
    lay_out(&run);
    const size_t mark = hd_arena_mark(ex->arena);
    hd_status status = take_scratch(ex, &run);
    if (status == HD_OK && !ex->recording) status = run_items(ex, &run);
    hd_arena_rewind(ex->arena, mark);
    if (a->visited && status == HD_OK) *a->visited = atomic_load(&run.visited);
    return status;
}
