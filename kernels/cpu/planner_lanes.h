/* kernels/cpu/planner_lanes.h: kernels/planner.h over lanes; a file of one instruction set includes
 * it and names its table. */
#include <math.h>

#include "base/exec.h"
#include "kernels/cpu/lanes.h"

LANES_INLINE lanes product_dot(lanes sum, lanes a, lanes b)
{
    return lanes_fma(a, b, sum);
}

#include "kernels/cpu/planner_product.h"

LANES_INLINE int lanes_left(int64_t n)
{
    return n < LANES ? (int)n : LANES;
}

// Four vectors of channels of all tokens of the sum.
LANES_INLINE void sum_channels(float *sum, const hd_planner_tokens *x, hd_dtype dtype,
                               int64_t first, int64_t count, int64_t d)
{
    lanes a = lanes_zero(), b = lanes_zero(), c = lanes_zero(), e = lanes_zero();
    for (int64_t i = 0; i < count; i++) {
        const void *token = hd_planner_token(x, first + i);
        a = lanes_add(a, lanes_read(token, dtype, d, LANES));
        b = lanes_add(b, lanes_read(token, dtype, d + LANES, LANES));
        c = lanes_add(c, lanes_read(token, dtype, d + 2 * LANES, LANES));
        e = lanes_add(e, lanes_read(token, dtype, d + 3 * LANES, LANES));
    }
    lanes_store(sum + d, a);
    lanes_store(sum + d + LANES, b);
    lanes_store(sum + d + 2 * LANES, c);
    lanes_store(sum + d + 3 * LANES, e);
}

LANES_INLINE void sum_of_type(float *sum, const hd_planner_tokens *x, hd_dtype dtype, int64_t first,
                              int64_t count)
{
    int64_t d = 0;
    for (; d + 4 * LANES <= x->dim; d += (int64_t)4 * LANES)
        sum_channels(sum, x, dtype, first, count, d);
    for (; d < x->dim; d += LANES) {
        const int n = lanes_left(x->dim - d);
        lanes a = lanes_zero();
        for (int64_t i = 0; i < count; i++)
            a = lanes_add(a, lanes_read(hd_planner_token(x, first + i), dtype, d, n));
        lanes_write(sum, HD_F32, d, n, a);
    }
}

static void sum_tokens(float *sum, const hd_planner_tokens *x, int64_t first, int64_t count)
{
    if (x->dtype == HD_BF16)
        sum_of_type(sum, x, HD_BF16, first, count);
    else
        sum_of_type(sum, x, HD_F32, first, count);
}

LANES_INLINE void pack_of_type(float *panel, const void *const *token, hd_dtype dtype, int64_t dim)
{
    for (int i = 0; i < HD_PLANNER_LANES; i += LANES)
        for (int64_t d = 0; d < dim; d += LANES) {
            const int n = lanes_left(dim - d);
            lanes r[LANES];
            for (int j = 0; j < LANES; j++)
                r[j] = token[i + j] ? lanes_read(token[i + j], dtype, d, n) : lanes_zero();
            lanes_transpose(r);
            for (int j = 0; j < n; j++)
                lanes_store(panel + (d + j) * HD_PLANNER_LANES + i, r[j]);
        }
}

static void pack(float *panel, const void *const *token, hd_dtype dtype, int64_t dim)
{
    if (dtype == HD_BF16)
        pack_of_type(panel, token, HD_BF16, dim);
    else
        pack_of_type(panel, token, HD_F32, dim);
}

static void product(float *scores, int64_t rows, const float *a, int64_t a_stride,
                    const float *panel, int64_t units)
{
    product_all(scores, rows, a, a_stride, panel, units);
}

static void max_rows(float *max, const float *scores, int64_t rows)
{
    for (int i = 0; i < HD_PLANNER_LANES; i += LANES) {
        lanes m = lanes_load(scores + i);
        for (int64_t r = 1; r < rows; r++)
            m = lanes_max(m, lanes_load(scores + r * HD_PLANNER_LANES + i));
        lanes_store(max + i, m);
    }
}

static void exp_sum(float *sum, const float *scores, int64_t rows, const float *max, float factor)
{
    const lanes f = lanes_set1(factor);
    for (int i = 0; i < HD_PLANNER_LANES; i += LANES) {
        // -inf - 0 stays -inf and counts as 0
        const lanes top = lanes_load(max + i), none = lanes_set1(-INFINITY);
        const lanes shift = lanes_select(lanes_equal(top, none), lanes_zero(), top);
        lanes total = lanes_zero();
        for (int64_t r = 0; r < rows; r++) {
            lanes s = lanes_sub(lanes_load(scores + r * HD_PLANNER_LANES + i), shift);
            total = lanes_add(total, lanes_exp2(lanes_max(lanes_mul(s, f), lanes_set1(-200.0f))));
        }
        lanes_store(sum + i, total);
    }
}

#include "kernels/cpu/planner_top.h"
