/* base/plan.h: which keys each query of an attention call looks at: the visit list.
 *
 * One representation for every accelerator: per head and query tile the ascending list of key tiles
 * to visit (a CSR row). Dense is the list of every tile and is what hd_plan_dense_row spells out
 * without storing it. Entry kinds, boxes, orders, tails and proxies join this struct with the
 * accelerators. */
#ifndef HD_BASE_PLAN_H
#define HD_BASE_PLAN_H

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

HD_END_DECLS
#endif
