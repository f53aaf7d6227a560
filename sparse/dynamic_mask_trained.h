/* sparse/dynamic_mask_trained.h: the learned form of dynamic mask attention: each head scores every
 * key once, adds the score to the logits and keeps the best keys for all queries.
 *
 * For networks that were trained with it; the scores t come from their weights (t_j = W u_j, u_j
 * the value heads of token j side by side). Dynamic mask attention (Shi et al., arXiv 2508.02124)
 * and its published code, which adds the logarithm of the paper's factor. */
#ifndef HD_SPARSE_DYNAMIC_MASK_TRAINED_H
#define HD_SPARSE_DYNAMIC_MASK_TRAINED_H

#include "engine/attention/planner/builder.h"

HD_BEGIN_DECLS

/* bias [keys] = a softplus(t), or e to that (`exponential`: as the paper writes it). */
void hd_dynamic_mask_bias(float *bias, const float *t, float a, int64_t keys, bool exponential);

typedef struct hd_dynamic_mask_keep {
    int64_t window; // keys kept
    bool relu;      // instead: those with a positive bias
    int64_t smooth; // blocks of so many keys are kept if more than half of them is, else dropped
} hd_dynamic_mask_keep;

/* kept: bits of [keys], the best by bias, of equal ones the lower; all if keys <= window.
 * index [keys] and scratch [2 keys] are working memory. */
void hd_dynamic_mask_select(uint64_t *kept, const float *bias, int64_t keys,
                            hd_dynamic_mask_keep rule, int32_t *index, uint64_t *scratch);

typedef enum hd_dynamic_mask_layout {
    HD_DYNAMIC_MASK_AUTO,
    HD_DYNAMIC_MASK_GATHER, // kept keys first, in tiles of their own
    HD_DYNAMIC_MASK_TILES,  // tiles with a kept key, with column masks
} hd_dynamic_mask_layout;

/* One list for all queries of a head. kept [heads][ceil(keys / 64)]. `auto` gathers where a tile
 * that is visited would hold fewer kept keys than half its length. Builds into `builder`, which is
 * fresh and afterwards holds the plan. */
HD_CHECKED hd_status hd_dynamic_mask_plan(hd_plan_builder *builder, const uint64_t *kept,
                                          int64_t heads, int64_t queries, int64_t keys,
                                          int64_t key_tile, hd_dynamic_mask_layout layout);

HD_END_DECLS
#endif
