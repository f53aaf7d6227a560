/* engine/ops/norm.h: group, layer and RMS norm over the last axis or axis groups.
 *
 * x and y are f32 or bf16 and of one type; sums are f32 (f64 where a group is long), in one fixed
 * order per row: the result depends neither on the threads nor on the other rows. gamma and beta
 * are f32 [C]; NULL means 1 and 0. */
#ifndef HD_ENGINE_OPS_NORM_H
#define HD_ENGINE_OPS_NORM_H

#include "base/exec.h"
#include "base/tensor.h"
#include "kernels/norm.h"

HD_BEGIN_DECLS

/* x, y [B, ..., C] contiguous; statistics per row b and group of C / groups channels, over all axes
 * between. y may be x. */
HD_CHECKED hd_status hd_group_norm(const hd_exec *ex, hd_tensor y, hd_tensor x, const float *gamma,
                                   const float *beta, int groups, float eps, hd_activation act);
/* The first half alone: per row and channel scale and shift, so that the normalised value is x *
 * scale + shift. scale, shift [B, C] f32. */
HD_CHECKED hd_status hd_group_norm_stats(const hd_exec *ex, hd_tensor scale, hd_tensor shift,
                                         hd_tensor x, const float *gamma, const float *beta,
                                         int groups, float eps);
/* The second half over one piece of memory, for operators that do it on the way: the loop that
 * suits the CPU `ex`. */
hd_scale_shift *hd_scale_shift_kernel(const hd_exec *ex);
/* x, y [..., C] contiguous; y may be x. */
HD_CHECKED hd_status hd_layer_norm(const hd_exec *ex, hd_tensor y, hd_tensor x, const float *gamma,
                                   const float *beta, float eps);
HD_CHECKED hd_status hd_rms_norm(const hd_exec *ex, hd_tensor y, hd_tensor x, const float *gamma,
                                 float eps);

HD_END_DECLS
#endif
