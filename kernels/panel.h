/* kernels/panel.h: what surrounds a panel's multiplication: elements in, sums out.
 *
 * Types are f32 or bf16; arithmetic is f32. */
#ifndef HD_KERNELS_PANEL_H
#define HD_KERNELS_PANEL_H

#include "base/tensor.h"

HD_BEGIN_DECLS

typedef struct hd_panel_out {
    void *y; // first element
    hd_dtype dtype;
    int64_t stride;       // elements from one row of y to the next
    const void *residual; // of y's type; NULL: none; may be y itself
    int64_t residual_stride;
    const float *bias; // [columns], NULL: none
} hd_panel_out;

typedef struct hd_panel_kernels {
    unsigned needs; // instruction sets, as in base/exec.h
    /* y = x in y's type; no overlap. */
    void (*convert)(void *y, hd_dtype y_dtype, const void *x, hd_dtype x_dtype, int64_t count);
    /* y = (value + bias) * GELU(gate + gate_bias), row by row; value and gate [rows, columns]
     * without gaps, gate_bias NULL where out.bias is. No residual. */
    void (*store_geglu)(hd_panel_out out, const float *value, const float *gate,
                        const float *gate_bias, int64_t rows, int64_t columns);
    /* y = (sums + bias) + residual, row by row; sums [rows, columns] without gaps. */
    void (*store)(hd_panel_out out, const float *sums, int64_t rows, int64_t columns);
} hd_panel_kernels;

extern const hd_panel_kernels hd_panel_reference; // kernels/reference/panel.c
extern const hd_panel_kernels hd_panel_avx2;      // kernels/cpu/panel_avx2.c
extern const hd_panel_kernels hd_panel_avx512;    // kernels/cpu/panel_avx512.c

HD_END_DECLS
#endif
