/* engine/attention/planner/scores.h: products of mean queries and mean keys, and the weights that
 * they give to tiles. */
#ifndef HD_ENGINE_ATTENTION_PLANNER_SCORES_H
#define HD_ENGINE_ATTENTION_PLANNER_SCORES_H

#include "kernels/planner.h"

HD_BEGIN_DECLS

/* scores [keys][64]: key j times query first + i, for up to 64 queries (the other lanes are 0).
 * query [queries][dim], key [keys][dim] without gaps; panel [dim][64] is scratch. */
void hd_planner_scores(const hd_planner_kernels *kernels, float *scores, float *panel,
                       const float *query, int64_t first, int64_t queries, const float *key,
                       int64_t keys, int64_t dim);

/* Scores become shares of each lane: share[j] = m_j 2^(factor (score[j] - max)) over their sum,
 * m_j the tokens of tile j (bound [keys + 1]; NULL: 1). factor >= 0. */
void hd_planner_shares(const hd_planner_kernels *kernels, float *scores, int64_t keys, float factor,
                       const int32_t *bound);

/* Lane i of every row of scores into row [keys]. */
static inline void hd_planner_lane(float *row, const float *scores, int64_t keys, int lane)
{
    for (int64_t j = 0; j < keys; j++)
        row[j] = scores[j * HD_PLANNER_LANES + lane];
}

HD_END_DECLS
#endif
