/* base/plan.h: which keys each query of an attention call looks at: the sparsity plan that every
 * accelerator hands the kernel.
 *
 * Ranks. Queries and keys are taken in the plan's order: `query_order[rank]` is the token of a rank
 * (NULL: the same). The first query_ranks / key_ranks ranks are the plan's own and are cut into
 * tiles; the tokens behind them are the dense tail (text, references, appended keys): every query
 * sees every tail key, and a tail query sees every key. Tiles may be of unequal length (`*_bound`),
 * so that ragged grids, windows of 49 and blocks of 455 need no padding.
 *
 * Entries. Per head and query tile a row of entries: a key tile by its number, or (if `box_extent`
 * is given) a key box by the grid token at its origin. An entry whose `mask` is HD_VISIT_FULL is
 * seen by the whole query tile; any other is partial: a key of it is seen by a query if every rule
 * that the plan gives agrees. A box entry may reach beyond the grid's end; what is outside is not
 * there.
 *
 * rest: with HD_REST_PROXY one key and value stand for every key tile, for the queries that do not
 * see that tile: not the tile's own entry, and not the rows of a row mask that leave it out. They
 * are the tile's mean key and value with ln(its length) added to the score, unless the plan's
 * `proxy` says otherwise. Where the call adds a bias to keys, each counts as much as the
 * exponential of its bias, and one with a bias of -inf does not count at all. Causality and masks
 * hide a proxy from a query that may not see every key it stands for. Boxes have no fixed tiles to
 * stand for: refused. */
#ifndef HD_BASE_PLAN_H
#define HD_BASE_PLAN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

HD_BEGIN_DECLS

enum {
    HD_VISIT_FULL = -1,    // all rows of the query tile see all keys of the entry
    HD_VISIT_PARTIAL = -2, // by the rules that need no mask number: window, segment
};

typedef struct hd_visit {
    int32_t key;  // key tile, or origin of the key box: a token of the grid
    int32_t mask; // HD_VISIT_FULL, HD_VISIT_PARTIAL, or the number of its row and column mask
} hd_visit;

/* The neighbourhood rule on one axis of the token grid: coordinate x sees y if start[x] <= y <
 * end[x] and (y - x) is a multiple of dilation. All in tokens. */
typedef struct hd_plan_axis {
    int64_t dilation;           // 1: none
    const int32_t *start, *end; // [grid axis]
} hd_plan_axis;

typedef enum hd_plan_rest { HD_REST_DROP, HD_REST_PROXY } hd_plan_rest;

/* What stands for a key tile. All 0: the mean key and the mean value, counted. */
typedef struct hd_plan_proxy {
    // [orders][key_tiles] the rank, one of the tile's, whose key or value is taken; NULL, or where
    // the row lacks that token: the mean
    const int32_t *key, *value;
    bool uncounted; // no logarithm of the tile's length in the score
    // [heads of the call][key_tiles][D] of the tile's keys, channel by channel; NULL: none. Half of
    // scale^2 sum_d q_d^2 variance_d, at most `clip`, is added to the score.
    const float *variance;
    float clip;
} hd_plan_proxy;

typedef enum hd_attention_number { // of one of the two products
    HD_NUMBER_NATIVE,              // the call's type: "bf16" in a preset
    HD_NUMBER_INT8,
} hd_attention_number;

typedef struct hd_plan {
    int64_t query_tile, key_tile; // ranks per tile (the longest, if they are unequal)
    int64_t query_tiles, key_tiles;
    int64_t query_ranks, key_ranks; // ranks in tiles; what is behind them is the dense tail
    const int32_t *query_bound;     // [query_tiles + 1] first rank of each tile; NULL: multiples
    const int32_t *key_bound;       // [key_tiles + 1]

    int64_t orders; // of the two below: 1, shared by all heads, or one per head
    const int32_t
        *query_order; // [orders][all queries] token of a rank, tail included; NULL: identity
    const int32_t *key_order; // [orders][all keys]

    int64_t heads;            // rows of the list: heads x query tiles; 1: shared by all heads
    const int64_t *row_start; // [heads * query_tiles + 1] into visit; NULL: every tile, full
    const hd_visit *visit;    // ascending by key within a row

    int64_t grid[3];              // frames, height, width of the tokens; for boxes and windows
    int64_t grid_token;           // the grid's first token, of queries and keys
    int64_t box_extent[3];        // all 0: entries are tiles
    const hd_plan_axis *window;   // [3], or [heads][3] if windows > 1; NULL: no such rule
    int64_t windows;              // 0 or 1: shared by all heads; else one per head
    const uint8_t *query_segment; // [orders][query_ranks] labels by rank: equal ones see each other
    const uint8_t *key_segment;   // [orders][key_ranks]
    const uint64_t
        *row_mask; // [masks][ceil(query_tile / 64)] bit i: query i of the tile sees the entry
    const uint64_t *column_mask; // [masks][ceil(key_tile / 64)] bit j: key j of the entry is seen

    hd_plan_rest rest;
    hd_plan_proxy proxy;
} hd_plan;

/* The entries of one query tile of one head; entry NULL: all key tiles, full. */
typedef struct hd_visits {
    const hd_visit *entry;
    int64_t count;
} hd_visits;

static inline hd_visits hd_plan_row(const hd_plan *plan, int64_t head, int64_t query_tile)
{
    if (!plan->row_start) return (hd_visits){NULL, plan->key_tiles};
    const int64_t *row =
        plan->row_start + (plan->heads == 1 ? 0 : head) * plan->query_tiles + query_tile;
    return (hd_visits){plan->visit + row[0], row[1] - row[0]};
}

static inline hd_visit hd_visits_entry(hd_visits visits, int64_t i)
{
    return visits.entry ? visits.entry[i] : (hd_visit){(int32_t)i, HD_VISIT_FULL};
}

static inline int64_t hd_plan_query_start(const hd_plan *plan, int64_t tile)
{
    int64_t at = plan->query_bound ? plan->query_bound[tile] : tile * plan->query_tile;
    return at < plan->query_ranks ? at : plan->query_ranks;
}

static inline int64_t hd_plan_key_start(const hd_plan *plan, int64_t tile)
{
    int64_t at = plan->key_bound ? plan->key_bound[tile] : tile * plan->key_tile;
    return at < plan->key_ranks ? at : plan->key_ranks;
}

/* The three axes of a head's window rule; NULL: none. */
static inline const hd_plan_axis *hd_plan_window(const hd_plan *plan, int64_t head)
{
    return plan->window && plan->windows > 1 ? plan->window + head * 3 : plan->window;
}

static inline int64_t hd_plan_query_token(const hd_plan *plan, int64_t queries, int64_t head,
                                          int64_t rank)
{
    if (!plan->query_order) return rank;
    return plan->query_order[(plan->orders == 1 ? 0 : head) * queries + rank];
}

static inline int64_t hd_plan_key_token(const hd_plan *plan, int64_t keys, int64_t head,
                                        int64_t rank)
{
    if (!plan->key_order) return rank;
    return plan->key_order[(plan->orders == 1 ? 0 : head) * keys + rank];
}

HD_END_DECLS
#endif
