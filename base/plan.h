/* base/plan.h: which keys each query of an attention call looks at: the visit list.
 *
 * One representation for every accelerator: per head and query tile the ascending list of key tiles
 * to visit (a CSR row). Dense is the list of every tile and is what hd_plan_row spells out without
 * storing it. Entry kinds, boxes, orders, tails and proxies join this struct with the
 * accelerators. */
#ifndef HD_BASE_PLAN_H
#define HD_BASE_PLAN_H

#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

HD_BEGIN_DECLS

typedef struct hd_plan {
    int64_t query_tile, key_tile; // tokens per tile
    int64_t heads;                // rows of the list: heads x query tiles; 1: shared by all heads
    int64_t query_tiles;
    const int64_t *row_start; // [heads * query_tiles + 1] into visit; NULL: dense
    const int32_t *visit;     // key tile numbers, ascending within a row
} hd_plan;

/* The key tiles that one query tile of one head visits. */
typedef struct hd_visits {
    const int32_t *tile; // ascending; NULL: 0, 1, .. count - 1
    int64_t count;
} hd_visits;

/* key_tiles: how many there are, which is what a dense row visits. */
static inline hd_visits hd_plan_row(const hd_plan *plan, int64_t head, int64_t query_tile,
                                    int64_t key_tiles)
{
    if (!plan->row_start) return (hd_visits){NULL, key_tiles};
    const int64_t *row =
        plan->row_start + (plan->heads == 1 ? 0 : head) * plan->query_tiles + query_tile;
    return (hd_visits){plan->visit + row[0], row[1] - row[0]};
}

static inline int64_t hd_visits_tile(hd_visits visits, int64_t i)
{
    return visits.tile ? visits.tile[i] : i;
}

HD_END_DECLS
#endif
