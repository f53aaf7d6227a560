/* kernels/int8.h: numbers as signed bytes and one step per group of them: x is about code * step.
 *
 * Symmetric, without a zero point; codes stay within -127 .. 127. In f32 throughout, so that every
 * variant finds the same codes. From SageAttention, arXiv 2410.02367, section 3.2; the floor keeps
 * a group of zeros from dividing by 0. */
#ifndef HD_KERNELS_INT8_H
#define HD_KERNELS_INT8_H

#include <math.h>
#include <stdint.h>

#include "base/status.h"

HD_BEGIN_DECLS

/* The largest magnitude that a group's step stands for; a NaN stays one. */
static inline float hd_int8_range(float largest)
{
    return largest < 1e-7f ? 1e-7f : largest;
}

static inline float hd_int8_step(float largest)
{
    return hd_int8_range(largest) / 127.0f;
}

/* What a number is multiplied by to become a code. */
static inline float hd_int8_inverse(float largest)
{
    return 127.0f / hd_int8_range(largest);
}

/* To the nearest, ties to even. */
static inline int32_t hd_int8_code(float x, float inverse)
{
    return (int32_t)lrintf(x * inverse);
}

HD_END_DECLS
#endif
