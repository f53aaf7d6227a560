/* engine/ops/sdpa_internal.h: what the files of the attention kernel's driver share: a call on its
 * way, its rows' packed keys, a block of queries on its way through them.
 *
 * Positions. A row's keys are packed in the plan's order, and a key's place there is its position:
 * first the plan's key tiles (or, for key boxes, the lines of the grid), then the dense tail, then
 * the proxies; each tile and line begins with a unit of its own (kernels/cpu/sdpa.h). */
#ifndef HD_ENGINE_OPS_SDPA_INTERNAL_H
#define HD_ENGINE_OPS_SDPA_INTERNAL_H

#include <stdatomic.h>

#include "engine/ops/sdpa.h"
#include "kernels/cpu/sdpa.h"

HD_BEGIN_DECLS

/* A grid token's coordinates. */
typedef struct sdpa_place {
    int32_t x[3];
} sdpa_place;

/* One row of the batch. */
typedef struct sdpa_row {
    const hd_plan *plan; // its own, or `dense`
    hd_plan dense;
    bool planned;                   // it has one of its own
    int64_t queries, keys;          // its lengths
    bool edited;                    // something is done to its scores
    bool holes;                     // keys that it lacks may be anywhere among its positions
    int64_t orders;                 // of its keys: 1, or one per head
    int64_t packs;                  // as many as key heads, or as heads where each has an order
    int64_t line;                   // positions of a line of boxes
    int64_t tail, proxy, positions; // the first of the tail, of the proxies; all
    int64_t parts;                  // items of the longest query tile
    int64_t items;                  // of a head: query tiles x parts, then the query tail's
    int64_t first_item;             // of the row
    int32_t *tile;                  // [key_tiles + 1] first positions; NULL: multiples
    int32_t *token;                 // [orders][positions]; -1: none
    sdpa_place *place;              // [grid tokens]; NULL: not asked for
    float *proxy_bias; // [packs][key_tiles] added to their scores, in units of log 2; NULL: none
    float *packed;     // [packs][pack_floats]
    float *measured;   // [key heads][D + Dv] what int8 codes are made with; NULL: no int8
    int64_t units;     // of a panel of values
    int64_t key_floats, pack_floats; // of a pack: its keys, all of it
} sdpa_row;

typedef struct sdpa_run {
    const hd_sdpa *a;
    const hd_sdpa_kernel *kernel; // NULL: the reference
    hd_sdpa_kernel mixed;         // `kernel`, where the two products have different numbers
    sdpa_row *row;                // [rows]
    int64_t rows, heads, key_heads, queries, keys, dim, value_dim, indicators;
    int64_t item_queries; // at most, per item of work
    int64_t items;        // of all rows
    int64_t step;         // keys of a step
    int64_t axis_words;   // words of a block's window tables
    bool proxies;         // of some row
    int64_t pack_chunks;  // of the longest row
    char *scratch;        // one per thread
    size_t scratch_bytes;
    atomic_int_fast64_t visited;
} sdpa_run;

/* A block of queries, and which of them see what. */
typedef struct sdpa_block {
    hd_sdpa_block kernel;
    hd_sdpa_step step; // being filled
    int32_t token[HD_SDPA_MAX_QUERIES];
    uint64_t all;            // a bit for every query
    int32_t lowest, highest; // of the tokens
    int64_t in_tile;         // of lane 0
    bool proxies;            // what the step holds
    uint64_t *axis[3];       // [grid axis]: the queries whose window holds the coordinate
    uint64_t *segment;       // [256]: the queries of that label; NULL: the plan has none
} sdpa_block;

/* sdpa_kernel.c: what computes the call: run->kernel, or for the reference nothing. */
HD_CHECKED hd_status sdpa_choose_kernel(const hd_exec *ex, sdpa_run *run);

/* sdpa_check.c */
HD_CHECKED hd_status sdpa_check_call(const hd_exec *ex, const hd_sdpa *a);

/* sdpa_pack.c: the positions of a row (all but the addresses), their memory, what they hold. */
void sdpa_lay_out_keys(const sdpa_run *run, sdpa_row *row);
HD_CHECKED hd_status sdpa_take_keys(const hd_exec *ex, const sdpa_run *run, sdpa_row *row);
HD_CHECKED hd_status sdpa_pack_keys(hd_pool *pool, sdpa_run *run);
/* And what int8 codes are made with, before them. */
HD_CHECKED hd_status sdpa_take_measured(const hd_exec *ex, const sdpa_run *run, sdpa_row *row);
HD_CHECKED hd_status sdpa_measure(hd_pool *pool, sdpa_run *run);
hd_sdpa_head sdpa_head(const sdpa_run *run, int64_t row, int64_t head);

/* sdpa_proxy.c: what stands for tiles. Scratch of one thread that packs proxies; all of them,
 * behind the keys. */
size_t sdpa_proxy_bytes(const sdpa_run *run);
HD_CHECKED hd_status sdpa_pack_proxies(hd_pool *pool, sdpa_run *run);
/* The queries of `seen` that may see every key of a tile, by causality and mask. */
uint64_t sdpa_proxy_seen(const sdpa_run *run, const sdpa_row *row, const hd_sdpa_head *head,
                         const sdpa_block *block, int64_t tile, uint64_t seen);
/* Adds the second-order term to the scores of a step of proxies, which are edited already. */
void sdpa_proxy_spread(const sdpa_run *run, const sdpa_row *row, const hd_sdpa_head *head,
                       sdpa_block *block);

/* sdpa_visit.c: scratch of one thread for the blocks of an item; the queries of ranks first .. end
 * - 1, of one query tile, through everything they see. Returns the entries visited. */
size_t sdpa_item_bytes(const sdpa_run *run);
int64_t sdpa_visit(const sdpa_run *run, int64_t row, int64_t head, int64_t query_tile,
                   int64_t first, int64_t end, char *scratch);

static inline hd_status sdpa_arena_full(const sdpa_run *run)
{
    return hd_fail(HD_ERR_NOMEM,
                   "sdpa: no memory for the scratch of %lld x %lld tokens: the arena is full",
                   (long long)run->queries, (long long)run->keys);
}

static inline int64_t sdpa_smaller(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

static inline int64_t sdpa_larger(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

static inline int64_t sdpa_parts(int64_t count, int64_t size)
{
    return (count + size - 1) / size;
}

static inline bool sdpa_boxes(const hd_plan *plan)
{
    return plan->box_extent[0] != 0;
}

/* Floats of a block's query, and of a packed key. */
static inline int64_t sdpa_depth(const sdpa_run *run)
{
    return sdpa_parts(run->dim, run->kernel->dim_unit);
}

static inline int64_t sdpa_key_floats(const sdpa_run *run)
{
    return run->kernel->key_head + sdpa_depth(run);
}

/* Whether the plan's proxies can be needed. */
static inline bool sdpa_proxies(const hd_plan *plan)
{
    return plan->rest == HD_REST_PROXY && plan->row_start;
}

/* Whether heads that share their keys have proxies of their own. */
static inline bool sdpa_own_proxies(const sdpa_run *run, const hd_plan *plan)
{
    const hd_tensor *bias = &run->a->column_bias;
    if (!sdpa_proxies(plan)) return false;
    if (plan->orders > 1 && (plan->proxy.key || plan->proxy.value)) return true;
    return hd_tensor_given(*bias) && bias->dim[1] > 1;
}

static inline int64_t sdpa_tile_position(const sdpa_row *row, int64_t tile, int64_t unit)
{
    if (row->tile) return row->tile[tile];
    if (unit == 1) return hd_plan_key_start(row->plan, tile);
    return tile * sdpa_parts(row->plan->key_tile, unit) * unit;
}

static inline hd_sdpa_packed sdpa_packed(const sdpa_run *run, const sdpa_row *row, int64_t head)
{
    float *keys = row->packed + head / (run->heads / row->packs) * row->pack_floats;
    return (hd_sdpa_packed){keys, keys + row->key_floats, row->units};
}

HD_END_DECLS
#endif
