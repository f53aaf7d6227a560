/* kernels/reference/elementwise.c: activations and sums as their formulas read. */
#include "kernels/elementwise.h"

#include "base/exec.h"
#include "kernels/reference/scalar.h"

static void activate(void *y, const void *x, hd_dtype dtype, int64_t count, hd_activation act)
{
    for (int64_t i = 0; i < count; i++) {
        double v = (double)hd_scalar_load(x, dtype, i);
        hd_scalar_store(y, dtype, i, (float)hd_scalar_activation(v, act));
    }
}

static void geglu(void *y, const void *x, hd_dtype dtype, int64_t rows, int64_t channels)
{
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < channels; c++) {
            double v = (double)hd_scalar_load(x, dtype, r * 2 * channels + c);
            double gate = (double)hd_scalar_load(x, dtype, (r * 2 + 1) * channels + c);
            v *= hd_scalar_activation(gate, HD_ACT_GELU);
            hd_scalar_store(y, dtype, r * channels + c, (float)v);
        }
}

static void add(void *y, const void *a, const void *b, hd_dtype dtype, int64_t count)
{
    for (int64_t i = 0; i < count; i++)
        hd_scalar_store(y, dtype, i, hd_scalar_load(a, dtype, i) + hd_scalar_load(b, dtype, i));
}

static void affine(void *y, const void *x, hd_dtype dtype, int64_t count, float factor,
                   float offset)
{
    for (int64_t i = 0; i < count; i++)
        hd_scalar_store(y, dtype, i, fmaf(hd_scalar_load(x, dtype, i), factor, offset));
}

const hd_elementwise_kernels hd_elementwise_reference = {HD_CPU, activate, geglu, add, affine};
