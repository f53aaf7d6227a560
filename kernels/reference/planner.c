/* kernels/reference/planner.c: what online planners compute, as plain loops. */
#include "kernels/planner.h"

#include "base/exec.h"
#include "kernels/reference/scalar.h"

enum { LANES = HD_PLANNER_LANES };

static void sum_tokens(float *sum, const hd_planner_tokens *x, int64_t first, int64_t count)
{
    for (int64_t d = 0; d < x->dim; d++) {
        sum[d] = 0.0f;
        for (int64_t i = 0; i < count; i++)
            sum[d] += hd_scalar_load(hd_planner_token(x, first + i), x->dtype, d);
    }
}

static void pack(float *panel, const void *const *token, hd_dtype dtype, int64_t dim)
{
    for (int64_t d = 0; d < dim; d++)
        for (int i = 0; i < LANES; i++)
            panel[d * LANES + i] = token[i] ? hd_scalar_load(token[i], dtype, d) : 0.0f;
}

static void product(float *scores, int64_t rows, const float *a, int64_t a_stride,
                    const float *panel, int64_t units)
{
    for (int64_t r = 0; r < rows; r++)
        for (int i = 0; i < LANES; i++) {
            double sum = 0;
            for (int64_t d = 0; d < units; d++)
                sum += (double)a[r * a_stride + d] * (double)panel[d * LANES + i];
            scores[r * LANES + i] = (float)sum;
        }
}

static void max_rows(float *max, const float *scores, int64_t rows)
{
    for (int i = 0; i < LANES; i++) {
        max[i] = scores[i];
        for (int64_t r = 1; r < rows; r++)
            if (scores[r * LANES + i] > max[i]) max[i] = scores[r * LANES + i];
    }
}

static void exp_sum(float *sum, const float *scores, int64_t rows, const float *max, float factor)
{
    for (int i = 0; i < LANES; i++) {
        double total = 0;
        for (int64_t r = 0; r < rows && max[i] > -INFINITY; r++)
            total += exp2((double)factor * ((double)scores[r * LANES + i] - (double)max[i]));
        sum[i] = (float)total;
    }
}

static void top(uint64_t *words, const float *scores, int64_t rows, int64_t keep,
                const int32_t *own)
{
    for (int64_t r = 0; r < rows; r++) {
        words[r] = 0;
        for (int i = 0; i < LANES; i++) {
            const int32_t mine = own ? own[i] : -1;
            const float score = scores[r * LANES + i];
            int64_t before = mine >= 0;
            for (int64_t other = 0; other < rows; other++) {
                const float rival = scores[other * LANES + i];
                before += other != mine && (rival > score || (rival == score && other < r));
            }
            if (r == mine || before < keep) words[r] |= (uint64_t)1 << i;
        }
    }
}

const hd_planner_kernels hd_planner_reference = {HD_CPU,   sum_tokens, pack, product,
                                                 max_rows, exp_sum,    top};
