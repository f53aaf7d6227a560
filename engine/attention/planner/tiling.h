/* engine/attention/planner/tiling.h: a token grid cut into tiles that queries and keys share: what
 * an online planner makes once per site.
 *
 * Either boxes of the grid side by side (window-major, ragged at the grid's ends), or runs of
 * tokens in their own order. What is not in the tiles is the dense tail. */
#ifndef HD_ENGINE_ATTENTION_PLANNER_TILING_H
#define HD_ENGINE_ATTENTION_PLANNER_TILING_H

#include "base/plan.h"
#include "engine/attention/planner/orders.h"
#include "kernels/planner.h"

HD_BEGIN_DECLS

typedef struct hd_tiling {
    hd_grid grid;
    int64_t ranks;       // tokens in tiles
    int64_t tiles, tile; // how many; tokens of the longest
    int64_t boxes[3];    // along each axis, of boxes that are tiles each
    int64_t order_room;  // tokens that `order` has room for
    int32_t *order;      // [order_room] token of a rank
    int32_t *bound;      // [tiles + 1] first rank of each tile
} hd_tiling;

typedef struct hd_tiling_options {
    int64_t box[3]; // of the grid; box[0] 0: runs of tokens in their own order
    int64_t tile;   // tokens per run; boxes longer than that are cut; 0: never
    bool text;      // what stands beside the grid is cut into tiles too, not the tail
} hd_tiling_options;

/* The caller owns *out. hd_tiling_free(NULL) does nothing. Room for as many keys again as the call
 * has is there for appended ones. */
HD_CHECKED hd_status hd_tiling_create(hd_tiling **out, const hd_attention_call *call,
                                      hd_tiling_options options);
void hd_tiling_free(hd_tiling *tiling);

/* Grid, tiles and orders of a plan for tokens of these lengths; the plan's list is the caller's.
 * Fails if there are more appended keys than there is room for. */
HD_CHECKED hd_status hd_tiling_plan(const hd_tiling *tiling, int64_t queries, int64_t keys,
                                    hd_plan *plan);

static inline int64_t hd_tiling_count(const hd_tiling *tiling, int64_t tile)
{
    return tiling->bound[tile + 1] - tiling->bound[tile];
}

/* How far apart two boxes are, on the axis where they are farthest, in boxes. */
int64_t hd_tiling_apart(const hd_tiling *tiling, int64_t a, int64_t b);

/* One row and head of q, k or v; `head` is a query head: keys may have fewer. */
hd_planner_tokens hd_tiling_tokens(const hd_tiling *tiling, hd_tensor t, int64_t row, int64_t head,
                                   int64_t heads);

HD_END_DECLS
#endif
