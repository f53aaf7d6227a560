/* sparse/dynamic_mask_score.h: priorities of key tiles: the private half of sparse/dynamic_mask.c.
 */
#ifndef HD_SPARSE_DYNAMIC_MASK_SCORE_H
#define HD_SPARSE_DYNAMIC_MASK_SCORE_H

#include "engine/attention/planner/room.h"
#include "engine/attention/planner/tiling.h"

HD_BEGIN_DECLS

typedef enum hd_dynamic_mask_scorer {
    HD_DYNAMIC_MASK_BLOCK_MEAN, // softmax of mean query . mean key, by query tile
    HD_DYNAMIC_MASK_COL_MASS,   // attention of sampled queries
    HD_DYNAMIC_MASK_VALUE_NORM, // |v|, summed over the tile
    HD_DYNAMIC_MASK_VALUE_DEV,  // |v - mean v|
    HD_DYNAMIC_MASK_SCORERS,
} hd_dynamic_mask_scorer;

typedef struct hd_dynamic_mask_scoring {
    const hd_exec *ex;
    const hd_tiling *tiling;
    hd_dynamic_mask_scorer scorer;
    int64_t heads, query_sample; // col_mass: one query in query_sample
    float scale;                 // of the softmax
    hd_tensor q, k, v;
    int64_t row; // of the batch
} hd_dynamic_mask_scoring;

typedef struct hd_dynamic_mask_room {
    hd_planner_tokens *query, *key; // [heads]
    float *query_mean, *key_mean;   // [heads][tiles][dim]; of the values in key_mean: [heads][dim]
    float *panel;                   // per share [dim][64]
    float *scores;                  // per share [tiles][64]
    float *max;                     // per share [tiles][64], col_mass
    float *gathered;                // per share [tile][dim] and [tile][64], col_mass
    float *shares;                  // [heads][tiles]: of scorers without queries
} hd_dynamic_mask_room;

hd_dynamic_mask_room hd_dynamic_mask_room_take(hd_room *room, const hd_tiling *tiling,
                                               hd_dynamic_mask_scorer scorer, int64_t heads,
                                               int64_t dim, int64_t value_dim);

/* Called for every head and query tile, from several threads: the estimated share of each tile. */
typedef hd_status (*hd_dynamic_mask_row)(void *arg, int64_t head, int64_t query_tile,
                                         const float *share_of_tile, int64_t share);

/* row_memory: per share [tiles]. */
HD_CHECKED hd_status hd_dynamic_mask_score(const hd_dynamic_mask_scoring *scoring,
                                           const hd_dynamic_mask_room *room, float *row_memory,
                                           hd_dynamic_mask_row row, void *arg);

HD_END_DECLS
#endif
