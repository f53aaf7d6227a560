/* engine/ops/elementwise.h: activations, sums, type changes, upsampling, joins: what moves memory
 * and computes little.
 *
 * Tensors are f32 or bf16, contiguous unless said otherwise; arithmetic is f32. y may be x where
 * shapes are equal. */
#ifndef HD_ENGINE_OPS_ELEMENTWISE_H
#define HD_ENGINE_OPS_ELEMENTWISE_H

#include "engine/ops/norm.h"

HD_BEGIN_DECLS

HD_CHECKED hd_status hd_activate(const hd_exec *ex, hd_tensor y, hd_tensor x, hd_activation act);
/* x [..., 2C], y [..., C]: y = x[:C] * gelu(x[C:]) (exact GELU), diffusers' GEGLU. */
HD_CHECKED hd_status hd_geglu(const hd_exec *ex, hd_tensor y, hd_tensor x);
/* y = a + b, all of one shape and type. */
HD_CHECKED hd_status hd_add(const hd_exec *ex, hd_tensor y, hd_tensor a, hd_tensor b);
/* y = x * factor + offset. */
HD_CHECKED hd_status hd_affine(const hd_exec *ex, hd_tensor y, hd_tensor x, float factor,
                               float offset);
/* y = x in y's type (f32, bf16, f16 in any pairing). Shapes equal; last axes contiguous, outer
 * strides free. */
HD_CHECKED hd_status hd_copy(const hd_exec *ex, hd_tensor y, hd_tensor x);
/* y [..., Ca + Cb] = a [..., Ca] next to b [..., Cb]: the skip connection of a UNet. */
HD_CHECKED hd_status hd_concat_channels(const hd_exec *ex, hd_tensor y, hd_tensor a, hd_tensor b);
/* x [B, H, W, C] to y [B, OH, OW, C], nearest: source = floor(i * H / OH). */
HD_CHECKED hd_status hd_upsample_nearest(const hd_exec *ex, hd_tensor y, hd_tensor x);
/* x [B, C, H, W] f32 to y [B, H, W, C], and back; y in any of f32, bf16. */
HD_CHECKED hd_status hd_nchw_to_nhwc(const hd_exec *ex, hd_tensor y, hd_tensor x);
HD_CHECKED hd_status hd_nhwc_to_nchw(const hd_exec *ex, hd_tensor y, hd_tensor x);
/* Rows of `table` [rows, C] (f32, bf16 or f16) by number: y [n, C]. Numbers out of range are
 * HD_ERR_ARGUMENT. */
HD_CHECKED hd_status hd_gather_rows(const hd_exec *ex, hd_tensor y, hd_tensor table,
                                    const int64_t *index, int64_t count);
/* Sinusoidal timestep embedding as in diffusers' get_timestep_embedding: y [n, dim] f32 from t [n].
 */
HD_CHECKED hd_status hd_timestep_embedding(const hd_exec *ex, hd_tensor y, const float *t,
                                           int64_t count, bool flip_sin_to_cos, float freq_shift,
                                           float max_period);

HD_END_DECLS
#endif
