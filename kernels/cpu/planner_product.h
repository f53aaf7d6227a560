/* kernels/cpu/planner_product.h: a few rows times a panel of 64 columns, the sums in registers. The
 * includer defines product_dot(sum, a, b). */
#include "kernels/cpu/lanes.h"
#include "kernels/planner.h"

// vectors per step: with 6 rows as many sums as there are registers for
enum { PRODUCT_VECTORS = LANES == 16 ? 4 : 2 };

LANES_INLINE void product_rows(int rows, float *scores, const float *a, int64_t a_stride,
                               const float *panel, int64_t units)
{
    lanes sum[6][PRODUCT_VECTORS];
#pragma GCC unroll 16
    for (int i = 0; i < rows; i++) {
#pragma GCC unroll 16
        for (int v = 0; v < PRODUCT_VECTORS; v++)
            sum[i][v] = lanes_zero();
    }
    for (int64_t u = 0; u < units; u++) {
        lanes x[PRODUCT_VECTORS];
#pragma GCC unroll 16
        for (int v = 0; v < PRODUCT_VECTORS; v++)
            x[v] = lanes_load(panel + u * HD_PLANNER_LANES + v * LANES);
#pragma GCC unroll 16
        for (int i = 0; i < rows; i++) {
            lanes w = lanes_set1(a[i * a_stride + u]);
#pragma GCC unroll 16
            for (int v = 0; v < PRODUCT_VECTORS; v++)
                sum[i][v] = product_dot(sum[i][v], w, x[v]);
        }
    }
#pragma GCC unroll 16
    for (int i = 0; i < rows; i++) {
#pragma GCC unroll 16
        for (int v = 0; v < PRODUCT_VECTORS; v++)
            lanes_store(scores + i * HD_PLANNER_LANES + v * LANES, sum[i][v]);
    }
}

LANES_INLINE void product_all(float *scores, int64_t rows, const float *a, int64_t a_stride,
                              const float *panel, int64_t units)
{
    enum { STEP = PRODUCT_VECTORS * LANES };
    for (; rows > 0; rows -= 6, a += 6 * a_stride, scores += (int64_t)6 * HD_PLANNER_LANES)
        for (int c = 0; c < HD_PLANNER_LANES; c += STEP) {
            switch (rows) {
            case 1:
                product_rows(1, scores + c, a, a_stride, panel + c, units);
                break;
            case 2:
                product_rows(2, scores + c, a, a_stride, panel + c, units);
                break;
            case 3:
                product_rows(3, scores + c, a, a_stride, panel + c, units);
                break;
            case 4:
                product_rows(4, scores + c, a, a_stride, panel + c, units);
                break;
            case 5:
                product_rows(5, scores + c, a, a_stride, panel + c, units);
                break;
            default:
                product_rows(6, scores + c, a, a_stride, panel + c, units);
            }
        }
}
