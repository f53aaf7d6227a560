/* engine/ops/panel.h: what linear layers and convolutions share: packing weights block by block,
 * and the loops around a panel. For engine/ops alone. */
#ifndef HD_ENGINE_OPS_PANEL_H
#define HD_ENGINE_OPS_PANEL_H

#include "base/exec.h"
#include "kernels/cpu/onednn.h"
#include "kernels/panel.h"

HD_BEGIN_DECLS

const hd_panel_kernels *hd_panel_kernels_of(const hd_exec *ex);

/* Packs matrices [out_i, ...] (f32, bf16 or f16, contiguous) stacked along out; blocks are shared
 * out over the pool, and only one block per thread exists unpacked. */
HD_CHECKED hd_status hd_panel_pack(const hd_exec *ex, hd_dnn *dnn, hd_dtype compute, int parts,
                                   const hd_tensor *weight);

/* bias vectors [out_i] one after the other as f32, malloc'd into *out; a missing one is zeros. */
HD_CHECKED hd_status hd_panel_bias(float **out, int parts, const int64_t *sizes,
                                   const hd_tensor *bias);

/* Per-thread scratch from the arena: `bytes` for each thread of the pool, each 64-byte aligned.
 * *stride is the distance from one thread's to the next. NULL when it does not fit. */
void *hd_panel_scratch(const hd_exec *ex, size_t bytes, size_t *stride);

static inline int64_t hd_div_up(int64_t a, int64_t b)
{
    return (a + b - 1) / b;
}

HD_END_DECLS
#endif
