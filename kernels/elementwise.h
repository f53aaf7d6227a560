/* kernels/elementwise.h: the loops of activations and sums over one piece of memory, on the calling
 * thread.
 *
 * Every array is f32 or bf16 (`dtype`), without gaps; arithmetic is f32; y may be an input. An
 * element's result does not depend on its place. engine/ops/elementwise.c cuts the work and checks
 * shapes. */
#ifndef HD_KERNELS_ELEMENTWISE_H
#define HD_KERNELS_ELEMENTWISE_H

#include "base/dtype.h"
#include "kernels/activation.h"

HD_BEGIN_DECLS

typedef struct hd_elementwise_kernels {
    unsigned needs; // instruction sets, as in base/exec.h
    void (*activate)(void *y, const void *x, hd_dtype dtype, int64_t count, hd_activation act);
    /* x [rows, 2 channels], y [rows, channels], which must not overlap: the first half of a row
     * times the exact GELU of the second */
    void (*geglu)(void *y, const void *x, hd_dtype dtype, int64_t rows, int64_t channels);
    void (*add)(void *y, const void *a, const void *b, hd_dtype dtype, int64_t count);
    /* y = x * factor + offset, rounded once */
    void (*affine)(void *y, const void *x, hd_dtype dtype, int64_t count, float factor,
                   float offset);
} hd_elementwise_kernels;

extern const hd_elementwise_kernels hd_elementwise_reference; // kernels/reference/elementwise.c
extern const hd_elementwise_kernels hd_elementwise_avx2;      // kernels/cpu/elementwise_avx2.c
extern const hd_elementwise_kernels hd_elementwise_avx512;    // kernels/cpu/elementwise_avx512.c

HD_END_DECLS
#endif
