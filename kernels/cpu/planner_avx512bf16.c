/* kernels/cpu/planner_avx512bf16.c: the planners' product of bf16 pairs. */
#include "kernels/cpu/lanes.h"

LANES_INLINE lanes product_dot(lanes sum, lanes a, lanes b)
{
    return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b);
}

#include "kernels/cpu/planner_product.h"

void hd_planner_product_avx512bf16(float *scores, int64_t rows, const float *a, int64_t a_stride,
                                   const float *panel, int64_t units)
{
    product_all(scores, rows, a, a_stride, panel, units);
}
