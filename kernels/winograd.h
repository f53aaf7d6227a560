/* kernels/winograd.h: 3x3 convolution by Winograd's F(4x4, 3x3): a tile of 4 x 4 outputs from 6 x 6
 * inputs with 36 multiplications per channel pair instead of 144.
 *
 * Y = A^T [(G g G^T) . (B^T d B)] A (Lavin and Gray, "Fast Algorithms for Convolutional Neural
 * Networks", 2015), interpolated at 0, +-5/8, +-3/2 and infinity: these are exact in binary and
 * lose four times less than the usual 0, +-1, +-2. For each of the 36 positions the channels are
 * summed by a matmul: planes v [tiles, in] times u [in, out] give m [tiles, out]. All planes are
 * f32. */
#ifndef HD_KERNELS_WINOGRAD_H
#define HD_KERNELS_WINOGRAD_H

#include "kernels/panel.h"

HD_BEGIN_DECLS

#define HD_WINOGRAD_PLANES 36
#define HD_WINOGRAD_TILE   4 // outputs of a tile, each way
#define HD_WINOGRAD_INPUT  6 // inputs

#define HD_WINOGRAD_A 0.625f // the points
#define HD_WINOGRAD_B 1.5f

/* Weights [3, 3, in / pair, columns, pair], f32 or bf16. */
typedef struct hd_winograd_weights {
    const void *data;
    hd_dtype dtype;
    int64_t in, columns, pair;
} hd_winograd_weights;

/* Where the outputs of a tile go. */
typedef struct hd_winograd_out {
    hd_panel_out out;      // of the first pixel; stride: from one pixel to the next
    int64_t row_stride;    // elements from one row of y to the next
    int64_t rows, columns; // of the tile that exist, 1 .. 4
} hd_winograd_out;

typedef struct hd_winograd_kernels {
    unsigned needs; // instruction sets, as in base/exec.h
    /* u[p plane + i u_stride + c] = (G g G^T)[p] for inputs i of [from, to) and all columns. from
     * and to are multiples of pair. */
    void (*filter)(float *u, int64_t plane, int64_t u_stride, hd_winograd_weights g, int64_t from,
                   int64_t to);
    /* v[p plane + t channels + c] = (B^T d B)[p] for `tiles` tiles side by side; x: the first pixel
     * of the first tile, pixels without gaps, x_stride elements from row to row. */
    void (*input)(float *v, int64_t plane, const void *x, hd_dtype dtype, int64_t x_stride,
                  int64_t tiles, int64_t channels);
    /* y = (A^T m A + bias) + residual of one tile; m: its first plane. */
    void (*output)(hd_winograd_out to, const float *m, int64_t plane, int64_t channels);
} hd_winograd_kernels;

extern const hd_winograd_kernels hd_winograd_reference; // kernels/reference/winograd.c
extern const hd_winograd_kernels hd_winograd_avx2;      // kernels/cpu/winograd_avx2.c
extern const hd_winograd_kernels hd_winograd_avx512;    // kernels/cpu/winograd_avx512.c

HD_END_DECLS
#endif
