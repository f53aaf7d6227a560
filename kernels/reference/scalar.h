/* kernels/reference/scalar.h: one element at a time: what the plain loops share. */
#ifndef HD_KERNELS_REFERENCE_SCALAR_H
#define HD_KERNELS_REFERENCE_SCALAR_H

#include <math.h>

#include "base/tensor.h"
#include "kernels/activation.h"

static inline float hd_scalar_load(const void *x, hd_dtype dtype, int64_t i)
{
    return dtype == HD_BF16 ? hd_bf16_to_f32(((const hd_bf16 *)x)[i]) : ((const float *)x)[i];
}

static inline void hd_scalar_store(void *y, hd_dtype dtype, int64_t i, float value)
{
    if (dtype == HD_BF16)
        ((hd_bf16 *)y)[i] = hd_bf16_from_f32(value);
    else
        ((float *)y)[i] = value;
}

static inline double hd_scalar_activation(double x, hd_activation act)
{
    switch (act) {
    case HD_ACT_SILU:
        return x / (1 + exp(-x));
    case HD_ACT_GELU:
        return 0.5 * x * erfc(-x * 0.70710678118654752440);
    case HD_ACT_GELU_TANH:
        return 0.5 * x * (1 + tanh(0.79788456080286535588 * (x + 0.044715 * x * x * x)));
    case HD_ACT_QUICK_GELU:
        return x / (1 + exp(-1.702 * x));
    case HD_ACT_RELU:
        return x < 0 ? 0 : x; // NaN stays NaN
    case HD_ACT_NONE:
        break;
    }
    return x;
}

#endif
