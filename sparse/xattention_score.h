/* sparse/xattention_score.h: how much attention each key tile holds for each query tile, estimated
 * from groups of `stride` tokens: the private half of sparse/xattention.c.
 *
 * antidiagonal: a cell of stride x stride scores is sampled along its antidiagonal, query offsets
 * backwards and key offsets forwards; groupmean: its exact mean, from mean query and mean key. The
 * softmax over all key groups, summed per tile, is the tile's weight (XAttention, Xu et al.,
 * arXiv 2503.16428, section 2). */
#ifndef HD_SPARSE_XATTENTION_SCORE_H
#define HD_SPARSE_XATTENTION_SCORE_H

#include "engine/attention/planner/room.h"
#include "engine/attention/planner/tiling.h"

HD_BEGIN_DECLS

/* The groups of a site's tiles, made once. A group never crosses a tile; the last of a tile may be
 * short. A panel is as many whole query tiles as have at most 64 groups. */
typedef struct hd_xattention_groups {
    int64_t stride, groups, panels;
    int32_t *bound;      // [groups + 1] first rank of each
    int32_t *tile_start; // [tiles + 1] first group of each tile
    int32_t *panel_tile; // [panels + 1] first query tile of each panel
} hd_xattention_groups;

HD_CHECKED hd_status hd_xattention_groups_make(hd_xattention_groups *out, const hd_tiling *tiling,
                                               int64_t stride);
void hd_xattention_groups_free(hd_xattention_groups *groups); // what it points to

typedef struct hd_xattention_scorer {
    const hd_exec *ex;
    const hd_tiling *tiling;
    const hd_xattention_groups *groups;
    bool means;        // groupmean
    bool mask_padding; // else short groups and tiles count as if filled with zero tokens
    float factor;      // of a mean logit: softmax scale / norm
} hd_xattention_scorer;

/* Heads are scored a few at a time: every loop over the pool has a price. */
enum { HD_XATTENTION_HEADS = 8 };

/* Working memory for so many heads. */
typedef struct hd_xattention_room {
    float *key;                 // [heads][groups][units]
    float *query_mean, *mean;   // [heads][groups][dim], groupmean
    float *query_key;           // [heads][groups][units], groupmean
    float *panel;               // per share: [units][64]
    float *tile_max, *tile_sum; // per share: [tiles][64]
} hd_xattention_room;

hd_xattention_room hd_xattention_room_take(hd_room *room, const hd_tiling *tiling,
                                           const hd_xattention_groups *groups, bool means,
                                           int64_t heads, int64_t dim);

/* Called for every head and query tile, from several threads, different ones at once: weight
 * [tiles] sums to the number of the tile's groups. */
typedef hd_status (*hd_xattention_row)(void *arg, int64_t head, int64_t query_tile,
                                       const float *weight, int64_t share);

/* The weights of `heads` heads, at most the room's; `row` gets their rows. weight: per share
 * [tiles]. */
HD_CHECKED hd_status hd_xattention_score(const hd_xattention_scorer *scorer,
                                         const hd_xattention_room *room, float *weight,
                                         const hd_planner_tokens *query,
                                         const hd_planner_tokens *key, int64_t heads,
                                         hd_xattention_row row, void *arg);

HD_END_DECLS
#endif
