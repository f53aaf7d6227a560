/* kernels/norm.h: the loops of the norms over one piece of memory, on the calling thread.
 *
 * x and y are f32 or bf16 (`dtype`), rows of `channels` numbers without gaps; y may be x. gamma and
 * beta are f32 [channels], NULL meaning 1 and 0. engine/ops/norm.c cuts the work and checks shapes.
 */
#ifndef HD_KERNELS_NORM_H
#define HD_KERNELS_NORM_H

#include "base/tensor.h"
#include "kernels/activation.h"

HD_BEGIN_DECLS

/* y = act(x * scale[c] + shift[c]); y and x may differ in type (then they must not overlap). */
typedef void hd_scale_shift(void *y, hd_dtype y_dtype, const void *x, hd_dtype x_dtype,
                            const float *scale, const float *shift, int64_t rows, int64_t channels,
                            hd_activation act);

typedef struct hd_norm_kernels {
    unsigned needs; // instruction sets, as in base/exec.h
    /* Adds to sum[c] and square[c] the sums of x and x^2 over `rows` rows, in ascending order. In
     * f64, where the square of an f32 is exact: no shift is needed against cancellation. */
    void (*channel_sums)(double *sum, double *square, const void *x, hd_dtype dtype, int64_t rows,
                         int64_t channels);
    hd_scale_shift *scale_shift;
    void (*layer_norm)(void *y, const void *x, hd_dtype dtype, const float *gamma,
                       const float *beta, float eps, int64_t rows, int64_t channels);
    void (*rms_norm)(void *y, const void *x, hd_dtype dtype, const float *gamma, float eps,
                     int64_t rows, int64_t channels);
} hd_norm_kernels;

extern const hd_norm_kernels hd_norm_reference; // kernels/reference/norm.c
extern const hd_norm_kernels hd_norm_avx2;      // kernels/cpu/norm_avx2.c
extern const hd_norm_kernels hd_norm_avx512;    // kernels/cpu/norm_avx512.c

HD_END_DECLS
#endif
