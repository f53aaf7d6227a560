/* engine/attention/planner/scores.c: products of means and their softmax, 64 queries at a time. */
#include "engine/attention/planner/scores.h"

enum { LANES = HD_PLANNER_LANES };

void hd_planner_scores(const hd_planner_kernels *kernels, float *scores, float *panel,
                       const float *query, int64_t first, int64_t queries, const float *key,
                       int64_t keys, int64_t dim)
{
    const void *token[LANES];
    for (int i = 0; i < LANES; i++)
        token[i] = first + i < queries ? query + (first + i) * dim : NULL;
    kernels->pack(panel, token, HD_F32, dim);
    kernels->product(scores, keys, key, dim, panel, dim);
}

void hd_planner_shares(const hd_planner_kernels *kernels, float *scores, int64_t keys, float factor,
                       const int32_t *bound)
{
    float max[LANES], sum[LANES] = {0};
    kernels->max(max, scores, keys);
    for (int64_t j = 0; j < keys; j++) {
        float *row = scores + j * LANES;
        const float size = bound ? (float)(bound[j + 1] - bound[j]) : 1.0f;
        kernels->exp_sum(row, row, 1, max, factor);
        for (int i = 0; i < LANES; i++) {
            row[i] *= size;
            sum[i] += row[i];
        }
    }
    for (int i = 0; i < LANES; i++)
        sum[i] = sum[i] > 0 ? 1.0f / sum[i] : 0.0f;
    for (int64_t j = 0; j < keys; j++)
        for (int i = 0; i < LANES; i++)
            scores[j * LANES + i] *= sum[i];
}
