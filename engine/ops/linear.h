/* engine/ops/linear.h: y = x W^T + b, with the weights packed once for the machine.
 *
 * Rows are independent: the result of row i of a batch depends on nothing but row i, whatever the
 * batch and the number of threads. Work is cut into panels that depend only on the tokens of one
 * row and on the weights. */
#ifndef HD_ENGINE_OPS_LINEAR_H
#define HD_ENGINE_OPS_LINEAR_H

#include "base/exec.h"
#include "base/tensor.h"

HD_BEGIN_DECLS

typedef struct hd_linear hd_linear;

/* Packs `parts` weight matrices [out_i, in] (f32, bf16, f16; trailing axes of size 1 are allowed: a
 * 1x1 convolution), stacked along out, in `compute` (HD_F32 or HD_BF16). bias: NULL, or `parts`
 * vectors [out_i], each may be hd_tensor_none(). Keeps no reference to the inputs. The caller owns
 * *out. hd_linear_free(NULL) does nothing. */
HD_CHECKED hd_status hd_linear_create(hd_linear **out, const hd_exec *ex, int parts,
                                      const hd_tensor *weight, const hd_tensor *bias,
                                      hd_dtype compute);
void hd_linear_free(hd_linear *linear);
int64_t hd_linear_in(const hd_linear *linear);
int64_t hd_linear_out(const hd_linear *linear);
hd_dtype hd_linear_compute(const hd_linear *linear);
int64_t hd_linear_bytes(const hd_linear *linear); // packed weights and bias

/* x [B, ..., in] in the compute type, rows contiguous (the axes between may be a strided view only
 * in axis 0 and the last but one); y [B, ..., out] in the compute type or f32, last axis
 * contiguous, token stride free: y may be a column slice of a wider tensor. residual:
 * hd_tensor_none(), or like y (may be y itself): y = x W^T + b + residual. */
HD_CHECKED hd_status hd_linear_run(const hd_exec *ex, const hd_linear *linear, hd_tensor y,
                                   hd_tensor x, hd_tensor residual);
/* y = (x W^T + b)[:out / 2] * gelu(the other half): a linear layer and the hd_geglu that follows,
 * without the wide tensor between them. y [B, ..., out / 2], else as above. */
HD_CHECKED hd_status hd_linear_run_geglu(const hd_exec *ex, const hd_linear *linear, hd_tensor y,
                                         hd_tensor x);

HD_END_DECLS
#endif
