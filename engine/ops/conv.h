/* engine/ops/conv.h: 2-D convolution, channels last, with what surrounds it in a residual block
 * fused in.
 *
 * A task gathers a strip of input rows into its own scratch (padding, nearest upsampling, group
 * norm and SiLU applied on the way), and runs one single-threaded primitive on it: the normalised
 * image never goes through memory. Strips depend on the shape of one image only, so a row's bytes
 * depend neither on its batch nor on the threads. */
#ifndef HD_ENGINE_OPS_CONV_H
#define HD_ENGINE_OPS_CONV_H

#include "base/exec.h"
#include "base/tensor.h"

HD_BEGIN_DECLS

typedef struct hd_conv hd_conv;

typedef struct hd_conv_spec {
    int stride;                                   // 1 or 2, both axes
    int pad_top, pad_left, pad_bottom, pad_right; // zeros around the (upsampled) input
} hd_conv_spec;

/* weight [out, in, kh, kw] f32/bf16/f16 (OIHW as in the files), bias [out] or hd_tensor_none().
 * Packs into `compute`. */
HD_CHECKED hd_status hd_conv_create(hd_conv **out, const hd_exec *ex, hd_conv_spec spec,
                                    hd_tensor weight, hd_tensor bias, hd_dtype compute);
void hd_conv_free(hd_conv *conv);
int64_t hd_conv_in(const hd_conv *conv);
int64_t hd_conv_out(const hd_conv *conv);
int64_t hd_conv_bytes(const hd_conv *conv);
hd_dtype hd_conv_compute(const hd_conv *conv);

/* Group norm (+ SiLU) to apply to the input while it is gathered. */
typedef struct hd_conv_norm {
    const float *gamma, *beta; // [in]
    int groups;
    float eps;
    bool silu;
} hd_conv_norm;

typedef struct hd_conv_extra {
    const hd_conv_norm *norm; // NULL: the input as it is
    hd_tensor
        row_bias; // [B, out] f32 added to every pixel of row b (time embedding); none: nothing
    hd_tensor residual; // like y, added; may be y itself; none: nothing
    int64_t upsample_h,
        upsample_w; // nearest upsampling of the input to this size first (diffusers' rule:
                    // source = floor(i * H / upsample_h)); 0: none
} hd_conv_extra;

/* The output size for an input of h x w after upsampling. */
void hd_conv_out_size(const hd_conv *conv, int64_t h, int64_t w, int64_t *oh, int64_t *ow);

/* x [B, H, W, in] in compute type or f32, y [B, OH, OW, out] in the compute type or f32;
 * contiguous. extra may be NULL. */
HD_CHECKED hd_status hd_conv_run(const hd_exec *ex, const hd_conv *conv, hd_tensor y, hd_tensor x,
                                 const hd_conv_extra *extra);

HD_END_DECLS
#endif
